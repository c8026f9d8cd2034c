"""Datasets: samples of shards as fields. A field's bytes are read only when they are asked for."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anyxform import storage
from anyxform.field import Field, did_you_mean
from anyxform.modality import Modality, registry
from anyxform.shard_files import cache_bound
from anyxform.shard_index import CONNECTIONS, is_index, open_indices
from anyxform.shard_samples import Joined, Sample, Samples
from anyxform.stored_codes import is_codes

Reader = Callable[[], bytes]
REMOTE_AT_ONCE = 8
"""Shards among which samples are shuffled where they are remote, unless the config says otherwise."""


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
    ``{"text": {"en": …}}`` in ``KEY.json``. `keys` keeps the samples that fit one of these patterns. Training shuffles
    all samples, or, with `shards_at_once`, shards, and samples among so many of them: reading then goes from shard to
    shard. For remote ones that is the default.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[str | Path],
        *,
        extensions: Mapping[str, str],
        fields: Mapping[str, str] | None = None,
        keys: Sequence[str] = (),
        shards_at_once: int | None = None,
    ) -> None:
        self.name, self.extensions = name, dict(extensions)
        self.places = [_place(field, place) for field, place in (fields or {}).items()]
        indices = open_indices([str(shard) for shard in shards])
        tables = [it.samples for it in indices if isinstance(it.samples, Samples)]
        self.samples = Joined(tables, [_fitting(table, keys) for table in tables] if keys else None)
        self.damage = [line for it in indices for line in it.damage]
        if shards_at_once is not None and shards_at_once < 1:
            raise ValueError(f"dataset {name!r}: shards_at_once={shards_at_once} is not possible: give 1 or more")
        remote = [table.shard.size for table in tables if table.shard.remote]
        self.shards_at_once = shards_at_once or (REMOTE_AT_ONCE if remote else None)
        self.cached = sum(sorted(remote)[-(self.shards_at_once or 0) - 1 :])
        """Bytes that the cache has to hold, at most: of the remote shards that are read at once, and the next."""
        if not len(self.samples):
            why = self.damage[0] if self.damage else "see its shards"
            raise ValueError(f"dataset {name!r} has no samples{f' that fit keys={list(keys)}' if keys else ''}: {why}")

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
        return self._fields(sample, partial(_json, sample))

    def _kind(self, number: int) -> dict[Field, Reader]:
        """The fields of a sample, as far as can be by its outline, without values that are in its JSON."""
        sample = self.samples[number]
        outlines = json.loads(sample.outline or "{}")

        def document(member: str) -> Any:
            if member in outlines and outlines[member] is None:
                raise ValueError(f"its .{member} is broken")
            return outlines[member] if member in outlines else _json(sample, member)

        return self._fields(sample, document)

    def _fields(self, sample: Sample, document: Callable[[str], Any]) -> dict[Field, Reader]:
        documents: dict[str, Any] = {}
        try:
            found = self._members(sample)
            for field, member, path in self.places:
                if member in sample.members:
                    if member not in documents:
                        documents[member] = document(member)
                    found |= dict(_values(field, documents[member], path))
        except ValueError as error:
            raise ValueError(f"{sample.shard}: {sample.key}: {error}") from error
        return dict(sorted(found.items()))

    def readable(self) -> Iterator[dict[Field, Reader]]:
        """The fields of each sample that is not broken; ValueError if all are. Training names those that are."""
        return self._readable(range(len(self)), self.fields)

    def kinds(self) -> Iterator[tuple[Field, ...]]:
        """What fields its samples have, many times or once; nothing is read of shards whose index knows."""
        return map(tuple, self._readable(self.samples.of_each_kind(outlined=bool(self.places)), self._kind))

    def _readable(
        self, numbers: Sequence[int], fields_of: Callable[[int], dict[Field, Reader]]
    ) -> Iterator[dict[Field, Reader]]:
        errors: list[ValueError] = []
        for number in numbers:
            try:
                fields = fields_of(number)
            except ValueError as error:
                errors.append(error)
            else:
                yield fields
        if len(errors) == len(numbers):
            raise errors[0]

    def _members(self, sample: Sample) -> dict[Field, Reader]:
        found: dict[Field, Reader] = {}
        for ending in sample.members:
            if is_codes(ending):
                continue
            variant, _, extension = ending.rpartition(".")
            if extension in self.extensions:
                field = Field.parse(":".join(filter(None, (self.extensions[extension], variant))))
                if field in found:
                    raise ValueError(f"two members are the field {field}")
                found[field] = partial(sample.read, ending)
        return found


def _fitting(samples: Samples, patterns: Sequence[str]) -> np.ndarray:
    """The numbers of the samples whose keys fit one of the patterns."""
    keys = map(samples.key, range(len(samples)))
    fitting = [number for number, key in enumerate(keys) if any(fnmatchcase(key, pattern) for pattern in patterns)]
    return np.array(fitting, dtype=np.int64)


def _json(sample: Sample, member: str) -> Any:
    try:
        return json.loads(sample.read(member))
    except (ValueError, RecursionError) as error:
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


KEYS = ("shards", "fields", "keys", "weight", "shards_at_once")
"""What a dataset's config may hold."""


