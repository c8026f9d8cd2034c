"""What shards can be built from. A source first lists its samples, then reads each, in any process."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Protocol

from anyxform import storage
from anyxform.field import Field, did_you_mean
from anyxform.shard_index import is_index, open_index
from anyxform.shard_samples import Sample, Samples

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""Names under which datasets keep their splits, and ours."""


@dataclass(frozen=True)
class Entry:
    """A sample that is to be written.

    `group` decides its split unless `split`, the one that it has in its source, does; `place` is what reads it.
    """

    key: str
    group: str
    place: Any
    size: int = 0
    split: str = ""


@dataclass(frozen=True)
class Kind:
    """What a modality's values are in a source: its file endings, and whether a text may be a value."""

    extensions: tuple[str, ...]
    literal: bool


class Source(Protocol):
    """Where samples come from. It is small, as it goes to every process."""

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        """Its samples, in a fixed order; what is no sample is said in `left_out`."""

    def read(self, place: Any) -> dict[str, bytes]:
        """The members of a sample by their endings. ValueError, OSError: it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """Files that share a path up to the first dot of their names: ``fish/01.jpg`` and ``fish/01.en.txt``."""

    root: Path
    extensions: frozenset[str]

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        found: dict[str, list[tuple[str, Path, int, int]]] = {}
        for parent, folders, names in os.walk(self.root, onerror=lambda error: left_out.append(str(error))):
            folders.sort()
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(parent) / name
                stem, _, ending = name.partition(".")
                if ending.lower().rpartition(".")[2] not in self.extensions | {"json"}:
                    left_out.append(f"{path}: no modality reads .{ending}")
                    continue
                try:
                    info = path.stat()
                except OSError as error:  # a link to nothing
                    left_out.append(str(error))
                    continue
                key = (path.parent / stem).relative_to(self.root).as_posix()
                found.setdefault(key, []).append((ending.lower(), path, info.st_size, info.st_mtime_ns))
        for key, files in sorted(found.items()):
            split = SPLITS.get(key.split("/")[0].lower(), "") if "/" in key else ""
            yield Entry(key, key, files, sum(size for _, _, size, _ in files), split)

    def read(self, place: Sequence[tuple[str, Path, int, int]]) -> dict[str, bytes]:
        return {ending: path.read_bytes() for ending, path, _, _ in place}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are which fields; and, if any, the key, what decides the split, and the split itself."""

    fields: Mapping[str, str]
    kinds: Mapping[str, Kind]
    key: str = ""
    group: str = ""
    split: str = ""

    def check(self, columns: Sequence[str], table: Path) -> None:
        """ValueError: a column that there is not, or no field at all."""
        if not self.fields:
            raise ValueError(
                f"{table} has the columns {', '.join(columns)}: say what they are, as --field image=COLUMN"
            )
        for name in filter(None, (*self.fields.values(), self.key, self.group, self.split)):
            if name.split(".")[0] not in columns and name not in columns:
                raise ValueError(f"{table} has no column {name!r}: {did_you_mean(name, list(columns))}")

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Each field's value, if the row has one."""
        found = {name: _value(row, column) for name, column in self.fields.items()}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def paths(self, values: Mapping[str, Any], folder: Path) -> list[Path]:
        """The files that values stand for."""
        return [
            folder / value
            for name, value in values.items()
            if isinstance(value, str) and not self.kinds[Field.parse(name).modality].literal
        ]

    def entry(self, row: Mapping[str, Any], number: int, place: Any, size: int = 0, split: str = "") -> Entry:
        key = re.sub(r"[./\\\s]+", "_", str(_value(row, self.key))) if self.key else f"{number:09d}"
        group = str(_value(row, self.group)) if self.group else key
        if self.split:
            split = SPLITS.get(str(_value(row, self.split)).lower(), "")
        return Entry(key, group, place, size, split)

    def members(self, values: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
        """Texts are values themselves where the modality takes texts; else they are paths below `folder`."""
        found = {}
        for name, value in values.items():
            wanted = Field.parse(name)
            kind = self.kinds[wanted.modality]
            extension, data = kind.extensions[0], b""
            if isinstance(value, Mapping) and value.keys() & {"path", "bytes"}:  # Hugging Face's pictures, recordings
                path, data = value.get("path") or "", value.get("bytes") or b""
                if not isinstance(path, str) or not isinstance(data, bytes):
                    raise ValueError(f"{name}: {value!r:.80} holds no bytes, nor the path of a file")
                extension = _extension(path, kind) or extension
                if not data and extension != _extension(path, kind):
                    raise ValueError(f"{name}: {path!r} is no file of {wanted.modality} ({', '.join(kind.extensions)})")
                data = data or (folder / path).read_bytes()
            elif isinstance(value, bytes):
                data = value
            elif not isinstance(value, str | int | float):
                raise ValueError(f"{name}: {value!r:.80} is no single value: give a column that holds one in each row")
            elif kind.literal:
                data = str(value).encode()
            else:
                extension = _extension(str(value), kind)
                if not extension:
                    raise ValueError(
                        f"{name}: {value!r} is no file of {wanted.modality} ({', '.join(kind.extensions)})"
                    )
                data = (folder / str(value)).read_bytes()
            found[".".join(filter(None, (wanted.variant, extension)))] = data
        return found


def _value(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, or that of a place in one, as ``text.en``."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _extension(path: str, kind: Kind) -> str:
    ending = path.rpartition(".")[2].lower()
    return ending if ending in kind.extensions else ""


def _state(path: Path) -> tuple[str, int, int]:
    """A file, its size and its time, by which a build that goes on tells whether it has changed; 0: it is not there."""
    try:
        info = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), info.st_size, info.st_mtime_ns


@dataclass(frozen=True)
class Table:
    """A CSV, TSV or JSONL file; paths in it are relative to its folder."""

    path: Path
    columns: Columns
    endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".jsonl", ".ndjson")

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        seen: dict[str, None] = {}
        for number, row in self._rows(left_out):
            seen |= dict.fromkeys(row)
            values = self.columns.values(row)
            files = [_state(path) for path in self.columns.paths(values, self.path.parent)]
            size = sum(size for _, size, _ in files) + sum(len(it) for it in values.values() if isinstance(it, str))
            yield self.columns.entry(row, number, (values, files), size)
        self.columns.check(list(seen), self.path)  # a row of JSON may lack any

    def read(self, place: tuple[Mapping[str, Any], Any]) -> dict[str, bytes]:
        return self.columns.members(place[0], self.path.parent)

    def _rows(self, left_out: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            if self.path.suffix in (".csv", ".tsv"):
                reader = csv.DictReader(file, delimiter="\t" if self.path.suffix == ".tsv" else ",", strict=True)
                for number in count():
                    try:
                        row = next(reader)
                    except StopIteration:
                        return
                    except csv.Error as error:  # it goes on with the next line
                        left_out.append(f"{self.path}: line {reader.line_num + 1} is broken: {error}")
                        continue
                    if None in row or None in row.values():
                        left_out.append(
                            f"{self.path}: row {number + 1} has another number of columns than the first line"
                        )
                    else:
                        yield number, row
            for number, line in enumerate(file):
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("it is no object")
                    yield number, row
                except ValueError as error:
                    if line.strip():
                        left_out.append(f"{self.path}: line {number + 1} is broken: {error}")


@dataclass(frozen=True)
class Arrow:
    """A dataset that Hugging Face's `save_to_disk` wrote, or several as one dictionary of splits."""

    root: Path
    columns: Columns

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        number, light = 0, [c for c in (self.columns.key, self.columns.group, self.columns.split) if c]
        fields = tuple(self.columns.fields.items())
        for path in _arrow_files(self.root):
            table = _arrow(path)
            self.columns.check(table.column_names, path)
            state = _state(path)
            size = state[1] // max(1, len(table))
            split = SPLITS.get(path.parent.name.lower(), "") if path.parent != self.root else ""
            small = table.select(list(dict.fromkeys(c.split(".")[0] for c in light)))
            for place in range(len(table)):
                row = small.slice(place, 1).to_pylist()[0] if light else {}
                yield self.columns.entry(row, number, (path, place, state, fields), size, split)
                number += 1

    def read(self, place: tuple[Path, int, Any, Any]) -> dict[str, bytes]:
        path, number, *_ = place
        return self.columns.members(self.columns.values(_arrow(path).slice(number, 1).to_pylist()[0]), self.root)


def _arrow_files(root: Path) -> list[Path]:
    """Those of the datasets below a folder, without the caches that the library writes beside them."""
    found: list[Path] = []
    for state in sorted(root.rglob("state.json")):
        files = json.loads(state.read_text(encoding="utf-8")).get("_data_files") or []
        found += [state.parent / file["filename"] for file in files]
    return found or sorted(path for path in root.rglob("*.arrow") if not path.name.startswith(("cache-", "tmp")))


@lru_cache(maxsize=64)
def _arrow(path: Path) -> Any:
    """A file's table, mapped into memory, not read."""
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow to be read: pip install 'anyxform[hf]'") from error
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no dataset of Hugging Face: {error}") from error


@dataclass(frozen=True)
class Shards:
    """Existing webdatasets, here or remote."""

    names: tuple[str, ...]

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        tables = []
        for name in self.names:
            found = open_index(name)
            left_out += found.damage
            if isinstance(found.samples, Samples):
                tables.append(found.samples)
        keys = [table.key(number) for table in tables for number in range(len(table))]
        twice = len(set(keys)) < len(keys)  # each shard may have counted from 0
        for table in tables:
            stem = table.shard.name.partition("?")[0].rpartition("/")[2].removesuffix(".tar")
            split = SPLITS.get(re.split(r"[^a-z]", stem.lower())[0], "")
            for sample in table:
                key = f"{stem}_{sample.key}" if twice else sample.key
                yield Entry(key, key, sample, sum(member.size for member in sample.members.values()), split)

    def read(self, place: Sample) -> dict[str, bytes]:
        return {ending: place.read(ending) for ending in place.members}


@dataclass(frozen=True)
class Options:
    """What a source is told: columns of tables, and which files a modality reads."""

    kinds: Mapping[str, Kind]
    fields: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    group: str = ""
    split: str = ""


def open_source(name: str, options: Options) -> Source:
    """The source that a path, a URL or a pattern is. ValueError: it is none."""
    path = Path(name)
    for given in options.fields:
        modality = Field.parse(given).modality
        if modality not in options.kinds:
            raise ValueError(
                f"--field {given}: no modality is called {modality!r}: {did_you_mean(modality, list(options.kinds))}"
            )
    columns = Columns(options.fields, options.kinds, options.key, options.group, options.split)
    if path.is_file() and path.suffix in Table.endings:
        return Table(path, columns)
    if path.is_dir() and next(path.rglob("*.arrow"), None):
        return Arrow(path, columns)
    if options.fields or options.key or options.group or options.split:
        raise ValueError(f"{name} is no table: --field, --key, --group and --split are for CSV, JSONL and Arrow")
    if path.is_dir() and not next(path.glob("*.tar"), None):
        return Folder(path, frozenset(ending for kind in options.kinds.values() for ending in kind.extensions))
    names = storage.expand(f"{name}/*.tar" if path.is_dir() else name)
    shards = tuple(each for each in names if not is_index(each) and each.partition("?")[0].endswith(".tar"))
    if not shards:
        raise ValueError(f"{name} is no folder, no CSV, TSV, JSONL, no shard and no pattern of shards that are there")
    return Shards(shards)
