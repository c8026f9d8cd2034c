"""A codec of fixed weights from outside is a modality like any other: trained on, saved, loaded, answered with."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import anyxform
from anyxform import checkpoint
from anyxform.cli import main
from anyxform.modality import registry
from tests.codec import CODEBOOKS, VOCABULARY, WIDTH, Wave
from tests.tiny import write_shard

CONFIGS = {
    "modality/wave.yaml": "{name: wave, weights: null}",
    "data/waves.yaml": """
root: .
datasets: {waves: {shards: "waves-{split}.tar", weight: 1}}
directions: {wave>text: 1, text>wave: 1}
tokens_per_row: 96
pool: 8
num_workers: 0
max_broken: 0.01
""",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with shards, configs and the codec's weights, where the modality is installed."""
    known = (*entry_points(group="anyxform.modalities"), EntryPoint("wave", "tests.codec:Wave", "anyxform.modalities"))
    monkeypatch.setattr("anyxform.modality.entry_points", lambda group: known)
    monkeypatch.chdir(tmp_path)
    registry.cache_clear()
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(CODEBOOKS, VOCABULARY, WIDTH, generator=generator)
    save_file({"codebooks": books / torch.tensor([1.0, 4.0])[:, None, None]}, "codec.safetensors")
    wave = Wave()
    for split in ("train", "val"):
        samples = [
            {"__key__": str(number), "pcm": wave.save(wave.example(generator)), "en.txt": word.encode()}
            for number, word in enumerate(("high", "low", "loud", "quiet"))
        ]
        write_shard(Path(f"waves-{split}.tar"), samples)
    for name, text in CONFIGS.items():
        Path("conf", name).parent.mkdir(parents=True, exist_ok=True)
        Path("conf", name).write_text(text)
    yield tmp_path
    registry.cache_clear()


def test_a_codec_from_outside(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ["--config-dir", "conf", "data=waves"]
    assert main(["tokenizer", *ours, "modality=wave", "modality.weights=codec.safetensors", "out=tokenizers"]) == 0
    Path("codec.safetensors").unlink()  # it is in what was written
    modalities = ["~modality@modality.image", "~modality@modality.audio", "+modality@modality.wave=wave"]
    command = ["train", *ours, *modalities, "+modality.text.tokenizer=none", "tokenizers=tokenizers", "model=nano"]
    options = ["model.depth=1", "train.rows_per_step=1", "train.val_every=0", "train.sample_every=2", "run_dir=run"]
    for steps in (2, 4):
        assert main([*command, *options, f"train.steps={steps}", "resume=auto"]) == 0, capsys.readouterr().err
    assert "resuming" in capsys.readouterr().err

    ax = anyxform.load("run")
    books = checkpoint.load_modality("tokenizers/wave").state()["codebooks"]
    assert books.any() and torch.equal(ax.modalities["wave"].state()["codebooks"], books), "it learns nothing"
    heard = ax("low", to="wave", length=5, seed=1)
    sums = (books[0][:, None] + books[1]).flatten(0, 1)
    frames = torch.tensor(heard).view(5, WIDTH)
    assert torch.cdist(frames, sums).min(dim=1).values.max() < 1e-5, "what the codec makes of its codes"
    checkpoint.save("copy", *checkpoint.load(checkpoint.find(Path("run")))[:2])
    again = anyxform.load("copy")
    assert again("low", to="wave", length=5, seed=1) == heard
    assert again(("wave", heard), to="text:en", length=4) == ax(("wave", heard), to="text:en", length=4)
