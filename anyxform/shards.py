"""Shards: plain webdataset tars, read through an index of their members' offsets.

webdataset's streaming reader loses every sample behind a damaged header without a word, and its own indexed reader,
wids, wants a JSON description made beforehand and reads nothing without it. So the headers are walked here once: damage
is named, and reading goes on at the next whole header.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

BLOCK = 512
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX, _LONG_NAME, _LONG_LINK, _GLOBAL = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: where each member's bytes are, by its ending (``fr.flac`` of ``KEY.fr.flac``)."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]

    def read(self, ending: str) -> bytes:
        """A member's bytes."""
        offset, size = self.members[ending]
        data = os.pread(_descriptor(self.shard, os.getpid()), size, offset)
        if len(data) != size:
            raise ValueError(f"{self.shard}: {self.key}.{ending} is truncated ({len(data)} of {size} bytes)")
        return data


@dataclass
class Index:
    """The samples of a shard, and what is wrong with it, one line each."""

    samples: list[Sample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


@lru_cache(maxsize=256)
def _descriptor(shard: Path, process: int) -> int:
    """An open file; each process has its own."""
    return os.open(shard, os.O_RDONLY)


def index(shard: Path) -> Index:
    """Walk the headers of a shard. A file that is no tar at all is a ValueError; other damage is in the result."""
    found, seen = Index(), set[str]()
    for name, offset, size in _members(shard, found.damage):
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        key = folder + slash + stem
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
        found.samples[-1].members[ending.lower()] = (offset, size)
    return found


def _members(shard: Path, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file whose header is whole; see POSIX ustar, pax and GNU long names."""
    length = shard.stat().st_size
    with open(shard, "rb") as file:
        position, long_name, broken_at = 0, "", -1
        while position + BLOCK <= length:
            file.seek(position)
            header = file.read(BLOCK)
            if not header.strip(b"\0"):
                position += BLOCK
                continue
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                if position == 0:
                    raise ValueError(f"{shard} is not a tar: {error}") from error
                if broken_at < 0:
                    broken_at = position
                    damage.append(f"{shard}: broken header at byte {position}: samples are lost up to the next whole one")
                position += BLOCK
                continue
            broken_at = -1
            data, size = position + BLOCK, info.size
            if info.type in (_LONG_NAME, _PAX):
                file.seek(data)
                content = file.read(size)
                long_name = content.rstrip(b"\0").decode() if info.type == _LONG_NAME else _pax_path(content)
            elif info.type in _FILES:
                if data + size > length:
                    damage.append(f"{shard}: {info.name!r} is truncated: {length - data} of {size} bytes are there")
                    return
                yield long_name or info.name, data, size
                long_name = ""
            elif info.type not in (_LONG_LINK, _GLOBAL):
                long_name = ""
            position = data + -(-size // BLOCK) * BLOCK
        if position < length:
            damage.append(f"{shard}: {length - position} bytes at its end are no tar")


def _pax_path(content: bytes) -> str:
    """The ``path`` of a pax header's records ``LENGTH KEY=VALUE``."""
    while content:
        length, _, rest = content.partition(b" ")
        record, content = rest[: int(length) - len(length) - 2], content[int(length) :]
        if record.startswith(b"path="):
            return record.removeprefix(b"path=").decode()
    return ""
