"""Two and four processes that train by DDP and by FSDP2, with gloo on the CPU, against one process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anyxform.checkpoint import read_tensors
from anyxform.cli import main
from anyxform.cli.launch import elsewhere
from tests.tiny import Tiny

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def processes(
    out: Path, count: int, strategy: str, optimizer: str, kind: str = "whole", precision: str = "fp32"
) -> list[dict[str, Any]]:
    """What each process of `tests.ranks` saw."""
    out.mkdir()
    start = [sys.executable] if count == 1 else [*TORCHRUN, f"--nproc-per-node={count}"]
    command = [*start, "-m", "tests.ranks", str(out), strategy, optimizer, kind, precision]
    done = subprocess.run(command, check=False, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    found = {}
    for optimizer in ("sgd", "muon", "adamw"):
        out = tmp_path_factory.mktemp("alone") / optimizer
        found[optimizer] = out, processes(out, 1, "ddp", optimizer)[0]
    return found


@pytest.mark.parametrize(
    ("count", "strategy", "optimizer", "kind"),
    [
        (2, "ddp", "sgd", "whole"),
        (2, "fsdp", "sgd", "sharded"),
        (2, "ddp", "adamw", "whole"),
        (2, "fsdp", "muon", "sharded"),
        (4, "fsdp", "sgd", "whole"),
        (4, "ddp", "sgd", "sharded"),
    ],
)
def test_processes_together_train_as_one_does(tmp_path, alone, count, strategy, optimizer, kind):
    """Losses, norms, clipped gradients, averages and the weights after a resume; rows are fewer or more than processes
    by one, lack modalities, and differ in length; blocks are skipped, recomputed and read early."""
    out, expected = alone[optimizer]
    close = 1e-3 if optimizer == "muon" else 1e-5  # muon orthogonalises in bf16
    every = processes(tmp_path / "many", count, strategy, optimizer, kind)
    for found in every:
        for one, other in zip(expected["steps"], found["steps"], strict=True):
            for name in ("loss", "directions", "grad_norm", "tokens"):
                assert other[name] == pytest.approx(one[name], rel=close), name
        assert found["validation"][0] == pytest.approx(expected["validation"][0], rel=close)
        assert found["again"][0] == pytest.approx(expected["again"][0], rel=close)
        same(found["whole"], expected["whole"], exactly=optimizer == "sgd")
        if strategy == "fsdp":  # its part of the tables too, whose first axis is too short to be divided
            tables = {name: size for name, size in found["held"].items() if name.endswith(("embedding", "head"))}
            assert all(size <= expected["held"][name] / count * 1.1 for name, size in tables.items()), tables
    for name in ("model", "weights", "optimizer"):
        file = f"checkpoints/step-00000006/{name}.safetensors"
        assert (tmp_path / "many" / file).exists() == (strategy == "ddp" or kind == "whole")
        same(read_tensors(tmp_path / "many" / file), load_file(out / file), exactly=optimizer == "sgd")


def test_weights_that_are_divided_train_in_bf16_as_whole_ones(tmp_path):
    """The stream between blocks is in fp32 in either."""
    ddp, fsdp = (processes(tmp_path / it, 2, it, "sgd", "whole", "bf16")[0] for it in ("ddp", "fsdp"))
    assert ddp["seen"] == fsdp["seen"] == {torch.float32}
    for one, other in zip(ddp["steps"], fsdp["steps"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-3)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], exactly: bool) -> None:
    """Equal to 1e-5, and to 5e-5 of the largest, so that squares of gradients are compared too.

    Where the optimizer makes much of a gradient that is almost zero: on an average to 1e-4, and to 3e-3 of the largest.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name].float() - tensor.float()).abs()
        worst = difference.max() if exactly else 0.1 * difference.mean()
        largest = float(tensor.float().abs().max())
        assert worst <= min(1e-5 * max(1.0, largest), (5e-5 if exactly else 3e-4) * largest), name


