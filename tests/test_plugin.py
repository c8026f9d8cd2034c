"""Acceptance of the design: a modality from another installed package does all that ours do, with no change here.

The package is `tests/plugin`. It is really installed, into a folder that fresh processes see.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "plugin"
GENES = {"start": "ATG", "stop": "TAA", "repeat": "CAGCAGCAGCAG", "promoter": "TATAAA"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the package is built and installed, as any other would be."""
    source, folder = tmp_path_factory.mktemp("source") / "dna", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(folder), str(source)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def run(site: Path, folder: Path, *arguments: str) -> str:
    """What a fresh python prints that sees the package, working in a folder."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_listed(site: Path, tmp_path: Path) -> None:
    table = run(site, tmp_path, "-m", "anyxform", "modalities")
    (row,) = [line for line in table.splitlines() if " dna " in line]
    assert all(word in row for word in (".dna", "autoregressive", "anyxform_dna.DNA", "anyxform-dna"))


def test_it_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    suite = str(ROOT / "tests" / "test_modalities.py")
    chosen = "dna or extensions"  # the tests that have its name, and one for all
    said = run(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", suite, "-k", chosen)
    assert "failed" not in said and int(said.splitlines()[-1].split()[0]) > 30


def write_shard(path: Path, count: int) -> None:
    """Sequences beside their names."""
    with tarfile.open(path, "w") as shard:
        for number in range(count):
            name = list(GENES)[number % len(GENES)]
            for ending, data in (("dna", GENES[name] + "ACGT"[number // 4 % 4]), ("en.txt", name)):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(data)
                shard.addfile(info, BytesIO(data.encode()))


COMMANDS = """
import anyxform
from anyxform.cli import main

ours = "--config-dir {conf} data=genes data.root=."
for command in (
    f"tokenizer {{ours}} modality=dna",
    f"train {{ours}} +modality@modality.dna=dna ~modality@modality.image ~modality@modality.audio"
    " tokenizers=tokenizers +modality.text.tokenizer=none model=nano model.depth=1 run_dir=run train.steps=3"
    " train.rows_per_step=1 train.log_every=1 train.val_every=3 train.sample_every=3",
    "run stop --to dna -o made.dna --checkpoint run",
    "run gene.dna --to text:en -o made.txt --length 4 --checkpoint run",
):
    assert main(command.split()) == 0, command

ax = anyxform.load("run")
for decoding in ("autoregressive", "masked"):
    assert set(ax("stop", to="dna", decoding=decoding, length=5)) <= set("ACGT")
    assert isinstance(ax("gene.dna", to="text:en", decoding=decoding, length=5), str)
assert ax(("dna", "ATG"), "stop", to="dna", length=2)
"""


def test_it_is_fitted_trained_and_generated_both_ways(site: Path, tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 8)):
        write_shard(tmp_path / f"genes-{split}.tar", count)
    (tmp_path / "gene.dna").write_text("ATGA\n")
    run(site, tmp_path, "-c", COMMANDS.format(conf=PACKAGE / "conf"))
    report = json.loads((tmp_path / "tokenizers" / "dna" / "report.json").read_text())
    assert report["letters_per_token"] > 1.5
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = {direction for step in steps for direction in step["directions"]}
    assert trained == {"dna>text:en", "text:en>dna"} and steps[-1]["step"] == 3
    assert set((tmp_path / "made.dna").read_text()) <= set("ACGT") and (tmp_path / "made.txt").exists()
