"""The most resident memory of a real step of training, beside what `anyxform plan` says of it.

    python -m benchmarks.step_memory [preset] [overrides…]
    MALLOC_MMAP_THRESHOLD_=65536 python -m benchmarks.step_memory base train.checkpoint_activations=true

The starter's experiment on the CPU, eager, with all of its blocks and its last layer alone, as the plan counts it: one
step, with the optimizer's state and the average there as they are from the second on. What the process held before it
had this model (torch, the data) is printed too, as a plan knows nothing of it. With the variable malloc gives back what
was freed; without it that counts too, as it does in training.
"""

import ctypes
import gc
import io
import json
import re
import sys
import time
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from anyxform.cli import main as anyxform
from anyxform.cli.conf import compose
from anyxform.cli.train import Run
from anyxform.sequence import Batch

AS_PLANNED = ("train.device=cpu", "train.compile=false", "train.exit_every=0", "model.layer_dropout=0")


def main(preset: str = "small", *overrides: str) -> None:
    torch.set_num_threads(1)
    words = ["experiment=starter", *AS_PLANNED, "data.num_workers=0", *overrides]
    rows = made(Run(compose("train", [*words, "model=nano"]), words))  # the rows are the same for every size
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    words.append(f"model={preset}")
    run = Run(compose("train", words), words)
    for parameter in run.state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.state.optimizer.step()  # makes its state
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    started = time.perf_counter()
    next(run.steps(rows))
    seconds, peak = time.perf_counter() - started, status("VmHWM")
    with redirect_stdout(io.StringIO()) as said:
        anyxform(["plan", *words, "--json"])
    planned = json.loads(said.getvalue())["memory_needed"] / 1e9
    print(
        f"{preset}: planned {planned:.2f} GB, at the most {peak:.2f} GB in a step of {seconds:.0f} s, of which "
        f"{before:.2f} GB were there before the model"
    )
    print(json.dumps({"preset": preset, "overrides": overrides, "planned": planned, "peak": peak, "before": before}))


def made(run: Run) -> list[tuple[Batch, Any]]:
    """The rows of a run's first step."""
    return list(islice(run.rows(pad=False).from_position(), run.options["rows_per_step"]))


def status(name: str) -> float:
    """GB of this process by a name of the kernel's: VmRSS now, VmHWM at the most."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found, f"Linux only: {name} is read from /proc"
    return 1024 * int(found[1]) / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
