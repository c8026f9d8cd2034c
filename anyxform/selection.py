"""Which samples a model is judged on, in which directions: chosen by a seed, whatever the order of the shards."""

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anyxform.dataset import Dataset, Reader
from anyxform.directions import Directions
from anyxform.evaluate import Item
from anyxform.field import Direction, Field
from anyxform.modality import Modality


class Values(Mapping[Field, Any]):
    """A sample's fields as values, decoded when they are asked for and kept if `keep`."""

    def __init__(self, readers: Mapping[Field, Reader], modalities: Mapping[str, Modality], keep: bool = False) -> None:
        self.readers = {field: read for field, read in readers.items() if field.modality in modalities}
        self.modalities = modalities
        self._kept: dict[Field, Any] | None = {} if keep else None

    def __getitem__(self, field: Field) -> Any:
        if self._kept is not None and field in self._kept:
            return self._kept[field]
        value = self.modalities[field.modality].load(self.readers[field]())
        if self._kept is not None:
            self._kept[field] = value
        return value

    def __iter__(self) -> Iterator[Field]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


class Samples(Sequence[Mapping[Field, Any]]):
    """All samples of some datasets, one after another, decoded when they are asked for."""

    def __init__(self, datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality]) -> None:
        self.places = [(dataset, number) for dataset in datasets.values() for number in range(len(dataset))]
        self.modalities = modalities

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        dataset, number = self.places[index]
        return Values(dataset.fields(number), self.modalities)


def texts_of(datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality]) -> set[tuple[str, str]]:
    """Every text with its language, but for case, white space and punctuation; what cannot be read is left out.

    Of one with a colon also what is behind it: a "flag: Iceland" tells how Iceland is called.
    """
    found = set[tuple[str, str]]()
    for dataset in datasets.values():
        for number in range(len(dataset)):
            try:
                values = Values(dataset.fields(number), modalities)
            except ValueError:
                continue
            for it in _texts(values):
                with suppress(ValueError):
                    text = str(values[it])
                    found |= {(_language(it), _letters(text)), (_language(it), _letters(text.rpartition(":")[2]))}
    return found


def _language(field: Field) -> str:
    return (field.attributes or ("",))[0]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


@dataclass
class Selection:
    """The chosen items, and what was left out: samples that cannot be read, by reason, and directions, by name."""

    items: list[Item] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)


def choose_items(
    datasets: Mapping[str, Dataset],
    modalities: Mapping[str, Modality],
    *,
    patterns: Sequence[str],
    hold_out: Sequence[str] = (),
    limit: int = 200,
    seed: int = 0,
    known: Callable[[Direction], bool] = lambda direction: True,
    new_only: bool = False,
    seen: Container[tuple[str, str]] = (),
) -> Selection:
    """Up to `limit` items for each direction that fits one of `patterns` and none of `hold_out`.

    Samples are taken in an order that depends on nothing but the seed and their keys, the same in each direction: so
    directions are compared on the same samples. Directions that the model does not know (`known`) are left out.

    `new_only` is for splits whose samples hold new media beside texts that were trained on. Then only those directions
    count in which a field stored as a member of its own, not inside a JSON, takes part: among JSON fields alone, source
    and target would both be training data. `seen`: texts, as `texts_of` has them, that must be no source or target.
    """
    directions = Directions(dict.fromkeys(patterns, 1.0), hold_out)
    chosen, counts = Selection(), Counter[Direction]()
    for dataset, number, key in _shuffled(datasets, seed):
        try:
            values = Values(dataset.fields(number), modalities, keep=True)
        except ValueError as error:
            chosen.refused[str(error)] += 1
            continue
        fitting = {direction for _, group in directions.fitting(values) for direction in group}
        new = set(dataset.stored(number) if new_only else values)
        for direction in sorted(fitting):
            if counts[direction] >= limit or not new & {*direction.sources, direction.target}:
                continue
            if not known(direction):
                chosen.unknown.add(str(direction))
            elif item := _item(key, direction, values, modalities, seen, chosen.refused):
                chosen.items.append(item)
                counts[direction] += 1
    return chosen


def _shuffled(datasets: Mapping[str, Dataset], seed: int) -> list[tuple[Dataset, int, str]]:
    """Every sample as (dataset, number, key), by the hash of seed and key."""
    places = [
        (dataset, number, f"{name}/{dataset.samples[number].key}")
        for name, dataset in datasets.items()
        for number in range(len(dataset))
    ]
    return sorted(places, key=lambda place: hashlib.sha256(_bytes(f"{seed} {place[2]}")).digest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a key is whatever the name of a file is


def _item(
    key: str,
    direction: Direction,
    values: Values,
    modalities: Mapping[str, Modality],
    seen: Container[tuple[str, str]],
    refused: Counter[str],
) -> Item | None:
    """None if a text is one of those that are seen, or, counted by reason, if training refuses a value too."""
    try:
        for wanted in (*direction.sources, direction.target):
            if modalities[wanted.modality].literal and (_language(wanted), _letters(str(values[wanted]))) in seen:
                return None
            modalities[wanted.modality].preprocess(values[wanted])
        sources = tuple(values[source] for source in direction.sources)
        if len(sources) == 1 and not modalities[direction.sources[0].modality].split(sources[0]):
            modalities[direction.target.modality].join([], [])  # of silence: a text, but no picture
        text, others = _english(values, direction.target), _alternatives(values, direction)
        return Item(key, direction, sources, values[direction.target], text, others)
    except ValueError as error:
        refused[str(error)] += 1
        return None


def _texts(values: Values) -> list[Field]:
    return [found for found in values if values.modalities[found.modality].literal]


def _languages(values: Values, field: Field) -> set[str]:
    """Those of a field's attributes that stand first in the sample's texts (fields of literal modalities)."""
    return {found.attributes[0] for found in _texts(values) if found.attributes} & set(field.attributes)


def _english(values: Values, target: Field) -> str:
    """The sample's text in English, for judges; empty if it has none, or if the target is in another language."""
    if _languages(values, target) - {"en"}:
        return ""
    return next((str(values[found]) for found in _texts(values) if "en" in found.attributes), "")


def _alternatives(values: Values, direction: Direction) -> tuple[Any, ...]:
    """What else of the target's modality the sample has in the same language: other drawings of the same thing."""
    languages, others = _languages(values, direction.target), []
    for found in sorted(values.keys() - {direction.target, *direction.sources}):
        if found.modality == direction.target.modality and _languages(values, found) == languages:
            with suppress(ValueError):  # what cannot be read is counted where it is asked for
                others.append(values[found])
    return tuple(others)
