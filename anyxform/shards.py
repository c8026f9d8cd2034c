"""Shards: plain webdataset tars, read through an index of their members' offsets.

webdataset's streaming reader loses every sample behind a damaged header without a word, and its own indexed reader,
wids, wants a JSON description made beforehand and reads nothing without it. So the headers are walked here once: damage
is named, and reading goes on at the next whole header.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyxform.shard_files import opened
from anyxform.shard_samples import BLOCK, Member, Sample, Samples, outline_of
from anyxform.storage import Shard, stat

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
_GZIP = b"\x1f\x8b"
_MAGIC, _MAGIC_AT = b"ustar", 257
_SOUGHT = 2**20
"""Bytes that are looked through at once."""
_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")


@dataclass
class Index:
    """The samples of a shard, and what is wrong with it, one line each."""

    samples: Sequence[Sample] = ()
    damage: list[str] = field(default_factory=list)


def index(shard: str | Path | Shard, *, contents: bool = False) -> Index:
    """Walk the headers of a shard; read its members too if `contents`, for their checksums and outlines.

    No file, or one that is no tar, is a ValueError; other damage is in the result. A remote shard is fetched.
    """
    shard = shard if isinstance(shard, Shard) else stat(shard)
    damage: list[str] = []
    with opened(shard) as file:
        samples = list(_samples(shard, file.fileno(), contents, damage))
    return Index(Samples.pack(shard, samples), damage)


def _samples(shard: Shard, file: int, contents: bool, damage: list[str]) -> Iterator[Sample]:
    members: dict[str, Member] = {}
    documents: dict[str, bytes] = {}
    last, seen = "", set[str]()

    def made() -> Sample:
        return Sample(shard, last, members, outline_of(documents) if contents else "")

    for name, member in _members(shard, file, damage):
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        key, ending = folder + slash + stem, ending.lower()
        if not dot or not stem:
            continue  # not a member of a sample, to webdataset neither
        if key != last:
            if key in seen:
                damage.append(f"{shard}: the members of {key!r} do not stand together, or the key is used twice")
                continue
            if seen:
                yield made()
            seen.add(key)
            last = key
            members, documents = {}, {}
        if ending in members:
            damage.append(f"{shard}: {name!r} is there twice")
            continue
        if contents:
            data = os.pread(file, member.size, member.offset)
            member = member._replace(content=zlib.crc32(data))
            if ending.rpartition(".")[2] == "json":
                documents[ending] = data
        members[ending] = member
    if seen:
        yield made()


def _members(shard: Shard, file: int, damage: list[str]) -> Iterator[tuple[str, Member]]:
    """Name and place of every regular file whose header is whole; see POSIX ustar, pax and GNU long names."""
    position, zeros, whole, broken = 0, 0, False, False
    said: dict[str, str] | None = {}  # of the next member, by a header of its own; None if that is broken
    while position + BLOCK <= shard.size:
        header = os.pread(file, BLOCK, position)
        if not header.strip(b"\0"):
            zeros += BLOCK
            position += BLOCK
            continue
        info = _header(header)
        if info is None:
            damage.append(f"{shard}: broken header at byte {position}: samples are lost up to the next whole one")
            position, said, zeros, broken = _next_header(file, position + 1, shard.size), {}, 0, True
            continue
        if zeros:
            damage.append(f"{shard}: {zeros} zero bytes before byte {position}: samples are lost, or tars were joined")
        whole, zeros, broken = True, 0, False
        data, size = position + BLOCK, int((said or {}).get("size", info.size))
        if data + size > shard.size:
            name = (said or {}).get("path") or info.name
            damage.append(f"{shard}: {name!r} is truncated: {shard.size - data} of {size} bytes are there")
            position, said, broken = _next_header(file, data, shard.size), {}, True
            continue
        if info.type in (_LONG_NAME, _PAX):
            said = _said(info.type, os.pread(file, size, data))
            if said is None:
                damage.append(f"{shard}: broken name at byte {data}: the next member is lost")
        elif info.type != tarfile.GNUTYPE_LONGLINK:
            if info.type in _FILES and said is not None:
                yield said.get("path") or info.name, Member(data, size, zlib.crc32(header))
            said = {}
        position = data + -(-size // BLOCK) * BLOCK
    if not whole and not zeros:
        start = os.pread(file, 2, 0)
        raise ValueError(
            f"{shard} is not a tar: {'it is compressed, unpack it' if start == _GZIP else 'it has no whole header'}"
        )
    if not broken:
        damage += _wrong_end(shard, shard.size - position, zeros)


def _wrong_end(shard: Shard, rest: int, zeros: int) -> list[str]:
    """What is wrong with a shard that ends with so many zero bytes and the rest of a block."""
    if rest > 0:
        return [f"{shard}: {rest} bytes at its end are no tar"]
    if not zeros:
        return [f"{shard} does not end as a tar does: samples may be missing"]
    if zeros > tarfile.RECORDSIZE + BLOCK:
        return [f"{shard} ends with {zeros} zero bytes, more than a tar does: samples may be missing"]
    return []


def _next_header(file: int, start: int, size: int) -> int:
    """Where the next whole header is: at any byte, as some may be lost or inserted. The file's size: there is none."""
    while start < size:
        part = os.pread(file, _SOUGHT, start)
        for found in re.finditer(re.escape(_MAGIC), part[_MAGIC_AT:]):
            block = os.pread(file, BLOCK, start + found.start())
            if len(block) == BLOCK and _header(block):
                return start + found.start()
        start += max(1, len(part) - _MAGIC_AT - len(_MAGIC) + 1)
    return size


def _header(block: bytes) -> tarfile.TarInfo | None:
    """What a header says; None if it is broken."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _said(kind: bytes, content: bytes) -> dict[str, str] | None:
    """What is said of the next member: a name as GNU writes it, or pax records ``LENGTH KEY=VALUE``; None if broken."""
    if kind == _LONG_NAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found, place = {}, 0
    while place < len(content):
        record = _RECORD.match(content, place)
        end = place + int(record[1]) if record else 0
        if not record or content[end - 1 : end] != b"\n" or not record.end() < end <= len(content):
            return None
        found[record[2].decode("utf-8", "replace")] = content[record.end() : end - 1].decode("utf-8", "surrogateescape")
        place = end
    return found if found.get("size", "0").isdecimal() else None
