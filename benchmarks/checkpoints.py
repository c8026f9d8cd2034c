"""How long a training waits for a checkpoint: copied and written beside it against written while it waits.

    python -m benchmarks.checkpoints [preset]

The first figure is the share of a synchronous save for which the training is kept waiting; the second how much slower
its work is while a checkpoint is being written. That work is matrix products of one thread.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anyxform import resume
from anyxform.optim import EMA, adamw
from anyxform.train import TrainState
from benchmarks import starter
from benchmarks.compare import calibration

ROUNDS = 8


def products_per_second(busy: Callable[[], bool]) -> float:
    """How fast a step's work goes on for as long as something is busy."""
    matrix, done, start = torch.randn(512, 512), 0, time.perf_counter()
    while busy():
        matrix @ matrix
        done += 1
    return done / (time.perf_counter() - start)


def half_a_second() -> Callable[[], bool]:
    end = time.perf_counter() + 0.5
    return lambda: time.perf_counter() < end


def main(preset: str = "mini") -> None:
    torch.set_num_threads(1)
    before = calibration()
    found = starter.modalities()
    _, ids = starter.rows(found)
    model = starter.model(preset, found, ids)
    state = TrainState(model, adamw(model), EMA(model, 0.999))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()

    def take() -> resume.Snapshot:
        state.step += 1
        return resume.snapshot(state, found, settings={}, directions=[], facts={})

    stalls, slower = [], []
    folder = Path(tempfile.mkdtemp(dir="."))
    try:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            resume.write(folder, take())
            whole = time.perf_counter() - start
            with resume.Saver(folder) as saver:
                start = time.perf_counter()
                saver.save(take())
                stalls.append((time.perf_counter() - start) / whole)
                assert saver.writing is not None
                beside = products_per_second(saver.writing.running)
                saver.wait()
            slower.append(products_per_second(half_a_second()) / beside)
    finally:
        shutil.rmtree(folder)
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) / 1e6
    stall, slow = statistics.median(stalls), statistics.median(slower)
    print(f"{preset}, weights of {size:.0f} MB: the training waits for {stall:.1%} of the time of a synchronous save")
    print(f"while it is written, steps take {slow:.2f} times as long")
    print(json.dumps({"stall": stalls, "slower": slower, "before": before, "after": calibration()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
