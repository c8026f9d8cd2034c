"""Several processes with the command that was given: started and watched here by torchrun's launcher, or by SLURM."""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOST = 3
"""The exit code of a process that has lost another one: not the first to fail."""
STOPPED = 128 + signal.SIGTERM
"""That of a process that was told to end, and has saved first."""
SIGNAL_DELAY = 90
"""Seconds between SLURM's signal and the end of the time, unless the config says otherwise: submitit's default."""


def elsewhere(options: Mapping[str, Any], overrides: Sequence[str], run_dir: str | None) -> int | None:
    """Train in other processes if the config `distributed` wants that: their exit code. None: train in this one."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # SLURM may send it to every process of a step: what it asks for is told to this one by `_Node`
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return None
    processes = options["processes"]
    if processes != "auto" and (type(processes) is not int or processes < 1):
        raise ValueError(f"distributed.processes={processes} is not possible: give 1 or more, or auto")
    if (options["restarts"] or options["cluster"]) and (run_dir is None or "resume=auto" not in overrides):
        raise ValueError("distributed.restarts and distributed.cluster need to know the run: give run_dir= resume=auto")
    if options["cluster"]:
        return _submit(options, overrides, Path(str(run_dir)))
    if options["nodes"] != 1:
        raise ValueError(
            f"distributed.nodes={options['nodes']} is not possible here alone: give distributed=slurm, or run torchrun "
            "on each machine"
        )
    return launch(options, overrides) if _processes(options) > 1 or options["restarts"] else None


def _processes(options: Mapping[str, Any]) -> int:
    processes = options["processes"]
    return max(1, torch.cuda.device_count()) if processes == "auto" else int(processes)


def launch(options: Mapping[str, Any], overrides: Sequence[str], endpoint: str = "localhost:0", run: str = "") -> int:
    """Run ``anyxform train`` in this machine's processes; the exit code of the first that failed.

    When one of them fails the others are ended, and all are started again, so many times. Signals are passed on.
    `endpoint` and `run`: where, and for what, the machines of one run meet.
    """
    processes = _processes(options)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # else processes that are started again find in the launcher's store the addresses of those that are gone
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # else they are killed after 30 s, in the middle of the step or of the checkpoint that they end with
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(math.ceil(options["timeout"])))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells tracebacks of its own
    config = LaunchConfig(
        min_nodes=options["nodes"], max_nodes=options["nodes"], nproc_per_node=processes, rdzv_backend="c10d",
        rdzv_endpoint=endpoint, run_id=run or uuid4().hex, max_restarts=options["restarts"], monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "anyxform", "train", *overrides)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return _failed({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def _failed(codes: Mapping[int, int]) -> int:
    """Say which process failed first, unless it has said so itself."""
    first = {rank: code for rank, code in codes.items() if code not in (LOST, -15)} or dict(codes)
    rank, code = min(first.items())
    if code < 0:
        print(f"anyxform: error: process {rank} was killed by signal {-code}", file=sys.stderr)
    return code if code > 0 else 128 - code


def _submit(options: Mapping[str, Any], overrides: Sequence[str], run_dir: Path) -> int:
    """Hand the run to SLURM and say under which number."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError("distributed=slurm needs submitit: pip install 'anyxform[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(
            folder=run_dir / "jobs",
            cluster=options["cluster"],
            slurm_max_num_timeout=sys.maxsize,  # it is queued again until it has trained all its steps
        )
        executor.update_parameters(
            name=run_dir.name, nodes=options["nodes"], tasks_per_node=1, timeout_min=options["minutes"],
            **{f"slurm_{name}": value for name, value in options["slurm"].items()},
        )  # fmt: skip
        job = executor.submit(_Node(dict(options), list(overrides)))
    except (RuntimeError, NameError, TypeError, submitit.core.utils.FailedSubmissionError) as error:
        raise ValueError(f"distributed.cluster={options['cluster']} takes no run: {error}") from error
    print(f"submitted as job {job.job_id}: {job.paths.stderr} will have what it tells", file=sys.stderr)
    return 0


class _Node:
    """What SLURM runs on each machine; where its time is over it is queued again, and goes on."""

    def __init__(self, options: dict[str, Any], overrides: list[str]) -> None:
        self.options, self.overrides, self.asked = options, overrides, False

    def __call__(self) -> None:
        import submitit

        place = submitit.JobEnvironment()
        endpoint = f"{place.hostnames[0]}:{self.options['port']}" if self.options["nodes"] > 1 else "localhost:0"
        code = launch(self.options, self.overrides, endpoint, str(place.job_id))
        # to stop is no failure of the other machines: SLURM may end them before the first is queued again
        if code != 0 and not (code == STOPPED and (place.global_rank or self.asked)):
            raise RuntimeError(f"the training ended with the exit code {code}: see above")

    def checkpoint(self) -> Any:
        """What is to be queued again; submitit calls it on the first machine, by a signal, while `launch` stands still.

        The processes here end their step and save first, and so do those elsewhere, which hear of it from these: once
        the run is queued again SLURM kills all of them soon. It must be queued before the time is over, so one that
        takes too long goes on from its checkpoint before.
        """
        import submitit

        self.asked = True
        _end_children(0.8 * float(self.options["slurm"].get("signal_delay_s") or SIGNAL_DELAY))
        return submitit.helpers.DelayedSubmission(_Node(self.options, self.overrides))


def _end_children(seconds: float) -> None:
    """Send SIGTERM to this process's children, and wait until they have ended, at most so long."""
    running = set[int]()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            running |= {int(pid) for pid in path.read_text().split()}
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while running := set(filter(_runs, running)):
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)


def _runs(child: int) -> bool:
    """Whether a child has not ended; how it has is left for the launcher to see."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