def check_datasets(configs: Mapping[str, Any]) -> None:
    """ValueError: what a config of a dataset lacks, or holds without meaning."""
    for name, config in configs.items():
        if not isinstance(config, Mapping):
            raise ValueError(f"data.datasets.{name}={config!r} is no dataset: write {{shards: 'PATTERN'}}")
        for key in config:
            if key not in KEYS:
                raise ValueError(f"data.datasets.{name} has an unknown {key!r}: {did_you_mean(str(key), KEYS)}")
        if not config.get("shards"):
            raise ValueError(f"data.datasets.{name} names no shards: give a pattern, shards: '{name}/{{split}}-*.tar'")


def open_datasets(
    datasets: Mapping[str, Mapping[str, Any]],
    modalities: Mapping[str, Modality | type[Modality]],
    *,
    root: str = ".",
    split: str = "train",
) -> dict[str, Dataset]:
    """Datasets from their configs ``{name: {"shards": "emoji/{split}-*.tar", "fields": …, "keys": …, "weight": …}}``.

    Of a dataset's shards, see `shards_of`. A dataset without shards of a split is left out; if that leaves none, a
    ValueError says so. So it does where the cache cannot hold what is read of all of them at once.
    """
    if not storage.is_remote(root) and not Path(root).is_dir():
        raise ValueError(
            f"there is no folder {root!r} of shards: give data.root, or build the starter: anyxform data starter {root}"
        )
    check_datasets(datasets)
    owners = extensions_of(modalities)
    opened = {}
    for name, config in datasets.items():
        if shards := shards_of(config, root, split):
            opened[name] = Dataset(
                name,
                shards,
                extensions=owners,
                fields=config.get("fields"),
                keys=_patterns(config.get("keys") or ()),
                shards_at_once=config.get("shards_at_once"),
            )
    if not opened:
        raise ValueError(f"no dataset has shards of the split {split!r} under {root!r}: looked for {list(datasets)}")
    for name, dataset in opened.items():
        check_cache({name: dataset})
    return opened


def check_cache(datasets: Mapping[str, Dataset]) -> None:
    """ValueError: what is read at once of all of them does not fit into the cache: it would be fetched ever again."""
    remote = {name: it for name, it in datasets.items() if it.cached}
    shards = {table.shard for it in remote.values() for table in it.samples.shards if table.shard.remote}
    needed = min(sum(it.cached for it in remote.values()), sum(shard.size for shard in shards))
    if needed > cache_bound():
        each = ", ".join(f"{name} {it.shards_at_once} + 1" for name, it in remote.items())
        raise ValueError(
            f"shards that are read at once ({each}) take {needed / 1e9:.1f} GB, more than ANYXFORM_CACHE_GB allows: "
            "give more, or a smaller shards_at_once"
        )


def _patterns(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def shards_of(config: Mapping[str, Any], root: str, split: str) -> list[str]:
    """The shards of a dataset's split, by the patterns of its config: paths or URLs, none if it has none of the split.

    ``{split}`` in a pattern stands for `split`; a pattern that is no URL is below `root`, which may be one. ValueError:
    some of the shards that braces write out are missing.
    """
    patterns = _patterns(config["shards"])
    found: list[str] = []
    for pattern in (p.replace("{split}", split) for p in patterns):
        below = f"{root.rstrip('/')}/{pattern}" if storage.is_remote(root) else str(Path(root) / pattern)
        names = [name for name in storage.expand(pattern if "://" in pattern else below) if not is_index(name)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            missing = [name for name, there in zip(names, pool.map(storage.exists, names)) if not there]
        if len(missing) < len(names) and missing:
            raise ValueError(f"{missing[0]} is missing, and {len(missing) - 1} more of {len(names)} in {pattern!r}")
        found += [] if missing else names
    return found


def field_values(data: Mapping[str, Any], modality: str, split: str = "train") -> Iterator[bytes]:
    """The bytes of every value of one modality in a data config's shards, duplicates left out, to fit a tokenizer."""
    seen = set[int]()
    for dataset in open_datasets(data["datasets"], registry(), root=data["root"], split=split).values():
        for fields in dataset.readable():
            for field, read in fields.items():
                if field.modality == modality and (key := hash(value := read())) not in seen:
                    seen.add(key)
                    yield value
