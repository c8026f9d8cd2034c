"""What the page shows of an evaluation: cards of one sample each, drawn by a seed, failures like successes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyxform.demo.media import kind
from anyxform.evaluate import Item
from anyxform.modality import Modality

Section = tuple[str, str]
"""The kinds of media of the sources (joined by ``+``) and of the target."""

ORDER: list[Section] = [("image", "text"), ("text", "image"), ("audio", "text"), ("text", "audio"), ("text", "text")]


@dataclass(frozen=True)
class Card:
    """The same sources of one sample, asked for one or several targets: numbers of items."""

    section: Section
    items: tuple[int, ...]


def choose_cards(
    items: Sequence[Item], modalities: Mapping[str, Modality], *, cards: int = 8, targets: int = 3, seed: int = 0
) -> dict[Section, list[Card]]:
    """Up to `cards` of different samples for each section, with up to `targets` targets each."""
    chance = random.Random(seed)
    grouped: dict[tuple[Section, str, str], list[int]] = {}
    for number, item in enumerate(items):
        section = section_of(item, modalities)
        grouped.setdefault((section, item.key, "+".join(map(str, item.direction.sources))), []).append(number)
    chosen: dict[Section, list[Card]] = {}
    for section in sorted({section for section, _, _ in grouped}, key=_place):
        groups = [(key, numbers) for (where, key, _), numbers in grouped.items() if where == section]
        chance.shuffle(groups)
        different = dict(groups)  # one group a sample
        # media take room: only one of them on a card
        most = targets if section[1] == "text" else 1
        chosen[section] = [
            Card(section, tuple(sorted(chance.sample(numbers, min(most, len(numbers))))))
            for numbers in list(different.values())[:cards]
        ]
    return chosen


def section_of(item: Item, modalities: Mapping[str, Modality]) -> Section:
    """Where an item belongs on the page."""
    sources = "+".join(kind(modalities[source.modality]) for source in item.direction.sources)
    return sources, kind(modalities[item.direction.target.modality])


def _place(section: Section) -> tuple[int, Section]:
    return (ORDER.index(section) if section in ORDER else len(ORDER)), section
