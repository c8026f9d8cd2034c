"""The starter that ships, on what the demo's page shows of it: samples that a seed chooses, the bad with the good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyxform.dataset import Dataset, open_datasets, shards_of
from anyxform.demo.exhibits import Card, choose_cards
from anyxform.evaluate import Item
from anyxform.pipeline import Pipeline
from anyxform.selection import choose_items, texts_of

CARDS = 6
DRAWS = 3
"""Different drawings of the same words."""


@dataclass(frozen=True)
class Part:
    """What is asked for: directions of one dataset and split. `new_texts`: no text that training has."""

    title: str
    lead: str
    split: str
    dataset: str
    patterns: Sequence[str]
    new_texts: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)


PARTS = (
    Part(
        "Drawings, named",
        "Of a style that it never saw; other drawings of the same things it did.",
        "instance", "emoji", [f"image:openmoji>text:{language}" for language in ("de", "en", "es")],
    ),
    Part(
        "Words, drawn as it was trained to",
        "These names it has seen drawn in this style, so here it draws by heart.",
        "train", "emoji", ["text:en>image:noto"],
    ),
    Part(
        "Words, drawn in another style",
        "One in which it never saw the thing, which it does badly.",
        "instance", "emoji", ["text:en>image:twemoji"],
    ),
    Part(
        "People's recordings, written down",
        "Recordings that it never heard, in their own language.",
        "instance", "prompts",
        [f"audio:{language}*>text:{language}" for language in ("bg", "en", "es", "fr", "it", "ro", "ru")],
        sampling={"align_weight": 0.5, "num_beams": 4},
    ),
    Part("Names, translated", "Names that it never saw.", "test", "names", ["text>text"], new_texts=True),
    Part(
        "Words, spoken", "Sentences that it never saw. Its speech is not understood.",
        "test", "prompts", ["text:en>audio:en-phone"], new_texts=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A part with what was chosen, and the answers by number of item: several draws of a drawing."""

    part: Part
    items: Sequence[Item]
    cards: Sequence[Card]
    answers: Mapping[int, Sequence[Any]]


def showcase(
    ax: Pipeline, configs: Mapping[str, Any], root: Path, *, seed: int, parts: Sequence[Part] = PARTS
) -> list[Shown]:
    """What the model makes of each part that there is. `configs`: of the datasets, whose shards are under `root`.

    A part whose shards or samples are not there is left out.
    """
    asked = {part.dataset: configs[part.dataset] for part in parts}
    found = {split: _opened(ax, asked, root, split) for split in {"train", *(part.split for part in parts)}}
    trained = texts_of(found["train"], ax.modalities) if any(part.new_texts for part in parts) else set()
    there = [part for part in parts if part.dataset in found[part.split]]
    shown = [_shown(ax, part, found[part.split][part.dataset], trained, seed) for part in there]
    return [it for it in shown if it.cards]


def _opened(ax: Pipeline, configs: Mapping[str, Any], root: Path, split: str) -> dict[str, Dataset]:
    there = {name: config for name, config in configs.items() if shards_of(config, str(root), split)}
    return open_datasets(there, ax.modalities, root=str(root), split=split) if there else {}


def _shown(ax: Pipeline, part: Part, dataset: Dataset, trained: set[tuple[str, str]], seed: int) -> Shown:
    attributes = ax.model.condition_ids.keys()
    items = choose_items(
        {part.dataset: dataset},
        ax.modalities,
        patterns=part.patterns,
        limit=CARDS,
        seed=seed,
        known=lambda direction: attributes >= set(direction.target.attributes),
        seen=trained if part.new_texts else (),
    ).items
    groups = choose_cards(items, ax.modalities, cards=CARDS, seed=seed)
    cards = [card for group in groups.values() for card in group]
    numbers = [number for card in cards for number in card.items]
    draws = DRAWS if any(ax.modalities[items[n].direction.target.modality].position_axes == 2 for n in numbers) else 1
    answers: dict[int, list[Any]] = {number: [] for number in numbers}
    for draw in range(draws):
        values = ax.answer(
            [items[n].direction for n in numbers],
            [items[n].sources for n in numbers],
            seed=1000 * draw + seed,
            **part.sampling,
        )
        for number, value in zip(numbers, values, strict=True):
            answers[number].append(value)
    return Shown(part, items, cards, answers)
