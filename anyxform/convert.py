"""Whole datasets: shards in, shards out. A run can be stopped at any moment and repeated: it goes on where it was.

    FOLDER/NAME.tar            the samples of the shard NAME.tar, with the same keys and one new member each
    FOLDER/failed/NAME.jsonl   those of its samples that could not be converted, if there are any
    FOLDER/failed.jsonl        those of all shards, by the shards' names
    FOLDER/run.json            what the folder is made with

A shard's file appears at once, when all of it is done. What is made of a sample depends on its shard's name, its number
there and the seed, so that neither interruptions nor the number of processes change a byte.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from webdataset import TarWriter

from anyxform.checkpoint import read_json, write_json
from anyxform.dataset import Dataset, extensions_of
from anyxform.field import Direction, Field
from anyxform.long import Job, Made, pooled
from anyxform.pipeline import Pipeline
from anyxform.sampling import sampling_of
from anyxform.shard_samples import Sample
from anyxform.storage import expand, is_remote, without_secrets

MOST_CLOSED = 3
"""Shards that cannot be opened, one after another, before none of them is expected to be."""
POOL = 16
"""Batches that are sorted by length together."""


@dataclass(frozen=True)
class Progress:
    """How much of a shard is done."""

    shard: str
    samples: int
    failed: int
    total: int


@dataclass(frozen=True)
class Conversion:
    """What is made of every sample, and how.

    Args:
        pipeline, target: the model, and the field to make.
        sources: the fields to make it from; one without a variant stands for the only one of its modality. None: the
            only field that the model reads.
        fields: further fields, in JSON members: see `anyxform.dataset.Dataset`.
        copy: whether the members that a sample has are written beside the new one.
        dtype: of the weights.
        seed, batch_size, options: of generation.
    """

    pipeline: Pipeline
    target: Field
    sources: tuple[Field, ...] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    copy: bool = False
    dtype: str = "fp32"
    seed: int = 0
    batch_size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """Of the new members: ``fr.txt``."""
        extensions = self.pipeline.modalities[self.target.modality].extensions
        return ".".join(filter(None, (self.target.variant, extensions[0] if extensions else "bin")))

    def settings(self) -> dict[str, Any]:
        """As plain values, to tell one conversion from another."""
        return {
            "to": str(self.target),
            "from": None if self.sources is None else "+".join(map(str, self.sources)),
            "fields": dict(self.fields),
            "copy": self.copy,
            "dtype": self.dtype,
            "seed": self.seed,
            "options": dict(self.options),
            "checkpoint": str(self.pipeline.path and self.pipeline.path.resolve()),
            "steps": self.pipeline.facts.get("facts", {}).get("steps"),
        }

    def open(self, shard: str) -> Dataset:
        """The samples of a shard. ValueError: there are none."""
        return Dataset(
            file_name(shard), [shard], extensions=extensions_of(self.pipeline.modalities), fields=self.fields
        )

    def job(self, dataset: Dataset, number: int) -> Job:
        """What is to be done for a sample.

        ValueError: it lacks the source, is broken, has the new member already, or the options are not for its source.
        """
        sample, found = dataset.samples[number], dataset.fields(number)
        if self.copy and self.ending in sample.members:
            raise ValueError(f"it has a .{self.ending} already")
        fields = choose(found, self.sources, self.target)
        self.pipeline.check_spelling(sampling_of(self.options), fields[0].modality, self.target.modality)
        values = [self.pipeline.modalities[it.modality].load(found[it]()) for it in fields]
        seed = self.seed + (crc32(dataset.name.encode()) << 16) + number
        return self.pipeline.job(Direction(fields, self.target), values, seed)


def choose(found: Iterable[Field], wanted: Sequence[Field] | None, target: Field) -> tuple[Field, ...]:
    """Which fields of a sample are the sources; a ValueError names those that there are."""
    found = [it for it in found if it != target]
    there = f"the sample holds {', '.join(map(str, found)) or 'nothing else that the model reads'}"
    if wanted is None:
        if len(found) != 1:
            raise ValueError(f"which field is the source is not clear: {there}: give one by --from")
        return (found[0],)
    chosen = []
    for name in wanted:
        fitting = [it for it in found if it == name] or [it for it in found if str(name) == it.modality]
        if len(fitting) != 1:
            raise ValueError(f"there is {'more than one' if fitting else 'no'} {name}: {there}")
        chosen += fitting
    return tuple(chosen)


def convert(
    conversion: Conversion, shards: Sequence[str], folder: Path, rank: int = 0, ranks: int = 1
) -> Iterator[Progress]:
    """Convert the shards that are not done yet, and list in failed.jsonl what failed in any that is.

    Of several processes, each does every `ranks`-th shard. ValueError, before anything is written: two shards have one
    name, the folder is of another conversion or of other shards of these names, or its source is not clear.
    """
    _prepare(conversion, shards, folder)
    try:
        for shard in shards[rank::ranks]:
            if not (folder / file_name(shard)).exists():
                yield from _convert_shard(conversion, shard, folder)
    finally:
        list_failures(folder)


def _prepare(conversion: Conversion, shards: Sequence[str], folder: Path) -> None:
    names = [file_name(shard) for shard in shards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several shards are called {twice[0]}: convert them into a folder each")
    if any(Path(shard).resolve().parent == folder.resolve() for shard in shards if not is_remote(shard)):
        raise ValueError(f"-o {folder} is where the shards are: give another folder")
    settings, record = conversion.settings(), folder / "run.json"
    origins = {file_name(shard): _origin(shard) for shard in shards}
    if record.exists():
        before = read_json(record)
        made_of = before.pop("shards", {})
        other = {key for key, value in before.items() if settings.get(key, value) != value}
        if other:
            raise ValueError(f"{folder} is of another conversion ({', '.join(sorted(other))}): give another folder")
        for name in sorted(origins.keys() & made_of.keys()):
            if origins[name] != made_of[name] and (folder / name).exists():
                raise ValueError(f"{folder / name} was made of {made_of[name]}: give another folder")
        origins = made_of | origins
    elif conversion.sources is None:
        _check_source(conversion, shards)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(record, lambda path: write_json(path, settings | {"shards": origins}))


def _origin(shard: str) -> str:
    return shard.partition("?")[0] if is_remote(shard) else str(Path(shard).resolve())


def _check_source(conversion: Conversion, shards: Sequence[str]) -> None:
    """ValueError: the first sample that can be read has several fields. OSError: so many shards cannot be opened."""
    closed = 0
    for shard in shards:
        try:
            fields = next(iter(conversion.open(shard).readable()))
        except ValueError:
            continue  # it will be listed
        except OSError:
            closed += 1
            if closed == MOST_CLOSED:  # the store is down, say, and each takes minutes
                raise
            continue
        choose(fields, None, conversion.target)
        return


def _convert_shard(conversion: Conversion, shard: str, folder: Path) -> Iterator[Progress]:
    try:
        dataset = conversion.open(shard)
    except (ValueError, OSError) as error:  # no shard appears: it is tried again when the run is repeated
        _write_failures(folder, shard, [_failure(shard, None, error)])
        yield Progress(shard, samples=0, failed=1, total=0)
        return
    failures = [_failure(shard, None, line) for line in dataset.damage]
    with _appearing(folder / file_name(shard)) as writer:
        for number, result in enumerate(_results(conversion, dataset)):
            if isinstance(result, Exception):
                failures.append(_failure(shard, dataset.samples[number].key, result))
            else:
                writer.write(result)
            yield Progress(shard, number + 1, len(failures), len(dataset))
        _write_failures(folder, shard, failures)


@contextmanager
def _appearing(path: Path) -> Iterator[TarWriter]:
    """A shard to write, which takes its name when all of it is on disk."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    owner = {"user": "anyxform", "group": "anyxform", "mode": 0o644}
    try:
        with open(temporary, "wb") as file:
            with TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT", **owner) as writer:
                yield writer
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _results(conversion: Conversion, dataset: Dataset) -> Iterator[dict[str, Any] | Exception]:
    """The members made of each sample, or why there are none."""
    samples = iter(dataset.samples)
    for pool in pooled(_jobs(conversion, dataset), POOL * conversion.batch_size):
        wanted = [job for job in pool if isinstance(job, Job)]
        made = iter(conversion.pipeline.perform(wanted, batch_size=conversion.batch_size, **conversion.options))
        for job, sample in zip(pool, samples):
            result: dict[str, Any] | Exception
            try:
                result = _members(conversion, sample, next(made)) if isinstance(job, Job) else job
            except (ValueError, OSError) as error:
                result = error
            yield result


