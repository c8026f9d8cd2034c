"""Resident memory while many samples are read: of the process that trains and of those that read for it.

    python -m benchmarks.memory [samples] [workers]

The starter's texts (its prompts and names), packed into rows as training does, in several times over its epochs; every
ten per cent the memory of all processes is printed. Flat is: no more at the end than after the first 20 %, by 3 %.
"""

import json
import os
import sys
from pathlib import Path

from anyxform.cli.conf import compose
from anyxform.data import condition_names
from anyxform.dataset import open_datasets
from anyxform.rows import Rows
from benchmarks import starter

NAMES = ("prompts", "names")


def resident() -> float:
    """MB of this process and of those that it started, private and shared, as the kernel counts them."""
    own, total = os.getpid(), 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if own in (int(folder.name), parent):
                    total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:  # it has just ended
                continue
    return total / 1e6


def main(samples: int = 200_000, workers: int = 1) -> None:
    config = compose("train", ["data=starter"])["data"]
    found = {"text": starter.modalities()["text"]}
    chosen = {name: config["datasets"][name] for name in NAMES}
    datasets = open_datasets(chosen, found, root=config["root"])
    ids = {name: number for number, name in enumerate(condition_names(datasets, found))}
    rows = Rows(datasets, found, ids, directions={"text>text": 1.0}, num_workers=workers)
    measured: list[tuple[int, float]] = []
    for _ in rows.from_position():
        if rows.counts.samples >= (len(measured) + 1) * samples / 10:
            measured.append((rows.counts.samples, resident()))
            print(f"{measured[-1][0]:,} samples: {measured[-1][1]:,.0f} MB", flush=True)
        if len(measured) == 10:
            break
    growth = measured[-1][1] / measured[1][1] - 1
    print(f"after the first 20 %: {growth:+.1%}, {'flat' if growth < 0.03 else 'NOT flat'}")
    print(json.dumps({"measured": measured, "growth": growth, "workers": workers}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
