"""Who may import whom: the design's rules are lint rules, and each fails when it is broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BREACHES = [
    ("anyxform/field.py", "import modalities.text", "The machinery knows no modality"),
    ("modalities/image/pixels.py", "import modalities.text", "No modality knows another"),
    ("modalities/text/modality.py", "import anyxform.train", "A modality knows the contract and the layers"),
    ("anyxform/model.py", "import hydra", "Hydra stays in the command line"),
    ("anyxform/cli/run.py", "import omegaconf", "Hydra stays in the command line"),
    ("anyxform/model.py", "import anyxform.cli", "Imports of the machinery point one way"),
    ("anyxform/generate.py", "import anyxform.train", "Imports of the machinery point one way"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code and its rules, without a cache."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("anyxform", "modalities"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(checkout: Path) -> tuple[int, list[str]]:
    """lint-imports' exit code, and the rules that it finds broken."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=checkout, capture_output=True, text=True)
    return done.returncode, [line.partition(" BROKEN")[0] for line in done.stdout.splitlines() if " BROKEN" in line]


def test_the_rules_are_kept(checkout: Path) -> None:
    assert lint(checkout) == (0, [])


@pytest.mark.parametrize(("file", "line", "rule"), BREACHES, ids=[f"{file}: {line}" for file, line, _ in BREACHES])
def test_a_breach_fails_and_its_rule_is_named(checkout: Path, file: str, line: str, rule: str) -> None:
    path = checkout / file
    whole = path.read_text()
    path.write_text(f"{whole}\n{line}\n")
    try:
        code, broken = lint(checkout)
    finally:
        path.write_text(whole)
    assert code == 1 and any(name.startswith(rule) for name in broken)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["--version"], ["run", "--help"], ["data", "starter", "--help"], ["export", "--help"],
        ["plan", "--help"], ["card", "--help"],
    ],
)  # fmt: skip
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        f"from anyxform.cli import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(("usage: anyxform", "anyxform ")), done.stderr
    assert done.stderr == "False\n"
