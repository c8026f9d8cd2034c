"""Thousands of shards: seconds to index and to open them; and what reading in a shuffled order costs on this disk.

    python -m benchmarks.shards [folder]

The first shards are small and many, of two members a sample. The second are read as training reads them, shuffled as a
whole, and with `shards_at_once=8`, and one sample after another as they stand there: each time with nothing of them in
the page cache, and shuffled once more with all of it there. All are written to a temporary folder in `folder` (the disk
that is measured), 1.3 GB, and removed.
"""

import io
import json
import os
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from anyxform.cli import main as anyxform
from anyxform.data import near_shards
from anyxform.dataset import Dataset
from anyxform.order import Order

MANY, SAMPLES = 2_000, 50
LARGE, LARGE_SAMPLES, SIZE = 32, 4_000, 10_000
"""Shards, the samples of each, and the bytes of each of these."""
READS = 10_000
AT_ONCE = 8

_T = TypeVar("_T")


def write(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def opened(folder: Path, shards_at_once: int | None = None) -> Dataset:
    shards = sorted(folder.glob("*.tar"))
    return Dataset(folder.name, shards, extensions={"txt": "text"}, shards_at_once=shards_at_once)


def many(folder: Path) -> dict[str, float]:
    """Of many small shards: seconds to index and to open them, MB of the tables, seconds to open without indices."""
    for shard in range(MANY):
        keys = [f"{shard:05d}-{number:03d}" for number in range(SAMPLES)]
        write(folder / f"{shard:05d}.tar", ((f"{key}.{end}", b"{}") for key in keys for end in ("en.txt", "json")))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code, indexing = timed(lambda: anyxform(["data", "index", str(folder / "*.tar"), "--workers", "1"]))
    assert code == 0
    before = resident()
    dataset, opening = timed(lambda: opened(folder))
    assert len(dataset) == MANY * SAMPLES
    found = {"index_s": indexing, "open_s": opening, "tables_mb": resident() - before}
    for path in folder.glob("*.index"):
        path.unlink()
    return found | {"open_unindexed_s": timed(lambda: opened(folder))[1]}


def order(folder: Path) -> dict[str, float]:
    """Samples per second of large shards, by how they are shuffled and whether the page cache has them."""
    chance = random.Random(0)
    for shard in range(LARGE):
        samples = ((f"{shard:03d}-{number:05d}.en.txt", chance.randbytes(SIZE)) for number in range(LARGE_SAMPLES))
        write(folder / f"{shard:03d}.tar", samples)
    dataset, rates = opened(folder), {}
    shuffled = drawn(dataset)
    for name, numbers in (
        ("in_order", range(READS)), ("shards_at_once", drawn(opened(folder, AT_ONCE))), ("shuffled", shuffled)
    ):  # fmt: skip
        forget(folder)
        rates[name] = read(dataset, numbers)
    for path in folder.glob("*.tar"):
        path.read_bytes()
    return rates | {"shuffled_cached": read(dataset, shuffled)}


def drawn(dataset: Dataset) -> list[int]:
    """The first samples of an epoch."""
    places = Order({dataset.name: len(dataset)}, near=near_shards({dataset.name: dataset}))
    return [places[index].number for index in range(READS)]


def read(dataset: Dataset, numbers: Sequence[int]) -> float:
    """Samples read in a second."""
    _, seconds = timed(lambda: [dataset.samples[number].read("en.txt") for number in numbers])
    return len(numbers) / seconds


def forget(folder: Path) -> None:
    """Take the shards out of the page cache."""
    for path in folder.glob("*.tar"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(place: str | None = None) -> None:
    found = {}
    for measure in (many, order):
        with TemporaryDirectory(dir=place) as folder:
            found[measure.__name__] = measure(Path(folder))
            print(f"{measure.__name__}: {found[measure.__name__]}", flush=True)
    print(json.dumps({**found, "shards": MANY, "samples": MANY * SAMPLES, "reads": READS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
