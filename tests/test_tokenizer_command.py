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

Values = dict[str, list[bytes]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command on given values of each split instead of on shards."""

    def run(modality: dict[str, Any], values: Values, **options: Any) -> Path:
        config = {
            "modality": modality,
            "data": {"datasets": {"one": {"shards": "one-{split}.tar"}}},
            "steps": 2,
            "seed": 0,
            "out": str(tmp_path),
            "max_values": 100,
            "max_held_out": 10,
        }
        monkeypatch.setattr(tokenizer, "compose", lambda name, overrides: config | options)
        monkeypatch.setattr(tokenizer, "field_values", lambda data, name, split: iter(values.get(split, [])))
        assert tokenizer.main([]) == 0
        return tmp_path / modality["name"]

    return run


def drawn(name: str, number: int) -> list[bytes]:
    modality = registry()[name]()
    return [modality.save(modality.example(torch.Generator().manual_seed(seed))) for seed in range(number)]


def test_text_is_fitted_reported_and_saved(command, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"a red fish, number {n % 7}".encode() for n in range(50)]
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
    data = {"datasets": {"one": {"shards": "one.tar"}}}
    folder = command({"name": "text"}, {"train": drawn("text", 40)}, data=data)
    assert (folder / "report.json").exists()


def test_broken_values_are_counted_and_left_out(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(
        {"name": "image", "size": 32, "width": 16},
        {"train": [b"no picture", *drawn("image", 4)], "val": drawn("image", 2)},
    )
    assert "1 values cannot be read" in capsys.readouterr().err.replace("\n", " ")


def test_no_values_is_one_clear_line(command) -> None:
    with pytest.raises(ValueError, match="too few text values"):
        command({"name": "text"}, {})


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
