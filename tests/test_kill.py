"""A real training process, killed by SIGKILL at random moments again and again, ends where an uninterrupted one does.

ANYXFORM_KILLS says how often; 50 must meet a checkpoint that is being written.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_distributed import TORCHRUN, descendants
from tests.tiny import Tiny

KILLS = int(os.environ.get("ANYXFORM_KILLS", "3"))
PROGRAM = """
import json, os, sys
from anyxform import train as training
from anyxform.cli import main

step = training.train_step
def logged(model, optimizer, batches, **options):
    found = step(model, optimizer, batches, **options)
    with open(sys.argv[1], "a") as log:  # the rows of each step that was done, their samples, and its loss
        log.write(json.dumps([list(options["seeds"]), [batch.keys for batch in batches], found["loss"]]) + "\\n")
    return found
training.train_step = logged
sys.exit(main(sys.argv[2:]))
"""


def command(tiny: Tiny, folder: Path, *overrides: str) -> list[str]:
    options = ("train.checkpoint_every=1", "optim.schedule=constant", "model.dropout=0.1", "resume=auto", *overrides)
    return [sys.executable, "-c", PROGRAM, str(folder / "samples.log"), *tiny.train(folder / "run", *options)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def lines(folder: Path) -> list[str]:
    path = folder / "samples.log"
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    last = folder / "run" / "checkpoints" / f"step-{step:08d}"
    files = {name: load_file(last / f"{name}.safetensors") for name in ("weights", "optimizer")}
    return {f"{name}/{key}": tensor for name, tensors in files.items() for key, tensor in tensors.items()}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(tiny: Tiny, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
    chance, kills, saving = random.Random(KILLS), 0, 0
    for number in range(KILLS):
        process = start(command(tiny, torn, "train.steps=100000", f"data.num_workers={number % 2}"))
        wanted, deadline = len(lines(torn)) + chance.randint(1, 8), time.monotonic() + 120
        while len(lines(torn)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)  # anywhere in what comes then, a checkpoint or a step
        assert process.poll() is None and len(lines(torn)) >= wanted, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        saving += any((torn / "run" / "checkpoints").glob(".*.tmp"))
    steps = len(set(lines(torn))) + 3
    for folder, options in ((torn, ()), (whole, ("train.checkpoint_every=0",))):
        process = start(command(tiny, folder, f"train.steps={steps}", *options))
        assert process.wait(300) == 0, process.communicate()[1]
    print(f"{kills} kills, {saving} of them while a checkpoint was written; {steps} steps")
    assert kills == KILLS and (saving or KILLS < 50)

    expected, found = lines(whole), Counter(lines(torn))
    assert len(expected) == steps == len(set(expected)) and set(found) == set(expected), "the same samples, and losses"
    assert lines(torn)[-1] == expected[-1]
    told = [json.loads(line)["step"] for line in (torn / "run" / "metrics.jsonl").read_text().splitlines()]
    assert told == list(range(1, steps + 1)), "the journal tells of each step once"
    there = weights(whole, steps)
    assert all(torch.equal(tensor, there.pop(name)) for name, tensor in weights(torn, steps).items()) and not there
    assert not list((torn / "run" / "checkpoints").glob(".*.tmp")), "nothing half-written is left"


def samples(folder: Path) -> dict[int, set[tuple[str, ...]]]:
    """What was in each row of a run, whichever processes trained on it."""
    found = defaultdict(set)
    for line in lines(folder):
        numbers, keys, _ = json.loads(line)
        for number, row in zip(numbers, keys, strict=True):
            found[number].add(tuple(row))
    return dict(found)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up in /proc")
def test_two_processes_that_were_killed_go_on_as_one_with_the_same_samples(tiny: Tiny, tmp_path: Path) -> None:
    """Three rows a step, of which one process had two."""
    whole, torn, program = tmp_path / "whole", tmp_path / "torn", tmp_path / "program.py"
    program.write_text(PROGRAM)
    for folder in (whole, torn):
        folder.mkdir()
    arguments = command(tiny, torn, "train.rows_per_step=3", "train.steps=100000")[3:]
    process = start([*TORCHRUN, "--nproc-per-node=2", str(program), *arguments])
    latest, deadline = torn / "run" / "checkpoints" / "latest", time.monotonic() + 120
    while (len(lines(torn)) < 8 or not latest.exists()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in (process.pid, *descendants(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and latest.exists()
    steps = len(samples(torn)) // 3 + 3
    for folder, resumed in ((torn, True), (whole, False)):
        process = start(command(tiny, folder, "train.rows_per_step=3", f"train.steps={steps}"))
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0 and ("resuming" in said) == resumed, said
    expected = samples(whole)
    assert len(expected) == 3 * steps and all(len(rows) == 1 for rows in expected.values())
    assert samples(torn) == expected


def running(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its, *_ = path.read_text().rpartition(")")[2].split()
            found += [state] if int(its) == group and state != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_workers_end_with_the_process_that_was_killed(tiny: Tiny, tmp_path: Path) -> None:
    process = start(command(tiny, tmp_path, "data.num_workers=2", "train.steps=100000"))
    try:
        deadline = time.monotonic() + 120
        while not lines(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert lines(tmp_path) and len(running(process.pid)) >= 3
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while running(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not running(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
