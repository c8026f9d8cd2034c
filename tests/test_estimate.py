"""What `anyxform plan` says of a training, against what happens."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anyxform.attention import SegmentAttention
from anyxform.budget import Setting, memory, plan, speed
from anyxform.causal import LENGTHS
from anyxform.cli import main
from anyxform.estimate import estimate
from anyxform.hardware import DEVICES, Device, device
from anyxform.loss import batch_loss
from anyxform.model import PRESETS
from anyxform.optim import adamw
from anyxform.sequence import Example, Target, pack
from tests.toy import toys
from tests.toy_training import CONDITIONS, toy_model, toy_row

SIZES = {"dim": 64, "depth": 3, "num_heads": 4, "num_kv_heads": 2}
COUNTED = """
import ctypes, gc, re, torch
from anyxform.loss import batch_loss
from anyxform.model import PRESETS
from anyxform.optim import EMA, optimizer_named
from anyxform.train import TrainState, train
from tests.toy_training import toy_model, toy_row

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def begin():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    return status("VmRSS")

torch.set_num_threads(1)
"""
ROW = """
model, row = toy_model(dim=256, depth=6, num_heads=4), toy_row(0, repeats=16)
for block in model.blocks:
    block.recomputes = {recompute}
for _ in range(2):
    before = begin()  # of the second round only the gradients of the first are there, as with several rows a step
    with torch.autocast("cpu", torch.bfloat16, enabled={bf16}):
        loss, _ = batch_loss(model, row)
    loss.backward()
    del loss
print(status("VmHWM") - before)
"""
TRAINING = """
def trained():
    model = toy_model(**PRESETS["tiny"])
    state = TrainState(model, optimizer_named("{optimizer}")(model), EMA(model, 0.9))
    rows = [(toy_row(0, repeats=4), 0)] * 4
    list(train(state, rows, steps=2, rows_per_step=2, lr=lambda step: 1e-3, bf16={bf16}))

for _ in range(2):
    before = begin()  # of the second round only the kernels that were made for these shapes are there
    trained()
print(status("VmHWM") - before)
"""


def peak(program: str) -> int:
    """Bytes that a real process holds at most, beyond those that were there before."""
    # large tensors get pages of their own, which are given back: else freed memory would be counted
    command = ["env", "MALLOC_MMAP_THRESHOLD_=65536", sys.executable, "-c", COUNTED + program]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cost(repeats=4, **options):
    return estimate(SIZES, toys(), list(CONDITIONS), [toy_row(0, repeats)], **options)


def test_operations_are_those_that_are_done():
    """Products of matrices as torch counts them in a real step; those of attention, which it does not know, by hand."""
    model, row = toy_model(**SIZES), toy_row(0, repeats=4)
    with FlopCounterMode(display=False) as real:
        batch_loss(model, row)[0].backward()
    groups = SegmentAttention(row.segments, row.size).groups
    attention = sum(2 * 7 * 4 * group.scores * 16 for group in groups) * 3
    found = cost()
    assert found.forward + found.backward == pytest.approx(real.get_total_flops() + attention, rel=1e-6)
    assert cost(recompute=True).backward > found.backward and cost(recompute=True).forward == found.forward


@pytest.mark.parametrize("length", [20, LENGTHS[0]])
def test_of_text_alone_only_what_is_seen_is_counted(length):
    """The kernel leaves the rest out, and what computes the gradient of longer ones, all but parts of a few blocks."""
    codes = torch.zeros(length, 1, dtype=torch.long)
    target = Target("text", codes, torch.arange(length)[:, None], toys()["text"].vocab_size, False)
    row = pack([Example("key", "text>text", (), (), target)] * 3, CONDITIONS)
    with FlopCounterMode(display=False) as real:
        batch_loss(toy_model(**SIZES), row)[0].backward()
    found = estimate(SIZES, toys(), list(CONDITIONS), [row])
    pairs = 3 * length * (length + 1) // 2
    attention = 2 * 7 * 4 * pairs * 16 * 3
    assert found.forward + found.backward == pytest.approx(real.get_total_flops() + attention, rel=1e-6)


def test_the_optimizers_state_is_counted():
    model, row = toy_model(**SIZES), toy_row(0)
    optimizer = adamw(model)
    batch_loss(model, row)[0].backward()
    optimizer.step()
    tensors = [t for part in optimizer.state_dict()["state"].values() for t in part.values()]
    assert cost().optimizer_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert cost(optimizer="muon").optimizer_bytes < cost().optimizer_bytes
    assert cost(optimizer="muon").optimizer_step > 0


def test_sizes_are_those_of_the_model():
    model, row = toy_model(**SIZES), toy_row(0, repeats=4)
    found = cost()
    assert found.parameters == model.num_parameters()
    assert found.stack_parameters == sum(p.numel() for p in model.blocks.parameters()) == 3 * found.largest_block
    assert (found.tokens, found.labels) == (row.num_tokens, row.num_labels)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("bf16", "recompute"), [(False, False), (True, False), (True, True)])
def test_memory_is_what_a_step_takes(bf16, recompute):
    """Within 10 % of the most memory that a real process holds in a step beyond its weights and gradients."""
    real = peak(ROW.format(bf16=bf16, recompute=recompute))
    sizes = {"dim": 256, "depth": 6, "num_heads": 4}
    row = toy_row(0, repeats=16)
    found = estimate(sizes, toys(), list(CONDITIONS), [row], bf16=bf16, recompute=recompute)
    assert found.activations == pytest.approx(real, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("optimizer", "bf16"), [("adamw", False), ("muon", True)])
def test_memory_is_what_a_training_takes(optimizer, bf16):
    """Within 10 %: weights, gradients, the optimizer's state, the average, and what is kept for the backward pass."""
    found = estimate(PRESETS["tiny"], toys(), list(CONDITIONS), [toy_row(0, 4)], optimizer=optimizer, bf16=bf16)
    told = plan(found, Setting(DEVICES["h100"], bf16=bf16, rows_per_step=2), tokens=1e9, price=None)
    assert told["memory_needed"] == pytest.approx(peak(TRAINING.format(optimizer=optimizer, bf16=bf16)), rel=0.1)
    assert found.activations < 0.5 * told["memory_needed"], "else the rest would not be seen"


