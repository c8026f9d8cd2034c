"""What several test files share: a tiny dataset of the real modalities, and a checkpoint that was trained on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import Tiny


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indices and fetched shards are kept in a folder of the tests, those of subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYXFORM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The dataset, with fitted tokenizers."""
    from tests.tiny import make

    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def run_dir(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `anyxform train` over a few steps."""
    from anyxform.cli import main

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(tiny.train(folder, "train.val_every=6", "train.sample_every=3")) == 0
    return folder


@pytest.fixture(scope="session")
def checkpoint(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint with large weights by chance, so that answers depend on all that is given, in printable texts."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("checkpoints") / "lively"
    shutil.copytree(run_dir / "checkpoints" / "step-00000006", folder)
    chance = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for name in sorted(weights):
        if weights[name].ndim > 1:
            weights[name] = 0.3 * torch.randn(weights[name].shape, generator=chance)
    weights["targets.text.embedding"][:, :256] = 0  # single bytes
    save_file(weights, folder / "model.safetensors")
    (folder / "manifest.json").unlink()  # it has the digest of what was there before
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture and a recording in it."""
    from tests.tiny import PNG, WAV

    monkeypatch.chdir(tmp_path)
    Path("disc.png").write_bytes(PNG)
    Path("disc.wav").write_bytes(WAV)
    return tmp_path
