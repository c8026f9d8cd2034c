"""Training: one step, and the steps in order. What is done between them (reports, checkpoints) is up to the caller.

A run is a pure function of (seed, step): the data come in an order that is one, and chance inside the model (dropout,
skipped layers) is seeded anew at each step. So nothing of a random generator has to be kept to resume exactly.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from anyxform.checkpoint import model_tensors
from anyxform.loss import batch_loss
from anyxform.model import Transformer
from anyxform.optim import EMA, clip_gradients
from anyxform.sequence import Batch

Metrics = dict[str, Any]
Shares = Mapping[str, tuple[Tensor, int]]


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
    """Sums of each direction's losses over many batches, read from the device once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, shares: Shares) -> None:
        for direction, (total, count) in shares.items():
            self.sums[direction] = self.sums[direction] + total if direction in self.sums else total
            self.counts[direction] = self.counts.get(direction, 0) + count

    def means(self) -> tuple[float, dict[str, float]]:
        """The mean over all labels, and each direction's mean over its own."""
        sums = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        per_direction = {name: total / self.counts[name] for name, total in zip(self.sums, sums)}
        return sum(sums) / max(1, sum(self.counts.values())), dict(sorted(per_direction.items()))


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    clip: float = 1.0,
    bf16: bool = False,
    exits: Sequence[int] = (),
    exit_weight: float = 0.1,
    length_weight: float = 0.1,
    weights: Mapping[str, float] | None = None,
) -> Metrics:
    """One update from several packed rows, whose gradients are accumulated: the same as from one large row.

    The objective is the sum of all losses (see `batch_loss`) divided by the labels of all rows together. Where it, or
    the norm of its gradient, is not finite, nothing is updated and `skipped` is true.

    Returns `loss` (mean over the labels, last layer alone), `directions` (that of each), `grad_norm` (before clipping),
    `skipped`.
    """
    labels = max(1, sum(batch.num_labels for batch in batches))
    losses, objectives = _Losses(), []
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=bf16):
            total, shares = batch_loss(
                model, batch, exits=exits, exit_weight=exit_weight, length_weight=length_weight, weights=weights
            )
        (total / labels).backward()
        objectives.append(total.detach())
        losses.add(shares)
    grad_norm = clip_gradients(model.parameters(), clip)
    finite = bool(torch.stack([*objectives, grad_norm]).isfinite().all())
    if finite:
        optimizer.step()
    loss, directions = losses.means()
    return {"loss": loss, "directions": directions, "grad_norm": float(grad_norm), "skipped": not finite}


def train(
    state: TrainState,
    rows: Iterable[tuple[Batch, Any]],
    *,
    steps: int,
    lr: Callable[[int], float],
    rows_per_step: int = 1,
    seed: int = 0,
    exit_every: int = 0,
    max_nonfinite: int = 20,
    **options: Any,
) -> Iterator[Metrics]:
    """Train `state` in place up to step `steps`, yielding the metrics of each step after it is done.

    `rows` are the loader's pairs of a packed row and the position behind it, beginning at `state.position`. `lr` gives
    the learning rate of a step. Every `exit_every` steps one early layer is read too, each in turn (the rotating exits
    of LayerSkip, arXiv 2404.16710); 0: never. `options` go to `train_step`. More than `max_nonfinite` skipped steps
    in a row raise a ValueError: single ones are usual in a long run, but many in a row do not mend themselves.
    """
    model, device = state.model.train(), next(state.model.parameters()).device
    stream, in_a_row = iter(rows), 0
    while state.step < steps:
        start = time.perf_counter()
        taken = list(islice(stream, rows_per_step))
        if not taken:
            raise ValueError(f"the data ended after {state.step} of {steps} steps: give more of it, or let it repeat")
        waited = time.perf_counter() - start
        batches = [batch.to(device) for batch, _ in taken]
        rate = lr(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(seed, state.step))
        exits = rotating_exit(state.step, exit_every, len(model.blocks))
        metrics = train_step(model, state.optimizer, batches, exits=exits, **options)
        if state.ema is not None and not metrics["skipped"]:
            state.ema.update(model, state.step)
        state.step += 1
        state.position = taken[-1][1]
        tokens, size = sum(batch.num_tokens for batch in batches), sum(batch.size for batch in batches)
        seconds = time.perf_counter() - start
        state.tokens += tokens
        state.seconds += seconds
        state.skipped += metrics["skipped"]
        in_a_row = in_a_row + 1 if metrics["skipped"] else 0
        yield {
            "step": state.step,
            **metrics,
            "lr": rate,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "padding": 1 - tokens / size,
            "data_seconds": waited,
            "seconds": state.seconds,
        }
        if in_a_row > max_nonfinite:
            raise ValueError(
                f"the loss or its gradient was not finite for {in_a_row} steps in a row, up to step {state.step}: "
                "lower optim.lr, or resume from an earlier checkpoint"
            )


def step_seed(seed: int, step: int) -> int:
    """The seed of chance inside the model at one step."""
    return (seed * 1_000_003 + step) % 2**63


def rotating_exit(step: int, every: int, depth: int) -> tuple[int, ...]:
    """After how many blocks the stream is also read at this step."""
    if not every or step % every or depth < 2:
        return ()
    return (1 + step // every % (depth - 1),)


@torch.no_grad()
def validation_loss(
    model: Transformer, batches: Iterable[Batch], *, bf16: bool = False
) -> tuple[float, dict[str, float]]:
    """The mean loss over all labels of the batches, and that of each direction, without dropout."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    losses = _Losses()
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses.add(batch_loss(model, batch.to(device))[1])
    model.train(was_training)
    return losses.means()


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
