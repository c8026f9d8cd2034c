"""Open shards. A remote one is fetched whole into a cache on disk, which the processes of a machine share.

ANYXFORM_CACHE is its folder (default ~/.cache/anyxform), ANYXFORM_CACHE_GB the most that it takes (default 50): what
was used longest ago goes first. A file appears whole or not at all, and one process fetches what several wait for.
"""

import fcntl
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock

from anyxform.storage import Shard, counts, stream

MOST_OPEN = 256
TOUCH_EVERY = 10.0
"""Seconds after which a file that is read says so to the cache."""


def cache_folder() -> Path:
    """Where shards and indices are kept."""
    return Path(os.environ.get("ANYXFORM_CACHE") or "~/.cache/anyxform").expanduser()


def cache_bound() -> int:
    """The most bytes that fetched shards may take."""
    text = os.environ.get("ANYXFORM_CACHE_GB") or "50"
    try:
        return int(float(text) * 1e9)
    except ValueError as error:
        raise ValueError(f"ANYXFORM_CACHE_GB={text} is not a number of gigabytes") from error


def read(shard: Shard, offset: int, size: int) -> bytes:
    """Bytes of a shard, fewer where it ends. OSError: it cannot be fetched."""
    try:
        file = _files(shard)  # held, so that no other thread closes it
    except ValueError as error:  # it was there when it was indexed: its samples are not broken
        raise OSError(str(error)) from error
    return os.pread(file.fileno(), size, offset)


class _Files:
    """Files that are open, each process its own; those used longest ago are closed."""

    def __init__(self) -> None:
        self._open: OrderedDict[Shard, tuple[FileIO, float | None]] = OrderedDict()
        self._lock = Lock()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._open, self._lock = OrderedDict(), Lock()

    def __call__(self, shard: Shard) -> FileIO:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                if found[1] is None:
                    return found[0]
        now = time.monotonic()
        file, touched = found or (opened(shard), now if shard.remote else None)
        if touched is not None and now - touched > TOUCH_EVERY:
            with suppress(OSError):  # that it is in use shall be seen, if it can be
                os.utime(file.fileno())
            touched = now
        with self._lock:
            self._open[shard] = file, touched
            if found is None:
                self._close(shard.remote)
        return file

    def _close(self, remote: bool) -> None:
        """Those that are too many, and those that the cache has dropped: only now is their place on disk free."""
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        if remote:
            for shard, (file, touched) in list(self._open.items()):
                if touched is not None and not os.fstat(file.fileno()).st_nlink:
                    del self._open[shard]


def opened(shard: Shard) -> FileIO:
    """A shard's file; a remote one is fetched. `Missing`, a ValueError: it is gone; see `fetch` for others."""
    while shard.remote:
        with suppress(FileNotFoundError):  # another process made room just now
            return FileIO(fetch(shard))
    return FileIO(shard.name)


_files = _Files()


def fetch(shard: Shard) -> Path:
    """The whole of a remote shard as a file in the cache, which may drop it as soon as this returns: see `opened`.

    ValueError: the cache is smaller than it, or there is none any more (`Missing`). OSError: it cannot be fetched.
    """
    folder = cache_folder() / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{shard.name}\n{shard.size}\n{shard.version}".encode()).hexdigest()[:32]
    path = folder / f"{name}.tar"
    with suppress(FileNotFoundError):
        os.utime(path)
        if path.stat().st_size == shard.size:
            return path
        path.unlink()
    with _alone(path.with_suffix(".part")) as part:
        if path.exists():  # another process was faster
            part.unlink()
            return path
        _make_room(folder, shard, part)
        with open(part, "r+b") as file:
            for data in stream(shard):
                file.write(data)
        part.replace(path)
        counts["shards"] += 1
    return path


@contextmanager
def _alone(part: Path) -> Iterator[Path]:
    """Hold a file that no other process holds, and that stands where it is named."""
    while True:
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == part.stat().st_ino:
                    yield part
                    return


def _make_room(folder: Path, shard: Shard, part: Path) -> None:
    """Drop what was used longest ago, and take the place of a shard by giving its file its size."""
    bound = cache_bound()
    if shard.size > bound:
        raise ValueError(f"{shard} has {shard.size:,} bytes, more than ANYXFORM_CACHE_GB lets {folder} hold")
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.truncate(part, 0)
        os.truncate(part, shard.size)
        total, kept = sum(_taken(other) for other in folder.glob("*.part")), []
        for path in folder.glob("*.tar"):
            found = path.stat()
            kept.append((found.st_mtime, found.st_size, path))
            total += found.st_size
        for _, size, path in sorted(kept):
            if total <= bound:
                break
            path.unlink()
            total -= size


def _taken(part: Path) -> int:
    """The bytes of a file that is being fetched; it is removed if the process that did so is gone."""
    try:
        with open(part, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
            return 0
    except BlockingIOError:
        return size
    except FileNotFoundError:
        return 0
