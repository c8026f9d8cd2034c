"""Several processes on this machine, started by torchrun, each with the command that was given."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch


def wanted(options: Mapping[str, Any]) -> int:
    """How many processes are still to be started; 1 inside of those that torchrun started."""
    processes = options["processes"]
    if processes != "auto" and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
        raise ValueError(f"distributed.processes={processes} is not possible: give 1 or more, or auto")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return 1
    return max(1, torch.cuda.device_count()) if processes == "auto" else processes


def torchrun(processes: int, restarts: int, overrides: Sequence[str]) -> NoReturn:
    """Become torchrun, with ``anyxform train`` in so many processes."""
    if restarts and "resume=auto" not in overrides:
        raise ValueError("distributed.restarts needs to know where to go on: give resume=auto and run_dir=")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}", "-m", "anyxform", "train", *overrides,
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} | os.environ
    os.execve(sys.executable, command, environment)
