"""Training on the cores of a CPU: a process for each core (DDP) against one process with a thread for each.

    python -m benchmarks.processes [key=value …]

Both train `experiment=starter` with the same rows, bf16 and compiled, from nothing; the first steps, in which things
are compiled, do not count. Wants the machine for itself.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.compare import calibration, compared, report

PAIRS = 3
WARMUP, STEPS = 6, 20


def tokens_per_second(processes: int, overrides: list[str]) -> float:
    """Of a short run with so many processes, which share the cores."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fixed = {
            "distributed": "ddp", "distributed.processes": processes, "train.rows_per_step": cores,
            "train.steps": WARMUP + STEPS, "train.log_every": 1, "train.val_every": 0, "train.sample_every": 0,
            "train.checkpoint_every": 0, "run_dir": run,
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "anyxform", "train", "experiment=starter"]
            + [f"{key}={value}" for key, value in fixed.items()]
            + overrides,
            env=os.environ | {"OMP_NUM_THREADS": str(cores // processes)},
            check=True,
            stderr=subprocess.DEVNULL,
        )
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = steps[WARMUP:]
    return sum(step["tokens"] for step in done) / (done[-1]["seconds"] - steps[WARMUP - 1]["seconds"])


def main(overrides: list[str]) -> None:
    cores = os.cpu_count() or 1
    if cores < 2:
        sys.exit("one core alone: nothing to compare")
    before, rates = calibration(), []
    for pair in range(PAIRS):
        sides = [cores, 1] if pair % 2 == 0 else [1, cores]
        found = {processes: tokens_per_second(processes, overrides) for processes in sides}
        rates.append((found[cores], found[1]))
    report([compared(f"{cores} processes against {cores} threads", rates, unit="tokens/s")], before, cores=cores)


if __name__ == "__main__":
    main(sys.argv[1:])
