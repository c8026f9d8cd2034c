"""Training: one step, and the steps in order. What is done between them (reports, checkpoints) is up to the caller.

A run is a pure function of (seed, step): the data come in an order that is one, and chance inside the model (dropout,
skipped layers) is seeded anew at each step. So nothing of a random generator has to be kept to resume exactly.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from anyxform.checkpoint import model_tensors
from anyxform.distributed import Parallel, Shares, World
from anyxform.model import Transformer
from anyxform.optim import EMA, clip_gradients, set_rate
from anyxform.order import rng
from anyxform.sequence import Batch

Metrics = dict[str, Any]


@dataclass
class TrainState:
    """All that training changes, and so all that a checkpoint must hold for the run to go on exactly."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    ema: EMA | None = None
    step: int = 0
    position: Any = None
    """Where the data go on: what the loader gave with the last row."""
    tokens: int = 0
    skipped: int = 0
    seconds: float = 0.0


class _Losses:
    """Sums of each direction's losses over many batches, which stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, shares: Shares) -> None:
        for direction, (total, count) in shares.items():
            self.sums[direction] = self.sums[direction] + total if direction in self.sums else total
            self.counts[direction] = self.counts.get(direction, 0) + count

    def plain(self, *others: Tensor) -> tuple[dict[str, float], dict[str, int], list[float]]:
        """The sums, the numbers of labels, and single numbers beside them, as plain values."""
        values = fetch([*others, *self.sums.values()])
        return dict(zip(self.sums, values[len(others) :])), self.counts, values[: len(others)]


def fetch(numbers: Sequence[Tensor]) -> list[float]:
    """Single numbers of a device as plain values. It waits for the device, once for all of them."""
    return torch.stack(list(numbers)).tolist() if numbers else []


def _means(parts: Sequence[tuple[dict[str, float], dict[str, int]]]) -> tuple[float, dict[str, float]]:
    """The mean over all labels of all processes, and each direction's mean over its own."""
    sums, counts = defaultdict[str, float](float), Counter[str]()
    for part_sums, part_counts in parts:
        for name in part_sums:
            sums[name] += part_sums[name]
            counts[name] += part_counts[name]
    return sum(sums.values()) / max(1, counts.total()), {name: sums[name] / counts[name] for name in sorted(sums)}


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    parallel: Parallel | None = None,
    seeds: Sequence[int] = (),
    clip: float = 1.0,
    bf16: bool = False,
    exits: Sequence[int] = (),
    skips: Sequence[int] = (),
    exit_weight: float = 0.1,
    length_weight: float = 0.1,
    align_weight: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> Metrics:
    """One update from several packed rows, whose gradients are accumulated: the same as from one large row.

    The objective is the sum of all losses (see `batch_loss`) divided by the labels of all rows together, those of other
    processes included. Where it, or the norm of its gradient, is not finite, nothing is updated and `skipped` is true.
    On a GPU this is waited for once, before the update, whatever the number of rows.

    `seeds` of chance in the model, one a row. In `parallel`, a process with fewer rows than another goes through its
    last one again, for nothing, as the others wait for it in the middle of theirs.

    Returns `loss` (mean over the labels, last layer alone), `directions` (that of each), `grad_norm` (before clipping),
    `skipped`; the same in every process.
    """
    parallel = parallel or Parallel(model)
    own_labels = sum(batch.num_labels for batch in batches)
    plans = parallel.world.gather((len(batches), own_labels, parallel.idle(batches, skips)))
    rounds, labels = max(count for count, _, _ in plans), max(1, sum(count for _, count, _ in plans))
    losses, objectives = _Losses(), []
    options = {
        "exits": exits, "skips": skips, "exit_weight": exit_weight, "length_weight": length_weight,
        "align_weight": align_weight,
    }  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    for number in range(rounds):
        spare, sync = number >= len(batches), number + 1 == rounds
        batch = batches[-1] if spare else batches[number]
        if seeds and not spare:
            torch.manual_seed(seeds[number])
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=bf16):
            total, shares = parallel.loss(batch, sync=sync, weights=weights, **options)
        parallel.backward(0 * total if spare else total / labels, sync=sync)
        if not spare:
            objectives.append(total.detach())
            losses.add(shares)
    parallel.forget_idle([idle for _, _, idle in plans])
    *own, decisive = losses.plain(clip_gradients(model.parameters(), clip), *objectives)
    every = parallel.world.gather((all(map(math.isfinite, decisive)), *own))
    finite = all(fine for fine, _, _ in every)
    if finite:
        optimizer.step()
    loss, directions = _means([(sums, counts) for _, sums, counts in every])
    return {"loss": loss, "directions": directions, "grad_norm": decisive[0], "skipped": not finite}


