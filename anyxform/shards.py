"""Shards: plain webdataset tars, read through an index of their members' offsets.

webdataset's streaming reader loses every sample behind a damaged header without a word, and its own indexed reader,
wids, wants a JSON description made beforehand and reads nothing without it. So the headers are walked here once: damage
is named, and reading goes on at the next whole header.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path

BLOCK = 512
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
_PAX_PATH = re.compile(rb"^\d+ path=(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: where each member's bytes are, by its ending (``fr.flac`` of ``KEY.fr.flac``)."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]

    def read(self, ending: str) -> bytes:
        """A member's bytes."""
        offset, size = self.members[ending]
        file = _open(self.shard, os.getpid())
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise ValueError(f"{self.shard}: {self.key}.{ending} is truncated ({len(data)} of {size} bytes)")
        return data


@dataclass
class Index:
    """The samples of a shard, and what is wrong with it, one line each."""

    samples: list[Sample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


@lru_cache(maxsize=256)
def _open(shard: Path, process: int) -> FileIO:
    """An open file, closed when it is forgotten; each process has its own."""
    return FileIO(shard)


def index(shard: Path) -> Index:
    """Walk the headers of a shard. No file, or one that is no tar, is a ValueError; other damage is in the result."""
    if not shard.is_file():
        raise ValueError(f"there is no shard {shard}: see data.root and the pattern of the dataset's shards")
    found, seen = Index(), set[str]()
    for name, offset, size in _members(shard, found.damage):
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        key, ending = folder + slash + stem, ending.lower()
        if not dot or not stem:
            continue  # not a member of a sample, to webdataset neither
        if not found.samples or found.samples[-1].key != key:
            if key in seen:
                found.damage.append(f"{shard}: the members of {key!r} do not stand together, or the key is used twice")
                continue
            seen.add(key)
            found.samples.append(Sample(shard, key, {}))
        if ending in found.samples[-1].members:
            found.damage.append(f"{shard}: {name!r} is there twice")
            continue
        found.samples[-1].members[ending] = (offset, size)
    return found


def _members(shard: Path, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file whose header is whole; see POSIX ustar, pax and GNU long names."""
    length = shard.stat().st_size
    if length < BLOCK:
        raise ValueError(f"{shard} is not a tar: it has {length} bytes, less than one header")
    with open(shard, "rb") as file:
        position, long_name, broken, ended = 0, "", False, False
        while position + BLOCK <= length:
            file.seek(position)
            header = file.read(BLOCK)
            ended = not header.strip(b"\0")
            if ended:
                position += BLOCK
                continue
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                if position == 0:
                    raise ValueError(f"{shard} is not a tar: {error}") from error
                if not broken:
                    damage.append(
                        f"{shard}: broken header at byte {position}: samples are lost up to the next whole one"
                    )
                broken, long_name = True, ""
                position += BLOCK
                continue
            broken = False
            data, size = position + BLOCK, info.size
            if info.type in (_LONG_NAME, _PAX):
                file.seek(data)
                long_name = _long_name(info.type, file.read(size))
            else:
                name, long_name = long_name or info.name, ""
                if data + size > length:
                    damage.append(f"{shard}: {name!r} is truncated: {length - data} of {size} bytes are there")
                    return
                if info.type in _FILES:
                    yield name, data, size
            position = data + -(-size // BLOCK) * BLOCK
        if position < length:
            damage.append(f"{shard}: {length - position} bytes at its end are no tar")
        elif not ended:
            damage.append(f"{shard} does not end as a tar does: samples may be missing")


def _long_name(kind: bytes, content: bytes) -> str:
    """The name that GNU writes as it is, and pax as one of its records ``LENGTH KEY=VALUE``."""
    found = _PAX_PATH.search(content) if kind == _PAX else None
    name = found[1] if found else b"" if kind == _PAX else content.rstrip(b"\0")
    return name.decode("utf-8", "surrogateescape")
