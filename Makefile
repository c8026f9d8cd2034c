# `make demo` and `make test` do everything on a fresh machine with Python ≥ 3.11.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test lint unit clean

demo: .venv/installed
	$(BIN)/anyxform demo --out demo

test: lint unit

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "anyxform needs Python 3.11 or newer, and none was found on the PATH" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip<26'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,eval]'
	touch $@

clean:
	rm -rf .venv demo dist build