def test_sharding_divides_all_but_the_activations():
    found = cost()
    whole, shared = (memory(found, Setting(DEVICES["h100"], 8, sharded=sharded)) for sharded in (False, True))
    for name in ("weights", "gradients", "optimizer", "average"):
        assert shared[name] == whole[name] / 8
    assert shared["activations"] == whole["activations"] and shared["gathered"] > 0


def test_time_and_money():
    found = cost()
    one = Setting(DEVICES["h100"], mfu=0.5, rows_per_step=4)
    assert speed(found, one) == pytest.approx(989e12 * 0.5 / found.per_token, rel=1e-6)
    assert speed(found, Setting(DEVICES["h100"], 4, mfu=0.5, rows_per_step=4)) == pytest.approx(4 * speed(found, one))
    uneven = speed(found, Setting(DEVICES["h100"], 3, mfu=0.5, rows_per_step=4))
    assert uneven == pytest.approx(2 * speed(found, one)), "two rows for one of them, which the others wait for"
    told = plan(found, one, tokens=1e12, price=3.0)
    assert told["price"] == pytest.approx(told["days"] * 24 * 3.0) and told["days"] > 0
    assert plan(found, one, 1e12, None)["price"] is None


def test_what_a_million_generated_tokens_cost():
    """Half of what reading all weights of the stack once for 64 tokens allows, or computing with them."""
    found = cost()
    bytes_read, operations = 2 * found.stack_parameters, 2 * found.stack_parameters
    reads, computes = Device("", 1e15, 1e14, 1e11, bandwidth=1e12), Device("", 1e13, 1e12, 1e11, bandwidth=1e12)
    for hardware, rate in ((reads, 64 * 1e12 / bytes_read / 2), (computes, 1e13 / operations / 2)):
        told = plan(found, Setting(hardware, 8, rows_per_step=8), tokens=1e9, price=3.6)  # of one, not of all eight
        assert told["generated_tokens_per_second"] == pytest.approx(rate, rel=1e-6)
        assert told["price_per_million_generated"] == pytest.approx(1e6 / rate * 0.001, rel=1e-6)
    assert plan(found, Setting(reads), 1e9, None)["price_per_million_generated"] is None


def test_this_machine_is_measured():
    here = device("here", bf16=False)
    assert 1e9 < here.operations < 1e16 and 1e8 < here.bandwidth < 1e14
    assert here.memory > 1e9
    with pytest.raises(ValueError, match="--gpu h10 is unknown: did you mean 'h100'"):
        device("h10")


def test_the_command(tiny, capsys):
    words = ["--config-dir", str(tiny.conf), "experiment=tiny", "--gpu", "h100"]
    assert main(["plan", *words, "--gpus", "2", "--price", "2", "distributed=fsdp", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] == told["tokens_advised"] == 20 * told["parameters"]
    assert "gathered" in told["memory"] and told["price"] > 0
    assert main(["plan", *words, "--gpus", "8"]) == 2
    assert "--gpus 8 is not possible with train.rows_per_step=2" in capsys.readouterr().err
    assert main(["plan", *words, "--json"]) == 0  # in bf16, as it would be trained
    fast = json.loads(capsys.readouterr().out)["tokens_per_second"]
    assert main(["plan", *words, "train.bf16=false", "--json"]) == 0
    assert fast / json.loads(capsys.readouterr().out)["tokens_per_second"] == pytest.approx(989 / 67)
    assert main(["plan", *words, "optim.name=adam"]) == 2
    assert "optim.name='adam' is unknown: did you mean 'adamw'?" in capsys.readouterr().err
    assert main(["plan", *words, "--sizes"]) == 0
    sizes = capsys.readouterr().out
    assert "nano" in sizes and "xl" in sizes
    assert main(["plan", *words, "--tokens", "1e9", "model.dim=8192", "model.depth=12"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", *words, "--law", "nothing.json"]) == 2
    assert "--law nothing.json is no law" in capsys.readouterr().err
    assert main(["plan", *words, "--gpus", "0"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