def train(tiny: Tiny, run_dir: Path, *overrides: str, torchrun: int = 0) -> subprocess.Popen[str]:
    """The command, started by itself or in so many processes by torchrun."""
    options = ("train.rows_per_step=3", "train.val_every=3", "train.val_rows=3", "train.sample_every=6", *overrides)
    launcher = [*TORCHRUN, f"--nproc-per-node={torchrun}"] if torchrun else [sys.executable]
    command = [*launcher, "-m", "anyxform", *tiny.train(run_dir, *options)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [float(re.search(r'"loss": ([\d.]+)', line)[1]) for line in lines]  # type: ignore[index]


def test_the_command_trains_in_processes_and_goes_on_in_another_number(tiny, tmp_path):
    """In two by torchrun, in three that it starts itself, and at last in one: as one does that is never ended."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    rate = "optim.schedule=constant"
    process = train(tiny, whole, rate)
    assert process.wait(100) == 0, process.communicate()[1]
    sharded = ("distributed.strategy=fsdp", "distributed.checkpoint=sharded", "resume=auto")
    process = train(tiny, parted, rate, "train.steps=2", *sharded, torchrun=2)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 0 and "2 processes (fsdp)" in said, said
    options = ("train.steps=4", "distributed=fsdp", "distributed.processes=3")  # they read the parts of two
    process = train(tiny, parted, rate, *options, *sharded[1:])
    assert process.wait(100) == 0, process.communicate()[1]
    assert len(list((parted / "checkpoints").glob("step-*4/optimizer/part-*-of-00003.safetensors"))) == 3
    assert main(["export", str(parted), str(tmp_path / "exported")]) == 0
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == load_file(whole / "checkpoints" / "step-00000006" / "model.safetensors").keys()
    process = train(tiny, parted, rate, "resume=auto")
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 0 and "resuming" in said, said
    assert len(losses(whole)) == 6 and losses(parted) == pytest.approx(losses(whole), rel=1e-4)
    assert (parted / "samples" / "step-00000006" / "index.jsonl").exists()


def test_processes_begin_with_the_weights_of_others(tiny, tmp_path):
    """Parts of a run by FSDP2 are the weights that one by DDP begins with."""
    options = ("train.steps=1", "train.sample_every=0", "train.val_every=0", "distributed.processes=2")
    first = train(tiny, tmp_path / "first", *options, "distributed=fsdp", "distributed.checkpoint=sharded")
    assert first.wait(100) == 0, first.communicate()[1]
    still = ("optim.lr=1e-12", "train.ema=null", f"model.init_from={tmp_path / 'first'}")
    second = train(tiny, tmp_path / "second", *options, *still)
    said = second.communicate(timeout=100)[1]
    assert second.returncode == 0 and "fresh: nothing" in said, said
    before, after = (
        read_tensors(tmp_path / name / "checkpoints" / "step-00000001" / "model.safetensors")
        for name in ("first", "second")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_dies_takes_the_run_down_and_all_start_again(tiny, tmp_path, processes):
    options = (
        "train.steps=30",
        "train.checkpoint_every=2",
        "resume=auto",
        "train.sample_every=0",
        "train.val_every=0",
    )
    process = train(tiny, tmp_path, *options, f"distributed.processes={processes}", "distributed.restarts=1")
    wait_for(tmp_path / "metrics.jsonl", lines=4)
    kill_one(process.pid)
    began = time.monotonic()
    said = process.communicate(timeout=150)[1]
    assert process.returncode == 0, said[-2000:]
    assert "resuming" in said and "trained for 30 steps" in said
    assert time.monotonic() - began < 140


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [("one", 137, "process 1 was killed by signal 9"), ("all", 143, "stopped and saved after step")],
)
def test_a_run_that_is_ended_says_so_in_a_few_lines(tiny, tmp_path, what, code, message):
    """Also by a signal that reaches the processes which read the data, as torchrun sends it."""
    options = ("train.steps=2000", "train.sample_every=0", f"data.num_workers={int(what == 'all')}")
    process = train(tiny, tmp_path, *options, "distributed.processes=2")
    wait_for(tmp_path / "metrics.jsonl", lines=4)
    kill_one(process.pid) if what == "one" else process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code and message in said, said
    assert "Traceback" not in said and len([line for line in said.splitlines() if not line.startswith("step")]) < 6


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, f"{path} has not come"
        time.sleep(0.05)


def kill_one(parent: int) -> None:
    """SIGKILL the last of a process's children."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def test_a_run_is_submitted(tiny, tmp_path):
    """By submitit, whose local executor stands for SLURM."""
    options = ("distributed=slurm", "distributed.cluster=local", "distributed.processes=2", "resume=auto")
    process = train(tiny, tmp_path, *options, "train.sample_every=0")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    log = Path(re.search(r"submitted as job \d+: (\S+) will have", said)[1])  # type: ignore[index]
    deadline = time.monotonic() + 90
    while "trained for 6 steps" not in (text := log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    assert "2 processes (fsdp)" in text


def test_a_run_on_slurm_is_queued_again_however_often_its_time_is_over(tmp_path, monkeypatch):
    """submitit's default is three times."""
    from submitit.helpers import DelayedSubmission

    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\necho Submitted batch job 7\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    options = {"cluster": "slurm", "processes": 1, "nodes": 2, "restarts": 0, "minutes": 60, "slurm": {}, "port": 1}
    assert elsewhere(options, ["resume=auto"], str(tmp_path / "run")) == 0
    submitted = DelayedSubmission.load(tmp_path / "run" / "jobs" / "7_submitted.pkl")
    assert submitted._timeout_countdown > 1e6


STOPPING = """
import subprocess, sys
from anyxform.cli.launch import _Node

child = '''
import signal, sys, time
def save(*_):
    time.sleep(PAUSE)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("trains", flush=True)
time.sleep(60)
'''
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
again = _Node({"slurm": {"signal_delay_s": DELAY}}, ["steps=3"]).checkpoint()
print(again.function.overrides, process.poll())
process.kill()
"""


@pytest.mark.parametrize(("delay", "code"), [(60, 143), (0.1, None)])
def test_before_a_run_is_queued_again_its_processes_save(delay, code):
    """As long as there is time; the launcher can still see how they ended."""
    program = STOPPING.replace("DELAY", str(delay)).replace("PAUSE", "0.5" if code else "30")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"['steps=3'] {code}\n", done.stderr


def test_a_run_whose_time_is_over_saves_and_goes_on(tiny, tmp_path):
    """The signal reaches every process, as with SLURM it may."""
    options = ("distributed=slurm", "distributed.cluster=local", "distributed.processes=1", "resume=auto")
    process = train(tiny, tmp_path, *options, "train.steps=300", "train.sample_every=0", "data.num_workers=1")
    assert process.stderr and process.wait(60) == 0
    said = process.stderr.readline()
    job, log = re.search(r"submitted as job (\d+): (\S+) will have", said).groups()  # type: ignore[union-attr]
    wait_for(tmp_path / "metrics.jsonl", lines=3)
    for pid in descendants(int(job)):
        os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + 90
    while "trained for 300 steps" not in (text := Path(log).read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    assert text.index("Caught signal SIGUSR2") < text.index("stopped and saved after step") < text.index("resuming")


def descendants(parent: int) -> list[int]:
    """A process's children, and theirs."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [pid for child in children for pid in (child, *descendants(child))]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("distributed.processes=0",), "distributed.processes=0 is not possible"),
        (
            ("distributed.processes=2", "distributed.restarts=1"),
            "distributed.cluster need to know the run: give run_dir=",
        ),
        (
            ("distributed.strategy=spdf", "distributed.processes=2"),
            "distributed.strategy='spdf' is unknown: use ddp or fsdp",
        ),
        (("distributed=spdf",), "fsdp"),
        (("distributed.checkpoint=half",), "distributed.checkpoint='half' is unknown: use whole or sharded"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tiny, tmp_path, overrides, message):
    process = train(tiny, tmp_path, *overrides)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and message in said and len(said.splitlines()) == 1, said
