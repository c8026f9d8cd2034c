"""Samples per second of the whole pipeline: targets' codes read from encoded shards against codes made on the fly.

    python -m benchmarks.encode

The starter's training shards are encoded first, by the command that users have. Both sides then make the same rows,
in one process on one core: first of samples that were not met before, then of the same ones again, whose codes are kept
in memory either way.
"""

import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from anyxform.cli import main as anyxform
from anyxform.rows import Rows
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

SAMPLES = 1024
PAIRS = 4


def main() -> None:
    torch.set_num_threads(1)
    before = calibration()
    found = starter.modalities()
    with TemporaryDirectory() as folder:
        seconds = encode(folder)
        print(f"encoding all training shards: {seconds:.0f} s, {size('data/starter'):.1f} MB → {size(folder):.1f} MB")

        def stream(root: str) -> Rows:
            return starter.rows(found, root, pool=SAMPLES)[0]

        def anew(root: str) -> Callable[[], float]:
            opened = [stream(root) for _ in range(PAIRS)]  # opening is not what is compared
            return lambda: made(opened.pop())

        def again(root: str) -> Callable[[], float]:
            rows = stream(root)
            made(rows)
            return lambda: made(rows)

        unit = "samples/s"
        results = [
            compare("codes not met before", anew(folder), anew(""), unit=unit, pairs=PAIRS, warmup=0),
            compare("codes kept in memory", again(folder), again(""), unit=unit, pairs=PAIRS, warmup=0),
        ]
    report(results, before, samples=SAMPLES)


def encode(folder: str) -> float:
    """Seconds that the command takes."""
    started = time.perf_counter()
    with redirect_stdout(StringIO()):
        assert anyxform(["data", "encode", "data=starter", "splits=[train]", f"out={folder}"]) == 0
    return time.perf_counter() - started


def size(root: str) -> float:
    """Megabytes of the training shards."""
    return sum(it.stat().st_size for it in Path(root).glob("*/train-*.tar")) / 1e6


def made(rows: Rows) -> float:
    """Make the first rows; how many samples they are of."""
    rows.pool(0)
    return SAMPLES


if __name__ == "__main__":
    main()
