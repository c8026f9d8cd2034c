"""What one of several processes does in tests/test_distributed.py: train the toy model, and write down what came out.

torchrun --nproc-per-node N -m tests.ranks OUT STRATEGY OPTIMIZER CHECKPOINT PRECISION
"""

import os
import sys
from pathlib import Path

import torch

from anyxform import resume
from anyxform.distributed import Parallel, World, joined, whole_model
from anyxform.optim import EMA, OPTIMIZERS
from anyxform.sequence import Batch, Example, pack
from anyxform.sharding import own
from anyxform.train import TrainState, averaged, share_of, train, validation_loss
from tests.toy import toys
from tests.toy_training import CONDITIONS, toy_example, toy_model

CHOICES = OPTIMIZERS | {"sgd": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)}
ROWS, STEPS, SWITCH = 5, 6, 4
KINDS = (("image", "text"), ("sound", "text"), ("text", "sound"), ("text", "image"))


def row(number: int) -> Batch:
    """A row of one direction alone, so that processes lack different modalities; of one or two examples."""
    generator = torch.Generator().manual_seed(number)
    pair = KINDS[number % len(KINDS)] if number < ROWS * (STEPS - 1) else KINDS[0]  # at last all lack the same
    examples: list[Example] = [toy_example(*pair, generator) for _ in range(1 + number % 2)]
    return pack(examples, CONDITIONS, size=64)


def prepared(world: World, strategy: str, optimizer: str, bf16: bool) -> tuple[TrainState, Parallel]:
    model = toy_model(layer_dropout=0.4, dropout=0.1)
    model.blocks[1].recomputes = True
    parallel = Parallel(model, world, strategy, bf16=bf16)  # type: ignore[arg-type]
    return TrainState(model, CHOICES[optimizer](model, lr=3e-3), EMA(model, 0.9)), parallel


def run(out: Path, world: World, strategy: str, optimizer: str, checkpoint: str, precision: str) -> None:
    """Train to SWITCH, save, go on from that in a fresh state to STEPS, and save what is seen by every process."""
    found, sharded, bf16 = [], checkpoint == "sharded", precision == "bf16"
    for last in (SWITCH, STEPS):
        state, parallel = prepared(world, strategy, optimizer, bf16)
        saved = out / "checkpoints" / f"step-{SWITCH:08d}"
        if last > SWITCH:
            resume.load(saved, state, {}, toys())
        numbers = [n for n in range(state.step * ROWS, last * ROWS) if n % ROWS in share_of(ROWS, world)]
        rows = ((row(number), number) for number in numbers)
        options = {"rows_per_step": ROWS, "exit_every": 2, "clip": 0.5, "parallel": parallel, "bf16": bf16}
        for metrics in train(state, rows, steps=last, lr=lambda step: 3e-3, **options):
            found.append({name: metrics[name] for name in ("loss", "directions", "grad_norm", "tokens")})
        taken = resume.snapshot(state, toys(), settings={}, directions=[], facts={}, world=world, sharded=sharded)
        if world.leads or sharded:
            resume.write(out, taken)
        world.gather(None)  # it is on disk
    batches = [row(number) for number in range(100, 104)][world.rank :: world.size]
    with averaged(state) as model:
        validation = validation_loss(model, batches, parallel=parallel, bf16=bf16)
        whole = whole_model(model, toys())
    seen = set[torch.dtype]()
    for block in state.model.blocks:
        block.register_forward_pre_hook(lambda block, given: seen.add(given[0].dtype))
    again = validation_loss(model, batches, parallel=parallel, bf16=bf16)
    held = {name: own(parameter.detach()).numel() for name, parameter in model.named_parameters()}
    result = {
        "steps": found,
        "validation": validation,
        "again": again,
        "whole": whole.state_dict(),
        "held": held,
        "seen": seen,
    }
    torch.save(result, out / f"rank-{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    import faulthandler

    faulthandler.dump_traceback_later(40, exit=True)
    with joined() as world:
        run(Path(sys.argv[1]), world, *sys.argv[2:])
    os._exit(0)  # see anyxform.cli.train
