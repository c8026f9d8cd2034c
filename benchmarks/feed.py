"""Whether the pipeline of data keeps up with the steps of a small model, on the starter's mixture.

    python -m benchmarks.feed [preset]

First what each does in a second, on one core and one after the other: the pipeline in one process, from shards to
packed rows with augmentation and the codes of targets, and a training step on the very rows (bf16, AdamW). Then a run
that reads by one worker process, as the starter's config has it: what share of its time it waits for data, its first
step not counted.
"""

import json
import sys
import time

import torch

from anyxform.optim import adamw
from anyxform.rows import Rows
from anyxform.sequence import Batch
from anyxform.train import TrainState, train, train_step
from benchmarks import starter

POOL = 1024
"""Samples of a pool: smaller than in a run, so that a short one goes through several."""
TIMED, WARMUP, STEPS = 12, 2, 40


def main(preset: str = "tiny") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    modalities = starter.modalities()
    stream, ids = starter.rows(modalities, pool=POOL)
    rows, made = timed_pools(stream)
    model = starter.model(preset, modalities, ids)
    taken = timed_steps(TrainState(model, adamw(model)), rows)
    print(f"the pipeline makes {made:,.0f} samples/s, a step of {preset} takes {taken:,.0f}: {made / taken:.1f} to 1")
    worker, _ = starter.rows(modalities, pool=POOL, num_workers=1)
    waited = waiting(TrainState(model, adamw(model)), worker)
    print(f"a run with one worker waits for data {waited:.2%} of its time, over {STEPS} steps")
    print(json.dumps({"preset": preset, "pipeline": made, "step": taken, "waited": waited, "torch": torch.__version__}))


def timed_pools(stream: Rows) -> tuple[list[Batch], float]:
    """The rows of two pools, none of whose targets were met before, and the samples that were read in a second."""
    started = time.perf_counter()
    pools = [stream.pool(number) for number in range(2)]
    seconds = time.perf_counter() - started
    return [row for rows, _ in pools for row in rows], sum(counts.samples for _, counts in pools) / seconds


def timed_steps(state: TrainState, rows: list[Batch]) -> float:
    """Samples that steps on these rows, one each, take in a second."""
    started = 0.0
    for number, row in enumerate(rows[: WARMUP + TIMED]):
        if number == WARMUP:
            started = time.perf_counter()
        train_step(state.model, state.optimizer, [row], bf16=True)
    return sum(len(row.keys) for row in rows[WARMUP : WARMUP + TIMED]) / (time.perf_counter() - started)


def waiting(state: TrainState, stream: Rows) -> float:
    """The share of a run's time that it waits for rows; the first step, for which the worker begins, does not count."""
    first, *steps = train(state, stream.from_position(), steps=STEPS, lr=lambda step: 1e-3, bf16=True)
    return sum(step["data_seconds"] for step in steps) / (steps[-1]["seconds"] - first["seconds"])


if __name__ == "__main__":
    main(*sys.argv[1:])
