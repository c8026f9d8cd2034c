"""The wheel, built from the sdist as on an index, works alone: installed outside the checkout, which it cannot see."""

import json
import os
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = {".tar", ".png", ".jpg", ".webp", ".ogg", ".wav", ".flac", ".safetensors", ".parquet", ".zip"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is installed."""
    folder, (wheel,) = tmp_path_factory.mktemp("site"), built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return folder


def run(installed: Path, *arguments: str) -> str:
    """What an interpreter prints that sees the installed wheel, and the libraries behind it, but no checkout.

    It is the one that the environment was made from: its own folders of packages are not read, and those of PYTHONPATH
    are, but without the .pth file that leads to the checkout.
    """
    paths = [str(installed), *site.getsitepackages()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANYXFORM"))}
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [python, "-s", *arguments],
        check=False,
        cwd=installed.parent,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_packages_and_the_configs_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    places = {folder: folder for folder in ("anyxform", "modalities")} | {"conf": "anyxform/conf"}
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {"anyxform/py.typed", "modalities/py.typed", "anyxform/demo/style.css", "anyxform/conf/train.yaml"} <= names
    assert not DATA & {Path(name).suffix for name in names if not name.startswith("anyxform/pretrained/")}
    assert {f"anyxform/pretrained/starter/{name}" for name in ("model.safetensors", "MODEL_CARD.md")} <= names


def test_its_metadata_are_whole(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        metadata = archive.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Dist: torch<2.15,>=2.11" in metadata
    assert (ROOT / "README.md").read_text().strip() in metadata


def test_the_sdist_holds_no_data_but_the_starter(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "tests/test_wheel.py" in names and "Makefile" in names
    data = [name for name in names if name.startswith("data/") or Path(name).suffix in DATA]
    assert all(name.startswith("anyxform/pretrained/") for name in data), data
    assert sdist.stat().st_size < 40e6


def test_it_runs_outside_of_the_checkout(installed: Path) -> None:
    code = """
import json, sys
from importlib.metadata import entry_points
import anyxform, modalities, anyxform.cli.conf as conf
train = conf.compose("train", [])
print(json.dumps({
    "version": anyxform.__version__, "files": [anyxform.__file__, modalities.__file__, str(conf.conf_folder())],
    "path": sys.path, "depth": train["model"]["depth"], "modalities": list(train["modality"]),
    "entries": [str(e.dist.locate_file("")) for e in entry_points(group="anyxform.modalities")],
    "torch": "torch" in sys.modules,
}))
"""
    found = json.loads(run(installed, "-c", code))
    assert str(ROOT) not in found["path"]
    assert all(Path(file).is_relative_to(installed) for file in found["files"]), found["files"]
    assert [Path(place) for place in found["entries"]] == [installed] * 3
    assert f"anyxform {found['version']}" == run(installed, "-m", "anyxform", "--version").strip()
    assert found["depth"] > 0 and found["modalities"] == ["text", "image", "audio"] and not found["torch"]


def test_it_brings_a_model_that_answers(installed: Path) -> None:
    """The starter, from the wheel alone, offline."""
    answer = run(installed, "-m", "anyxform", "run", "dog", "--to", "text:fr")
    assert answer.strip()


def test_it_finds_its_own_modalities(installed: Path) -> None:
    table = run(installed, "-m", "anyxform", "modalities")
    for name in ("text", "image", "audio"):
        assert any(f" {name} " in line and f" modalities.{name}" in line for line in table.splitlines()), table
