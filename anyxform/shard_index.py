"""Indices of shards as files: beside the shard (``NAME.tar.index``, by `anyxform data index`) or in the cache.

An index fits a shard of its size that was not written since, or whose headers are where it has them. One in the cache
that does not fit is made anew; one beside the shard that does not is named as damage, and not used. Whatever an index
says, each read compares the header that it finds with the one that was indexed.
"""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyxform import shard_files, storage
from anyxform.shard_samples import BLOCK, Kind, Samples
from anyxform.shards import Index, index
from anyxform.storage import Shard, stat

FORMAT = 1
PAYS_FROM = 200
"""Samples from which an index of headers is worth a file in the cache."""
CONNECTIONS = 16
LOOKED_AT = 64
"""Headers that are compared before an index is trusted whose shard has another time, as after a copy."""
_ARRAYS = ("kind", "key_end", "offset", "size", "header", "content")


LARGEST = 2**32
"""Bytes that an index may unpack into."""


@dataclass(frozen=True)
class Stored:
    """An index and the shard of which it was made."""

    shard: Shard
    index: Index

    @property
    def read(self) -> bool:
        """Whether it has checksums of members and outlines of JSON."""
        samples = self.index.samples
        return isinstance(samples, Samples) and len(samples.arrays["content"]) == samples.num_members


def name_beside(shard: str) -> str:
    """The name of the index that lies beside a shard."""
    name, mark, query = shard.partition("?") if storage.is_remote(shard) else (shard, "", "")
    return f"{name}.index{mark}{query}"


def is_index(name: str) -> bool:
    """Whether a name is that of an index, which a pattern of shards may fit as well."""
    return name.partition("?")[0].endswith(".index")


def to_bytes(shard: Shard, found: Index) -> bytes:
    """An index as a file: arrays of numpy, and JSON."""
    samples = found.samples
    assert isinstance(samples, Samples)
    about = {
        "format": FORMAT, "size": shard.size, "version": shard.version, "kinds": samples.kinds,
        "damage": [line.removeprefix(shard.name) for line in found.damage],
    }  # fmt: skip
    parts = {"about": json.dumps(about).encode(), "keys": samples.keys}
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.frombuffer(data, dtype=np.uint8) for name, data in parts.items()}
    np.savez_compressed(buffer, **(arrays | samples.arrays))
    return buffer.getvalue()


