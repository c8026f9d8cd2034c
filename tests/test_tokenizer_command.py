"""`anyxform tokenizer`: from shards to a folder that `load_modality` reads, with a report that says how good it is."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from anyxform.checkpoint import load_modality
from anyxform.cli import tokenizer
from anyxform.modality import registry
from modalities.audio import Waveform
from modalities.text import Text
from tests.tiny import write_shard

Values = dict[str, list[bytes]]


ENDINGS = {"text": "txt", "image": "png", "audio": "wav"}


@pytest.fixture
def command(tmp_path: Path):
    """Runs the command on shards of given values of each split."""

    def run(modality: dict[str, Any], values: Values, *words: str, shards: str = "one-{split}.tar") -> Path:
        for group, config in {
            "modality": modality,
            "data": {"root": str(tmp_path), "datasets": {"one": {"shards": shards}}},
        }.items():
            (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
            (tmp_path / "conf" / group / "mine.yaml").write_text(json.dumps(config))
        for split, some in values.items():
            members = [{"__key__": f"{n:03d}", ENDINGS[modality["name"]]: data} for n, data in enumerate(some)]
            write_shard(tmp_path / shards.format(split=split), members)
        mine = ["--config-dir", str(tmp_path / "conf"), "modality=mine", "data=mine", f"out={tmp_path / 'out'}"]
        assert tokenizer.main([*mine, *(() if modality["name"] == "text" else ["steps=2"]), *words]) == 0
        return tmp_path / "out" / modality["name"]

    return run


def drawn(name: str, number: int) -> list[bytes]:
    modality = registry()[name]()
    return [modality.save(modality.example(torch.Generator().manual_seed(seed))) for seed in range(number)]


def test_text_is_fitted_reported_and_saved(command, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"a red fish, number {n}".encode() for n in range(50)]
    folder = command({"name": "text", "vocab_size": 300}, {"train": texts, "val": [b"a red fish"]})
    text = load_modality(folder)
    assert 256 < text.vocab_size <= 300
    assert text.from_codes(text.codes(text.preprocess("une grenouille"))) == "une grenouille"
    assert json.loads((folder / "report.json").read_text())["bytes_per_token"] > 2
    assert "bytes per token" in capsys.readouterr().out


def test_images_come_with_a_comparison(command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command({"name": "image", "size": 32, "width": 16}, {"train": drawn("image", 6), "val": drawn("image", 3)})
    assert {"psnr", "ssim", "codebook_usage"} <= json.loads((folder / "report.json").read_text()).keys()
    assert PIL.Image.open(folder / "compare.png").size == (2 * 3 * 32, 2 * 2 * 32)
    assert load_modality(folder).config()["size"] == 32
    assert "psnr" in capsys.readouterr().out


def test_where_shards_are_not_split_some_values_are_held_out(command) -> None:
    for shards in ("one.tar", "two-{split}.tar"):  # of which there are those of `train` alone
        folder = command({"name": "text"}, {"train": drawn("text", 40)}, shards=shards)
        assert (folder / "report.json").exists()


def test_values_without_a_split_of_their_own_are_not_held_out(command, tmp_path: Path, monkeypatch) -> None:
    """Beside datasets that have one."""
    seen: list[Any] = []
    report = Text.report
    monkeypatch.setattr(Text, "report", lambda self, values: (seen.extend(values), report(self, values))[1])
    write_shard(tmp_path / "all.tar", [{"__key__": f"{n}", "txt": f"also trained {n}".encode()} for n in range(9)])
    more = "+data.datasets.two={shards: all.tar}"
    command({"name": "text"}, {"train": drawn("text", 20), "val": [b"held out"]}, more)
    assert seen == ["held out"]


def test_recordings_longer_than_the_model_reads_are_used(command) -> None:
    modality = registry()["audio"](max_seconds=2.0)
    recordings = [
        modality.save(Waveform(0.1 * torch.randn(n * 16_000, generator=torch.Generator().manual_seed(n))))
        for n in (1, 3, 4)
    ]
    given = {"name": "audio", "max_seconds": 2.0, "width": 16, "num_codebooks": 1}
    folder = command(given, {"train": recordings, "val": recordings[2:]})
    assert (folder / "compare.png").exists()


@pytest.mark.parametrize(
    ("modality", "word", "message"),
    [
        ({"name": "image", "size": 32, "width": 16}, "steps=0", "steps=0 is not possible: give 1 or more"),
        ({"name": "image", "size": 32, "width": 16}, "steps=many", "steps=many is not possible: give a number"),
        ({"name": "text"}, "max_values=abc", "max_values=abc is not possible: give a number"),
        ({"name": "text", "size": 3}, "seed=1", "modality.text: "),
        ({"name": "audio", "levels": [8, 5, 2]}, "seed=1", "levels >= 3"),
        ({"name": "text"}, "~data.root", "the config of the data has no root"),
    ],
)
def test_a_mistake_is_one_clear_line(command, modality: dict[str, Any], word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(modality, {"train": [b"x"]}, word)


def test_broken_values_are_counted_and_left_out(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(
        {"name": "image", "size": 32, "width": 16},
        {"train": [b"no picture", *drawn("image", 4)], "val": drawn("image", 2)},
    )
    assert "1 values cannot be read" in capsys.readouterr().err.replace("\n", " ")


def test_no_values_is_one_clear_line(command) -> None:
    with pytest.raises(ValueError, match="too few text values"):
        command({"name": "text"}, {"train": [b"a"]})


def test_a_sample_is_fair_and_small() -> None:
    def items() -> Iterator[bytes]:
        yield from (bytes([n]) for n in range(20))

    assert tokenizer.sample(items(), 50, seed=0) == list(items())
    counts = Counter(item for seed in range(400) for item in tokenizer.sample(items(), 5, seed))
    assert all(60 < count < 150 for count in counts.values()) and len(counts) == 20  # 100 each, on average
    assert tokenizer.sample(items(), 5, seed=1) == tokenizer.sample(items(), 5, seed=1)


@pytest.mark.parametrize("name", ["text", "image"])
def test_the_shipped_configs_build_their_modality(name: str) -> None:
    config = tokenizer.compose("tokenizer", [f"modality={name}"])
    arguments = dict(config["modality"])
    saved = registry()[arguments.pop("name")](**arguments).config()
    arguments.pop("pretrained", None)  # what was downloaded is in the weights
    assert {key: saved[key] for key in arguments} == arguments
