"""A real training process, killed by SIGKILL at random moments again and again, ends where an uninterrupted one does.

ANYXFORM_KILLS says how often; 50 take about five minutes.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import Tiny

KILLS = int(os.environ.get("ANYXFORM_KILLS", "3"))
STEPS = 40
PROGRAM = """
import json, os, sys
from anyxform import train as training
from anyxform.cli import main

step = training.train_step
def logged(model, optimizer, batches, **options):
    found = step(model, optimizer, batches, **options)
    with open(sys.argv[1], "a") as log:  # the samples of each step that was done, and its loss
        log.write(json.dumps([[batch.keys for batch in batches], found["loss"]]) + "\\n")
    return found
training.train_step = logged
sys.exit(main(sys.argv[2:]))
"""


def command(tiny: Tiny, folder: Path, *overrides: str) -> list[str]:
    options = (f"train.steps={STEPS}", "train.checkpoint_every=1", "model.dropout=0.1", "resume=auto", *overrides)
    return [sys.executable, "-c", PROGRAM, str(folder / "samples.log"), *tiny.train(folder / "run", *options)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def lines(folder: Path) -> list[str]:
    path = folder / "samples.log"
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = folder / "run" / "checkpoints" / f"step-{STEPS:08d}"
    files = {name: load_file(last / f"{name}.safetensors") for name in ("weights", "optimizer")}
    return {f"{name}/{key}": tensor for name, tensors in files.items() for key, tensor in tensors.items()}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(tiny: Tiny, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
    process = start(command(tiny, whole))
    assert process.wait(300) == 0, process.communicate()[1]
    chance = random.Random(KILLS)
    for kill in range(KILLS):
        process = start(command(tiny, torn, f"data.num_workers={kill % 2}"))
        done, deadline = len(lines(torn)), time.monotonic() + 120
        while len(lines(torn)) == done and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)  # until the first step of this process, so that every kill meets a training
        time.sleep(chance.random() * 0.4 / (1 + KILLS / 10))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(command(tiny, torn))
    assert process.wait(300) == 0, process.communicate()[1]

    expected, found = lines(whole), Counter(lines(torn))
    assert len(expected) == STEPS == len(set(expected)) and set(found) == set(expected), "the same samples, and losses"
    last = lines(torn)[-1]
    assert last == expected[-1]
    steps = [json.loads(line)["step"] for line in (torn / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1)), "the journal tells of each step once"
    there = weights(whole)
    assert all(torch.equal(tensor, there.pop(name)) for name, tensor in weights(torn).items()) and not there
    assert not list((torn / "run" / "checkpoints").glob(".*.tmp")), "nothing half-written is left"


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
