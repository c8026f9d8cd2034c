"""From a source to shards: every sample has its split and its shard before the first is written, so a build that was
cut off goes on where it stopped, whatever the number of processes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from anyxform.build.sources import Entry, Source
from anyxform.shard_index import name_beside, write_beside
from anyxform.shards import index
from anyxform.storage import stat

RECORD = "build.json"


@dataclass(frozen=True)
class Part:
    """A shard that is to be: its file's name and its samples."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Another one where anything is to be written that is not the same."""
        about = [(entry.key, entry.size, repr(entry.place)) for entry in self.entries]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def share(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def plan(
    entries: Iterable[Entry], *, val: float = 0.05, test: float = 0.05, samples: int = 10_000, size: int = 500_000_000
) -> list[Part]:
    """The shards of each split, of at most so many samples and about so many bytes, shuffled by the keys' hashes.

    Splits are those of the source if it has any, else shares by the hash of the group. ValueError: shares that are
    none, two of one key, one without a split where others have one.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ValueError(f"shares val={val:g} and test={test:g} are not possible: together they must be below 1")
    if samples < 1 or size < 1:
        raise ValueError("a shard must have room for a sample")
    found = sorted(entries, key=lambda entry: share(entry.key))
    for one, other in pairwise(found):
        if one.key == other.key:
            raise ValueError(f"two samples have the key {one.key!r}: give --key, a column in which each is another")
    own = any(entry.split for entry in found)
    lost = next((entry.key for entry in found if own and not entry.split), None)
    if lost is not None:
        raise ValueError(f"{lost!r} is in no split of train, val and test, and others are: build from those alone")
    splits: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    for entry in found:
        splits[entry.split if own else _split(entry.group, val, test)].append(entry)
    return [part for split, some in splits.items() for part in _parts(split, some, samples, size)]


def _split(group: str, val: float, test: float) -> str:
    place = share(f"split {group}")
    return "val" if place < val else "test" if place < val + test else "train"


def _parts(split: str, entries: Sequence[Entry], samples: int, size: int) -> Iterator[Part]:
    shard: list[Entry] = []
    number = total = 0
    for entry in entries:
        if shard and (len(shard) == samples or total + entry.size > size):
            yield Part(f"{split}-{number:06d}.tar", tuple(shard))
            shard, number, total = [], number + 1, 0
        shard.append(entry)
        total += entry.size
    if shard:
        yield Part(f"{split}-{number:06d}.tar", tuple(shard))


def begin(out: Path, parts: Sequence[Part], again: bool = False) -> list[Part]:
    """The parts that are not there yet; with `again`, all. ValueError: the folder holds shards of another plan."""
    record = {"shards": {part.name: part.digest for part in parts}}
    path = out / RECORD
    there = sorted(out.glob("*.tar"))
    known = json.loads(path.read_text()) if path.is_file() else {}
    if (known or there) and known != record and not again:
        raise ValueError(
            f"{out} holds shards of another source, of other options or of a source that has changed since: give "
            "another folder, or --again (again=true) to write all anew"
        )
    if again:
        for old in there:
            for file in (old, Path(name_beside(str(old))), _left_out_path(old)):
                file.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.tar.*.tmp"):  # of a build that was killed
        old.unlink()
    path.write_text(json.dumps(record, indent=1) + "\n")
    return [part for part in parts if not Path(name_beside(str(out / part.name))).is_file()]


def write(part: Part, source: Source, out: Path) -> int:
    """Write a shard and its index; how many samples it has to do with. What cannot be read is left out by name."""
    path = out / part.name
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    left_out = []
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry in part.entries:
            try:
                members = source.read(entry.place)
                if not members:
                    raise ValueError("it has no members")
            except (ValueError, OSError) as error:
                left_out.append(f"{entry.key}: {error}\n")
                continue
            for ending, data in sorted(members.items()):
                info = tarfile.TarInfo(f"{entry.key}.{ending}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    if left_out:
        _left_out_path(path).write_text("".join(left_out), encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
    write_beside(stat(path), index(path, contents=True))  # last: with it the shard is done
    return len(part.entries)


def left_out(out: Path) -> list[str]:
    """What was left out of the shards in a folder, and why, a line each."""
    return [line for path in sorted(out.glob("*.left-out.txt")) for line in path.read_text("utf-8").splitlines()]


def _left_out_path(shard: Path) -> Path:
    return shard.with_suffix(".left-out.txt")