def _jobs(conversion: Conversion, dataset: Dataset) -> Iterator[Job | Exception]:
    for number in range(len(dataset)):
        try:
            job = conversion.job(dataset, number)
        except (ValueError, OSError) as error:
            yield error
        else:
            yield job


def _members(conversion: Conversion, sample: Sample, made: Made) -> dict[str, Any]:
    copied = {ending: sample.read(ending) for ending in sample.members} if conversion.copy else {}
    data = conversion.pipeline.modalities[conversion.target.modality].save(made.value)
    return {"__key__": sample.key, **copied, conversion.ending: data}


def _failure(shard: str, key: str | None, error: Exception | str) -> dict[str, Any]:
    return {"shard": without_secrets(shard), "key": key, "error": without_secrets(" ".join(str(error).split()))}


def _write_failures(folder: Path, shard: str, failures: Sequence[Mapping[str, Any]]) -> None:
    """Before the shard itself appears, so that none is done whose failures are unknown."""
    path = folder / "failed" / f"{Path(file_name(shard)).stem}.jsonl"
    if failures:
        path.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(it, ensure_ascii=False) + "\n" for it in failures)
        _replace(path, partial(Path.write_text, data=lines, encoding="utf-8", errors="backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def list_failures(folder: Path) -> list[dict[str, Any]]:
    """Write failed.jsonl from the lists of the shards; none, if nothing failed.

    Several processes do this in one folder. Each looks again behind its own writing, so that the last one to write has
    seen everything.
    """
    path = folder / "failed.jsonl"
    while True:
        lines = "".join(map(_text, sorted((folder / "failed").glob("*.jsonl"))))
        if lines == _text(path):
            return [json.loads(line) for line in lines.split("\n") if line]
        if lines:
            _replace(path, partial(Path.write_text, data=lines, encoding="utf-8"))
        else:
            path.unlink(missing_ok=True)


def _text(path: Path) -> str:
    """What a file holds; nothing if there is none, as another process may have removed it just now."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that others may read meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    temporary.replace(path)


def shards_of(patterns: Sequence[str]) -> list[str]:
    """The shards that patterns such as ``shards-{000..127}.tar`` and ``data/*.tar`` stand for, in their order.

    ValueError: no file fits one of them.
    """
    found: list[str] = []
    for pattern in patterns:
        fitting = expand(pattern)
        missing = [name for name in fitting if not is_remote(name) and not Path(name).is_file()] or [pattern] * (
            not fitting
        )
        if missing:
            name = missing[0]
            raise ValueError(f"there is no shard {name}" + (f", of {pattern}" if name != pattern else ""))
        found += fitting
    return found


def file_name(shard: str) -> str:
    """The last part of a shard's path or URL."""
    return shard.rpartition("/")[2].partition("?")[0]