def train(
    state: TrainState,
    rows: Iterable[tuple[Batch, Any]],
    *,
    steps: int,
    lr: Callable[[int], float],
    seconds: float = math.inf,
    rows_per_step: int = 1,
    seed: int = 0,
    exit_every: int = 0,
    max_nonfinite: int = 20,
    parallel: Parallel | None = None,
    **options: Any,
) -> Iterator[Metrics]:
    """Train `state` in place up to step `steps`, yielding the metrics of each step after it is done.

    It ends earlier where its steps have taken `seconds`, those before this call included; what is done between them
    does not count. In a world of many the slowest process's clock is that of all.

    `rows` are the loader's pairs of a packed row and the position behind it, beginning at `state.position`: of the
    `rows_per_step` rows of each step those that are this process's (see `share_of`). `lr` gives the learning rate of a
    step. Every `exit_every` steps one early layer is read too, each in turn (the rotating exits of LayerSkip, arXiv
    2404.16710); 0: never. `options` go to `train_step`. More than `max_nonfinite` skipped steps in a row raise a
    ValueError: single ones are usual in a long run, but many in a row do not mend themselves.
    """
    model, device = state.model.train(), next(state.model.parameters()).device
    parallel = parallel or Parallel(model)
    world = parallel.world
    lanes = share_of(rows_per_step, world)
    stream, in_a_row = iter(rows), 0
    while state.step < steps and state.seconds < seconds:
        start = time.perf_counter()
        taken = list(islice(stream, len(lanes)))
        if not taken:
            raise ValueError(f"the data ended after {state.step} of {steps} steps: give more of it, or let it repeat")
        waited = time.perf_counter() - start
        batches = [batch.to(device) for batch, _ in taken]
        rate = lr(state.step)
        set_rate(state.optimizer, rate)
        metrics = train_step(
            model,
            state.optimizer,
            batches,
            parallel=parallel,
            seeds=[row_seed(seed, state.step * rows_per_step + lane) for lane in lanes],
            exits=rotating_exit(state.step, exit_every, len(model.blocks)),
            skips=skipped_blocks(seed, state.step, len(model.blocks), model.layer_dropout),
            **options,
        )
        if state.ema is not None and not metrics["skipped"]:
            state.ema.update(model, state.step)
        state.step += 1
        state.position = taken[-1][1]
        own = sum(batch.num_tokens for batch in batches), sum(batch.size for batch in batches)
        *counts, clocks = zip(*world.gather((*own, time.perf_counter() - start)))
        tokens, size, spent = *map(sum, counts), max(clocks)
        state.tokens += tokens
        state.seconds += spent
        state.skipped += metrics["skipped"]
        in_a_row = in_a_row + 1 if metrics["skipped"] else 0
        yield {
            "step": state.step,
            **metrics,
            "lr": rate,
            "tokens": tokens,
            "tokens_per_second": tokens / spent,
            "padding": 1 - tokens / size,
            "data_seconds": waited,
            "seconds": state.seconds,
        }
        if in_a_row > max_nonfinite:
            raise ValueError(
                f"the loss or its gradient was not finite for {in_a_row} steps in a row, up to step {state.step}: "
                "lower optim.lr, or resume from an earlier checkpoint"
            )


def share_of(rows_per_step: int, world: World) -> range:
    """Which of a step's rows are this process's."""
    return range(world.rank, rows_per_step, world.size)


def row_seed(seed: int, row: int) -> int:
    """The seed of chance inside the model at one row of the run."""
    return (seed * 1_000_003 + row) % 2**63


def skipped_blocks(seed: int, step: int, depth: int, layer_dropout: float) -> tuple[int, ...]:
    """Which blocks a step skips: the last with the probability `layer_dropout`, those before it with less
    (arXiv 2404.16710).

    One choice for all rows of a step, as no process can leave out a block whose weights the others are waiting for.
    """
    if not layer_dropout or depth < 2:
        return ()
    chances = rng(seed, 4, step).random(depth).tolist()
    return tuple(n for n, chance in enumerate(chances) if chance < layer_dropout * n / (depth - 1))


def rotating_exit(step: int, every: int, depth: int) -> tuple[int, ...]:
    """After how many blocks the stream is also read at this step."""
    if not every or step % every or depth < 2:
        return ()
    return (1 + step // every % (depth - 1),)


@torch.no_grad()
def validation_loss(
    model: Transformer, batches: Iterable[Batch], *, bf16: bool = False, parallel: Parallel | None = None
) -> tuple[float, dict[str, float]]:
    """The mean loss over all labels of the batches, and that of each direction, without dropout.

    In `parallel` each process has batches of its own, equally many, and the means are those over all of them.
    """
    parallel = parallel or Parallel(model)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    losses = _Losses()
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses.add(parallel.evaluate(batch.to(device)))
    model.train(was_training)
    return _means(parallel.world.gather(losses.plain()[:2]))


@contextmanager
def averaged(state: TrainState) -> Iterator[Transformer]:
    """The model with its averaged weights, for as long as the context lasts; as it is where no average is kept."""
    _swap(state)
    try:
        yield state.model
    finally:
        _swap(state)


@torch.no_grad()
def _swap(state: TrainState) -> None:
    """Exchange the model's weights with their average, in place: compiled code keeps pointing at the same tensors."""
    if state.ema is None:
        return
    for name, tensor in model_tensors(state.model).items():
        other = state.ema.weights[name]
        kept = tensor.clone()
        tensor.copy_(other)
        other.copy_(kept)
