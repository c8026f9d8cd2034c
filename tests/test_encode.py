"""`anyxform data encode`: training on codes made ahead is the same; those of another tokenizer are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import load_file, save_file

from anyxform.checkpoint import load_modality
from anyxform.cli import main
from anyxform.data import Codes, condition_names
from anyxform.dataset import Dataset, extensions_of
from anyxform.field import Field
from anyxform.modality import Modality
from anyxform.rows import Rows
from anyxform.stored_codes import check_codes, digest_of, ending_of, from_bytes, is_codes, to_bytes
from modalities.audio import Audio
from modalities.image import Image
from tests.test_data import plain
from tests.test_dataset import dataset as dataset_of
from tests.tiny import Tiny
from tests.toy import ToySound, toys


def encode(tiny: Tiny, out: Path, *overrides: str) -> int:
    return main(["data", "encode", "--config-dir", str(tiny.conf), "data=tiny", f"out={out}", *overrides])


@pytest.fixture(scope="module")
def encoded(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "data"
    assert encode(tiny, out) == 0
    return out


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_is_the_same_and_makes_no_codes(
    tiny: Tiny, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = tmp_path / "before", tmp_path / "run"
    assert main(tiny.train(before)) == 0

    def refuse(self: Modality, tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("codes are made")

    for modality in (Image, Audio):
        monkeypatch.setattr(modality, "codes", refuse)
    assert main(tiny.train(run, f"data.root={encoded}")) == 0
    assert [line["loss"] for line in journal(run)] == [line["loss"] for line in journal(before)]
    targets = {name.partition(">")[2] for line in journal(run) for name in line["directions"]}
    assert {"image", "audio"} <= targets


def test_rows_are_the_same_to_the_bit(tiny: Tiny, encoded: Path) -> None:
    modalities = {name: load_modality(tiny.root / "tokenizers" / name) for name in ("text", "image", "audio")}

    def rows(root: Path) -> list[Any]:
        shards, fields = [root / "shapes" / "train-000000.tar"], {"text:*": "json.text.*"}
        datasets = {"a": Dataset("a", shards, extensions=extensions_of(modalities), fields=fields)}
        ids = {name: number for number, name in enumerate(condition_names(datasets, modalities))}
        made = Rows(datasets, modalities, ids, directions={"*>*": 1.0}, tokens_per_row=192, pool=32)
        return [plain(row) for row in made.pool(0)[0]]

    assert rows(encoded) == rows(tiny.root)


def test_webdataset_reads_the_codes_beside_the_samples(tiny: Tiny, encoded: Path) -> None:
    image = load_modality(tiny.root / "tokenizers" / "image")
    own = webdataset.WebDataset(str(encoded / "shapes" / "val-000000.tar"), shardshuffle=False, empty_check=False)
    raw = webdataset.WebDataset(str(tiny.root / "shapes" / "val-000000.tar"), shardshuffle=False, empty_check=False)
    samples = list(own.decode())
    assert len(samples) == 12
    for sample, before in zip(samples, raw):
        assert sample["__key__"] == before["__key__"]
        codes = image.codes(image.preprocess(image.load(before["png"])))
        assert np.array_equal(sample[f"codes.{digest_of(image)}.image.npy"], codes)
        assert {name for name in before if not name.startswith("__")} < sample.keys()


def test_the_same_command_again_changes_nothing_and_another_tokenizer_needs_another_folder(
    tiny: Tiny, encoded: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in encoded.rglob("*.tar*")}
    assert encode(tiny, encoded) == 0
    assert {path: path.stat().st_mtime_ns for path in encoded.rglob("*.tar*")} == before
    assert encode(tiny, encoded, f"tokenizers={other}") == 2
    assert "give another folder" in capsys.readouterr().err


def test_the_tokenizers_beside_the_codes_are_those_of_the_last_call(tiny: Tiny, other: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", Path("image") / "state.safetensors"
    for tokenizers in (tiny.root / "tokenizers", other):
        assert encode(tiny, out, f"tokenizers={tokenizers}", "again=true", "splits=[val]") == 0
        assert (out / "tokenizers" / state).read_bytes() == (tokenizers / state).read_bytes()
    assert sorted(path.name for path in (out / "tokenizers").iterdir()) == ["audio", "image", "text"]


def test_tokenizers_of_others_are_not_replaced(tiny: Tiny, other: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(other, tmp_path / "out" / "tokenizers")
    assert encode(tiny, tmp_path / "out", "splits=[val]") == 2
    assert "tokenizers is there already, and is not known to be of an earlier call" in capsys.readouterr().err


def test_a_tokenizer_that_the_data_want_is_not_done_without(tiny: Tiny, tmp_path: Path, capsys) -> None:
    shutil.copytree(tiny.root / "tokenizers" / "image", tmp_path / "tokenizers" / "image")
    command = ["data", "encode", "--config-dir", str(tiny.conf), "data=tiny", f"tokenizers={tmp_path / 'tokenizers'}"]
    assert main([*command, f"out={tmp_path / 'out'}"]) == 2
    assert "there is no tokenizer for audio" in capsys.readouterr().err or not (tmp_path / "out").exists()
    assert main([*command, f"out={tmp_path / 'out'}", "targets=[image]"]) == 0


@pytest.fixture(scope="module")
def other(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers of which that of images is a little different."""
    folder = tmp_path_factory.mktemp("tokenizers") / "other"
    shutil.copytree(tiny.root / "tokenizers", folder)
    state = load_file(folder / "image" / "state.safetensors")
    name = next(iter(state))
    save_file({**state, name: state[name] + 1e-3}, folder / "image" / "state.safetensors")
    return folder


