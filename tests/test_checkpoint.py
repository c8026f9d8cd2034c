import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyxform import checkpoint
from anyxform.checkpoint import atomic_folder, contents, find, load, load_modality, save_modality, tidy, write
from tests.toy import ToyImage, ToySound, ToyText, toys
from tests.toy_training import toy_model, toy_row


class Fitted(ToyText):
    """A text modality with an argument and a tensor."""

    def __init__(self, width: int = 2, shout: bool = False) -> None:
        self.width, self.shout, self.table = width, shout, torch.zeros(width)

    def config(self) -> dict[str, object]:
        return {"width": self.width, "shout": self.shout}

    def state(self) -> dict[str, Tensor]:
        return {"inner.table": self.table}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["inner.table"])


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    known = {"text": Fitted, "image": ToyImage, "sound": ToySound}
    monkeypatch.setattr(checkpoint, "registry", lambda: known)
    return known


def fitted(width=2):
    modality = Fitted(width)
    modality.table += torch.arange(width)
    return modality


@pytest.fixture
def folder(tmp_path) -> Path:
    modalities = toys() | {"text": fitted()}
    with atomic_folder(tmp_path / "run" / "checkpoints" / "step-00000007") as temporary:
        facts = {"directions": ["text>image"], "facts": {"steps": 7}}
        write(temporary, contents(toy_model(modalities), modalities, **facts))
    return tmp_path / "run" / "checkpoints" / "step-00000007"


def test_round_trip(folder):
    model, modalities, config = load(folder)
    assert not model.training
    row, original = toy_row(0), toy_model().eval()
    for name, logits in model(row).items():
        assert torch.equal(logits, original(row)[name])
    assert torch.equal(modalities["text"].table, torch.tensor([0.0, 1.0]))
    assert list(modalities) == ["text", "image", "sound"]
    assert config["directions"] == ["text>image"]
    assert config["facts"] == {"steps": 7}


def test_untied_models_too(tmp_path):
    model = toy_model(tie_embeddings=False)
    with atomic_folder(tmp_path / "it") as temporary:
        write(temporary, contents(model, toys() | {"text": fitted()}))
    assert load(tmp_path / "it")[0].targets["text"].head is not load(tmp_path / "it")[0].targets["text"].embedding


def test_nothing_but_data_is_stored(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "modalities.safetensors",
        "model.safetensors",
    ]


def test_a_run_and_its_checkpoints_stand_for_the_newest(folder):
    newest = folder.with_name("step-00000010")
    newest.mkdir()
    assert find(folder.parent.parent) == find(folder.parent) == newest
    assert find(folder) == folder


def spoil(folder: Path, **changes: object) -> None:
    """As another version may have written it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "manifest.json").unlink()


def flip(path: Path) -> None:
    """One bit, in the middle of the numbers: every header and every length is right."""
    data = bytearray(path.read_bytes())
    data[-40] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (
            lambda f: cut(f / "model.safetensors"),
            r"model\.safetensors is damaged, not what was written: take another",
        ),
        (lambda f: flip(f / "model.safetensors"), r"model\.safetensors is damaged, not what was written"),
        (lambda f: flip(f / "modalities.safetensors"), r"modalities\.safetensors is damaged"),
        (lambda f: cut(f / "config.json"), r"config\.json is damaged"),
        (lambda f: cut(f / "manifest.json"), r"manifest\.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json is damaged: take another"),
        (lambda f: spoil(f, format=99), "has format 99.* upgrade anyxform"),
        (
            lambda f: spoil(f, modalities={"dna": {}}),
            "needs the modality 'dna', which is not installed: see anyxform modal",
        ),
        (
            lambda f: spoil(f, model={"dim": 48, "depth": 3, "num_heads": 2}),
            r"is of another model: .* has shape \(.*\), not",
        ),
        (lambda f: spoil(f, model={"dim": 32, "depth": 2, "num_heads": 2}), r"blocks\.2\.\S+ is not in the model"),
        (lambda f: spoil(f, model={"dim": 32, "breadth": 2}), "does not describe a model of this version: .*breadth"),
        (
            lambda f: spoil(f, modalities={"text": {"width": 3}}),
            "does not fit the modality 'text': another version wrote it",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_no_checkpoint_there(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="give the folder of a run or of one of its checkpoints"):
        load(tmp_path / path)


def test_nothing_of_an_interrupted_write_is_left(tmp_path):
    def write():
        with atomic_folder(tmp_path / "it") as temporary:
            (temporary / "new").write_text("new")
            raise KeyboardInterrupt

    with atomic_folder(tmp_path / "it") as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["it", "it/old"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "it") as temporary:
            (temporary / name).write_text(name)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["it", "it/new"]


def test_tokenizer_round_trip(tmp_path):
    save_modality(fitted(3), tmp_path / "text")
    assert load_modality(tmp_path / "text").table.tolist() == [0, 1, 2]
    assert load_modality(tmp_path / "text", shout=True).shout


def test_a_tokenizer_that_was_fitted_otherwise(tmp_path):
    save_modality(fitted(3), tmp_path / "text")
    with pytest.raises(ValueError, match=r"does not fit the modality 'text': it was fitted without \{'width': 4\}"):
        load_modality(tmp_path / "text", width=4, shout=False)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text("[]")
        load_modality(tmp_path / "other")


def test_what_a_killed_process_left_is_tidied_up(tmp_path):
    for name in (".step-00000003.41.tmp", ".step-00000002.41.old", ".step-00000001.41.old", "step-00000001"):
        (tmp_path / name).mkdir()
    tidy(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-00000001", "step-00000002"}
