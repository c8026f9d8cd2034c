"""Resident memory while many samples are read: of the process that trains and of those that read for it.

    python -m benchmarks.memory [samples] [workers] [texts | all]

The starter's texts (its prompts and names), packed into rows as training does, several times over; or all of its
datasets, with pictures and recordings decoded, augmented and made to codes. These are not kept, as a process does up to
a bound (docs/data.md), for what grew otherwise would not be seen. Every ten per cent the memory of all processes is
printed. Flat is: no more at the end than after the first 20 %, by 3 %; the slope is that of the last 80 %.
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
    """MB of this process and of all that come from it, private and shared, as the kernel counts them."""
    parents, sizes = dict[int, int](), dict[int, int]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                size = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)], sizes[int(folder.name)] = parent, size

    def is_ours(process: int) -> bool:  # workers are forked by a process of their own, which this one has started
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return sum(size for process, size in sizes.items() if is_ours(process)) / 1e6


def texts(workers: int) -> Rows:
    """Rows of texts alone."""
    config = compose("train", ["data=starter"])["data"]
    found = {"text": starter.modalities()["text"]}
    chosen = {name: config["datasets"][name] for name in NAMES}
    datasets = open_datasets(chosen, found, root=config["root"])
    ids = {name: number for number, name in enumerate(condition_names(datasets, found))}
    return Rows(datasets, found, ids, directions={"text>text": 1.0}, num_workers=workers)


def everything(workers: int) -> Rows:
    """Rows of all datasets; pools are small, so that memory is seen often."""
    rows, _ = starter.rows(starter.modalities(), num_workers=workers, pool=1024)
    rows.examples.codes.keep = 0
    return rows


def main(samples: str = "200_000", workers: str = "1", kind: str = "texts") -> None:
    total = int(samples)
    rows = {"texts": texts, "all": everything}[kind](int(workers))
    measured: list[tuple[int, float]] = []
    for _ in rows.from_position():
        if rows.counts.samples >= (len(measured) + 1) * total / 10:
            measured.append((rows.counts.samples, resident()))
            print(f"{measured[-1][0]:,} samples: {measured[-1][1]:,.0f} MB", flush=True)
        if len(measured) == 10:
            break
    (first, before), (last, after) = measured[1], measured[-1]
    growth, slope = after / before - 1, 1000 * (after - before) / (last - first)
    print(f"after the first 20 %: {growth:+.1%}, {slope:+.2f} KB a sample, {'flat' if growth < 0.03 else 'NOT flat'}")
    print(json.dumps({"kind": kind, "measured": measured, "growth": growth, "slope_kb": slope, "workers": workers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