def test_codes_of_another_tokenizer_are_not_trained_on(
    tiny: Tiny, encoded: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.train(tmp_path / "run", f"data.root={encoded}", f"tokenizers={other}")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train-000000.tar: its codes of image are of another tokenizer (" in said
    assert "encode it again (anyxform data encode), or train on the shards without codes" in said


def test_what_only_training_heeds_makes_no_other_codes() -> None:
    assert digest_of(Image(size=16, width=16, augment=0.0)) == digest_of(Image(size=16, width=16, augment=0.5))
    assert digest_of(Image(size=16, width=16)) == digest_of(Image(size=16, width=16, patch_size=4))
    assert digest_of(Image(size=16, width=16)) == digest_of(Image(size=16, width=16, decoding="autoregressive"))
    assert digest_of(Image(size=16, width=16)) != digest_of(Image(size=32, width=16))


def test_a_sample_without_codes_has_them_made(tiny: Tiny, encoded: Path) -> None:
    """Texts, whose codes were not asked for, beside pictures, whose codes are there."""
    modalities = {name: load_modality(tiny.root / "tokenizers" / name) for name in ("text", "image")}
    shard = encoded / "shapes" / "val-000000.tar"
    dataset = Dataset("a", [shard], extensions=extensions_of(modalities), fields={"text:*": "json.text.*"})
    fields, codes = dataset.fields(0), Codes(modalities)
    assert list(fields) == [Field("image"), Field("text", "en"), Field("text", "fr")]
    made = codes(("a", 0, Field("text", "en")), fields[Field("text", "en")], dataset.samples[0])
    text = modalities["text"]
    assert text.from_codes(made) == json.loads(dataset.samples[0].read("json"))["text"]["en"]


def test_what_is_only_called_codes_is_the_users_own(tmp_path: Path) -> None:
    found = dataset_of(tmp_path, ("a.codes.npy", "numbers"), ("a.codes.fr.npy", "more"), ("a.codes.txt", "of honour"))
    check_codes({"a": found}, toys())
    assert [*map(str, found.fields(0))] == ["text:codes"]
    assert Codes(toys())(("a", 0, Field("text", "codes")), lambda: b"of honour", found.samples[0]).shape == (9, 1)
    for field in (Field("sound"), Field("sound", "fr-B")):
        assert is_codes(ending_of(field, digest_of(ToySound())))


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 1), np.uint8), np.zeros((3, 2), np.int64), np.full((3, 2), 8, np.uint8), np.zeros((11, 2), np.uint8)],
)
def test_what_cannot_be_codes_is_an_error(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "it.npy", array)
    with pytest.raises(ValueError, match="are none of sound"):
        from_bytes((tmp_path / "it.npy").read_bytes(), ToySound())
    with pytest.raises(ValueError, match="cannot be read"):
        from_bytes(b"", ToySound())
    codes = torch.tensor([[1, 7], [0, 3]])
    assert torch.equal(from_bytes(to_bytes(codes, ToySound()), ToySound()), codes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("targets=[picture]", "targets: there is no modality 'picture'"),
        ("splits=[none]", "no dataset has shards of the splits ['none']"),
        ("out={root}", "is where the shards are: give another folder"),
    ],
)
def test_a_mistake_is_one_line(tiny: Tiny, here: Path, override: str, message: str, capsys) -> None:
    arguments = ["--config-dir", str(tiny.conf), "data=tiny", override.format(root=tiny.root)]
    assert main(["data", "encode", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
