"""The checkpoint that is shipped with the package: small, whole, and a model that has learnt something."""

import json
from pathlib import Path

import pytest
import torch

import anyxform
from anyxform import checkpoint
from anyxform.dataset import open_datasets
from anyxform.field import Direction
from anyxform.pipeline import SHIPPED, Pipeline
from anyxform.routes import read_table
from anyxform.selection import choose_items
from anyxform.shards import index
from modalities.audio import Waveform

FOLDER = SHIPPED / "starter"
ROOT = Path(__file__).parents[1] / "data" / "starter"
FIELDS = {"text:*": "json.text.*"}


@pytest.fixture(scope="module")
def starter() -> Pipeline:
    return anyxform.load()


def test_it_is_what_its_name_stands_for(starter: Pipeline) -> None:
    assert starter.path == FOLDER and starter.made == ["text", "image", "audio"]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 40e6
    checkpoint.verify(FOLDER)


def test_its_card_is_of_this_checkpoint(starter: Pipeline) -> None:
    card, facts = (FOLDER / "MODEL_CARD.md").read_text(), starter.facts["facts"]
    assert f"| steps | {facts['steps']:,} |" in card and facts["command"] in card
    assert "Captions unseen style" in card and "Untrained french to russian" in card and "CC-BY" in card
    assert all(f"it was trained as `{path.name}` says" in card for path in FOLDER.glob("config-until-*.yaml"))
    assert (FOLDER / "training.svg").is_file() and (FOLDER / "config.yaml").is_file()
    last = json.loads((FOLDER / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert last == facts["steps"]


def test_it_knows_which_ways_were_measured(starter: Pipeline) -> None:
    """Every direction of its table can be asked for, by the way that via=auto chooses."""
    for row in read_table(FOLDER):
        direction = Direction.parse(row["direction"])
        starter.field(str(direction.target))
        chosen = starter.route(direction, "auto")
        assert chosen is None or f"via {chosen}" in row["systems"]
    assert any(len(row["systems"]) > 1 for row in read_table(FOLDER))


@pytest.mark.skipif(not (ROOT / "stats.json").exists(), reason="needs the starter dataset")
def test_it_names_drawings_it_never_saw(starter: Pipeline) -> None:
    """Far more often than chance, which is one in fifteen hundred."""
    datasets = {"emoji": {"shards": "emoji/{split}-*.tar", "fields": FIELDS}}
    opened = open_datasets(datasets, starter.modalities, root=str(ROOT), split="instance")
    items = choose_items(opened, starter.modalities, patterns=["image:twemoji>text:en"], limit=60, new_only=True).items
    answers = starter.answer([item.direction for item in items], [item.sources for item in items])
    right = sum(answer == item.reference for answer, item in zip(answers, items))
    assert len(items) == 60 and right >= 12, f"{right} of {len(items)}"


@pytest.mark.skipif(not (ROOT / "stats.json").exists(), reason="needs the starter dataset")
def test_it_transcribes_a_long_recording_at_the_right_times(starter: Pipeline) -> None:
    """How well it hears does not matter here."""
    audio = starter.modalities["audio"]
    prompts = [s for s in index(ROOT / "prompts" / "test-000000.tar").samples if "en-phone.ogg" in s.members][:12]
    values = [audio.load(prompt.read("en-phone.ogg")) for prompt in prompts]
    silence = torch.zeros(48_000)
    recording = Waveform(torch.cat([part for value in values for part in (silence, value.samples)]))
    assert recording.seconds > 50
    segments = starter.segments(("audio", recording), to="text:en")
    assert " ".join(it.value for it in segments if it.value) == starter(("audio", recording), to="text:en")
    end, starts = 0.0, []
    for value in values:
        starts.append(end + 3)
        end += 3 + value.seconds
    for start, value in zip(starts, values):
        within = [it for it in segments if start - 0.03 <= it.start < it.end <= start + value.seconds + 0.03]
        assert within and within[0].start - start < 0.5
    assert len(segments) < 2 * len(values) and sum(bool(it.value) for it in segments) >= len(values)
