"""Datasets: samples of shards as fields. A field's bytes are read only when they are asked for."""

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from anyxform.field import Field
from anyxform.modality import Modality, registry
from anyxform.shards import Sample, index

Reader = Callable[[], bytes]


def extensions_of(modalities: Mapping[str, Modality | type[Modality]]) -> dict[str, str]:
    """Which modality owns a file ending; two that claim one are a ValueError."""
    owners: dict[str, str] = {}
    for name, modality in modalities.items():
        for ending in modality.extensions:
            if owners.setdefault(ending, name) != name:
                raise ValueError(
                    f"the modalities {owners[ending]!r} and {name!r} both claim .{ending} files: leave one out"
                )
    return owners


class Dataset:
    """The samples of some shards, by number.

    Members ``KEY.VARIANT.EXT`` are the field ``modality:VARIANT`` of the modality that owns ``EXT``. `fields` maps
    further fields to places in a JSON member: ``{"text:*": "json.text.*"}`` reads every language of
    ``{"text": {"en": …}}`` in ``KEY.json``. `keys` keeps the samples that fit one of these patterns.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[str | Path],
        *,
        extensions: Mapping[str, str],
        fields: Mapping[str, str] | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.name, self.extensions = name, dict(extensions)
        self.places = [_place(field, place) for field, place in (fields or {}).items()]
        self.samples: list[Sample] = []
        self.damage: list[str] = []
        for shard in shards:
            found = index(Path(shard))
            self.samples += [
                s for s in found.samples if not keys or any(fnmatchcase(s.key, pattern) for pattern in keys)
            ]
            self.damage += found.damage
        if not self.samples:
            raise ValueError(
                f"dataset {name!r} has no samples{f' that fit keys={list(keys)}' if keys else ''}: see its shards"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def stored(self, number: int) -> dict[Field, Reader]:
        """The fields of a sample that are members of their own, not places in a JSON."""
        return self._members(self.samples[number])

    def fields(self, number: int) -> dict[Field, Reader]:
        """The fields of a sample, sorted, each with a function that reads its bytes.

        ValueError, which names shard and key: a broken JSON, a variant that is none, two members for one field.
        """
        sample = self.samples[number]
        documents: dict[str, Any] = {}
        try:
            found = self._members(sample)
            for field, member, path in self.places:
                if member in sample.members:
                    if member not in documents:
                        documents[member] = _json(sample, member)
                    found |= dict(_values(field, documents[member], path))
        except ValueError as error:
            raise ValueError(f"{sample.shard}: {sample.key}: {error}") from error
        return dict(sorted(found.items()))

    def readable(self) -> Iterator[dict[Field, Reader]]:
        """The fields of each sample that is not broken; ValueError if all are. Training names those that are."""
        errors: list[ValueError] = []
        for number in range(len(self)):
            try:
                fields = self.fields(number)
            except ValueError as error:
                errors.append(error)
            else:
                yield fields
        if len(errors) == len(self):
            raise errors[0]

    def _members(self, sample: Sample) -> dict[Field, Reader]:
        found: dict[Field, Reader] = {}
        for ending in sample.members:
            variant, _, extension = ending.rpartition(".")
            if extension in self.extensions:
                field = Field.parse(":".join(filter(None, (self.extensions[extension], variant))))
                if field in found:
                    raise ValueError(f"two members are the field {field}")
                found[field] = partial(sample.read, ending)
        return found


def _json(sample: Sample, member: str) -> Any:
    try:
        return json.loads(sample.read(member))
    except ValueError as error:
        raise ValueError(f"its .{member} is broken: {error}") from error


def _place(field: str, place: str) -> tuple[str, str, list[str]]:
    """``"text:*": "json.text.*"`` as (field, member, path inside)."""
    member, *path = place.split(".")
    if not field.count("*") == place.count("*") == path.count("*") <= 1:
        raise ValueError(f"fields: {field}: {place} must both hold one * or none, such as text:*: json.text.*")
    Field.parse(field.replace("*", "x"))
    return field, member, path


def _values(field: str, document: Any, path: Sequence[str]) -> Iterator[tuple[Field, Reader]]:
    """The fields that a pattern finds in a document. What is missing or empty is no field."""
    for depth, part in enumerate(path):
        if not isinstance(document, dict):
            return
        if part == "*":
            for name in document:
                yield from _values(field.replace("*", name), document[name], path[depth + 1 :])
            return
        document = document.get(part)
    if document not in (None, "", [], {}):
        data = document if isinstance(document, str) else json.dumps(document)
        yield Field.parse(field), data.encode


def open_datasets(
    datasets: Mapping[str, Mapping[str, Any]],
    modalities: Mapping[str, Modality | type[Modality]],
    *,
    root: str = ".",
    split: str = "train",
) -> dict[str, Dataset]:
    """Datasets from their configs ``{name: {"shards": "emoji/{split}-*.tar", "fields": …, "keys": …, "weight": …}}``.

    ``{split}`` in a pattern of shards stands for `split`; patterns are relative to `root`. A dataset without shards of
    a split is left out; if that leaves none, a ValueError says so.
    """
    if not Path(root).is_dir():
        raise ValueError(
            f"there is no folder {root!r} of shards: give data.root, or build the starter: anyxform data starter {root}"
        )
    owners = extensions_of(modalities)
    opened = {}
    for name, config in datasets.items():
        patterns = [config["shards"]] if isinstance(config["shards"], str) else list(config["shards"])
        shards = [path for p in patterns for path in sorted(glob.glob(str(Path(root) / p.replace("{split}", split))))]
        if shards:
            opened[name] = Dataset(
                name, shards, extensions=owners, fields=config.get("fields"), keys=config.get("keys") or ()
            )
    if not opened:
        raise ValueError(f"no dataset has shards of the split {split!r} under {root!r}: looked for {list(datasets)}")
    return opened


def field_values(data: Mapping[str, Any], modality: str, split: str = "train") -> Iterator[bytes]:
    """The bytes of every value of one modality in a data config's shards, duplicates left out, to fit a tokenizer."""
    seen = set[int]()
    for dataset in open_datasets(data["datasets"], registry(), root=data["root"], split=split).values():
        for fields in dataset.readable():
            for field, read in fields.items():
                if field.modality == modality and (key := hash(value := read())) not in seen:
                    seen.add(key)
                    yield value