def from_bytes(data: bytes, shard: Shard, source: str | Path) -> Stored:
    """Read such a file for a shard. ValueError, which names `source`: it is damaged or of another version."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(it.file_size for it in file.infolist()) > LARGEST:
                raise ValueError("it would unpack into too much")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        about = json.loads(parts["about"].tobytes())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}")
        made_of = Shard(shard.name, int(about["size"]), str(about["version"]))
        kinds = [Kind(tuple(endings), outline) for endings, outline in about["kinds"]]
        samples = Samples(shard, kinds, parts["keys"].tobytes(), {name: parts[name] for name in _ARRAYS})
        _check(samples, made_of.size)
        return Stored(made_of, Index(samples, [f"{shard}{line}" for line in about["damage"]]))
    except (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source} is no index to be read ({error}): remove it or run anyxform data index") from None


def _check(samples: Samples, size: int) -> None:
    """ValueError if the tables do not belong together."""
    arrays = samples.arrays
    ends = np.concatenate([[0], arrays["key_end"]])
    lengths = {len(arrays[name]) for name in ("offset", "size", "header")} | ({len(arrays["content"])} - {0})
    if lengths != {samples.num_members} or len(arrays["key_end"]) != len(samples) or ends[-1] != len(samples.keys):
        raise ValueError("its tables are of different lengths")
    inside = (arrays["offset"] >= BLOCK) & (arrays["offset"] <= size)
    inside &= (arrays["size"] >= 0) & (arrays["size"] <= size - arrays["offset"])
    if not inside.all() or (np.diff(ends) < 0).any():
        raise ValueError("it leads outside the shard")


def fits(stored: Stored, shard: Shard) -> bool:
    """Whether an index is of a shard as it is now."""
    if stored.shard.size != shard.size:
        return False
    if stored.shard.version == shard.version or shard.remote:
        return True
    samples = stored.index.samples
    numbers = {int(number) for number in np.linspace(0, len(samples) - 1, min(len(samples), LOOKED_AT))}
    members = [next(iter(samples[number].members.values())) for number in numbers]
    return all(zlib.crc32(shard_files.read(shard, it.offset - BLOCK, BLOCK)) == it.header for it in members)


def open_index(name: str | Path) -> Index:
    """The index of a shard: one in the cache or beside it, if it fits, else a new one. ValueError: no such shard."""
    shard = stat(name)
    kept = _kept(shard)
    if shard.remote and kept and kept.shard == shard:
        return kept.index
    beside = beside_of(shard)
    if beside and fits(beside, shard):
        if shard.remote:
            _keep(shard, beside.index)
        return beside.index
    if not shard.remote and kept and kept.shard == shard:
        found = kept.index
    else:
        try:
            found = index(shard, contents=shard.remote)
        except storage.Missing:
            raise
        except ValueError as error:  # no tar: that shall not hide the other shards
            found = Index(Samples.pack(shard, []), [str(error)])
        if shard.remote or len(found.samples) >= PAYS_FROM:
            _keep(shard, found)
    if beside:
        was, now = (f"{size:,} bytes" for size in (beside.shard.size, shard.size))
        told = f"it has {now} now" if was != now else "its headers are others now"
        line = f"{shard}: the index beside it was made of {was}, {told}: if so it should be, run anyxform data index"
        found = Index(found.samples, [*found.damage, line])
    return found


def open_indices(names: Sequence[str]) -> list[Index]:
    """The indices of shards, in order; those of remote ones several at once."""
    if not any(map(storage.is_remote, names)):
        return [open_index(name) for name in names]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(open_index, names))


def ensure(name: str, folder: Path | None = None, *, again: bool = False) -> tuple[Index, bool]:
    """The index of a shard with checksums, written if there is none that fits or `again`; and whether it was.

    It is written beside the shard, or into `folder`; without one, of a remote shard it is kept in the cache.
    """
    shard = stat(name)
    target = _place(shard) if shard.remote else Path(name_beside(shard.name))
    if folder:
        target = folder / name_beside(shard.name).partition("?")[0].rpartition("/")[2]
    if not again:
        stored = _read(target, shard)
        if shard.remote and not folder and (stored is None or stored.shard != shard):
            with suppress(ValueError):  # one that cannot be read is as none
                stored = beside_of(shard)
        if stored and stored.read and fits(stored, shard):
            return stored.index, False
    found = index(shard, contents=True)
    _write(target, to_bytes(shard, found))
    return found, True


def beside_of(shard: Shard) -> Stored | None:
    """The index beside a shard, if there is one, whether it fits or not. ValueError: it cannot be read."""
    name = name_beside(shard.name)
    try:
        data = storage.small(name) if shard.remote else Path(name).read_bytes()
    except (storage.Missing, FileNotFoundError):
        return None
    except PermissionError:
        if shard.remote:  # so do stores answer that do not want to say that there is none
            return None
        raise
    return from_bytes(data, shard, name)


def write_beside(shard: Shard, found: Index) -> None:
    """Write an index beside a local shard, whole or not at all."""
    _write(Path(name_beside(shard.name)), to_bytes(shard, found))


def _kept(shard: Shard) -> Stored | None:
    return _read(_place(shard), shard)


def _read(path: Path, shard: Shard) -> Stored | None:
    try:
        return from_bytes(path.read_bytes(), shard, path)
    except (OSError, ValueError):  # there is none, or of an earlier version, or damaged: one is made
        return None


def _keep(shard: Shard, found: Index) -> None:
    with suppress(OSError):  # a disk that is full or read-only: it is made again the next time
        _write(_place(shard), to_bytes(shard, found))


def _place(shard: Shard) -> Path:
    name = shard.name if shard.remote else str(Path(shard.name).resolve())
    return shard_files.cache_folder() / "indices" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.index"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
