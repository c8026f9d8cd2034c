"""From a model and a batch to losses: cross-entropy per modality, z-loss, length of masked targets, early exits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyxform.model import Target, Transformer
from anyxform.sequence import Batch, PackedAlignments, PackedTargets
from anyxform.spelling import aligned_after, spelling

Z_LOSS = 1e-4
"""Keeps the logarithm of the softmax' denominator near 0 (arXiv 2202.08906)."""
MOST_LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""How many of them are there at once: on a CPU 4 MB in fp32, which stay near it; on a GPU 256 MB."""


class _HeadLosses(torch.autograd.Function):
    """Losses of what a head reads from states, whose gradients are made with them, chunk by chunk.

    So logits are never all there, and none is computed twice. Only the gradient of the losses' sum is known.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
        dtype = _product_dtype(states)
        inputs, weights = states.to(dtype), head.to(dtype)
        losses = torch.zeros(len(states), dtype=_precise(dtype), device=states.device)
        # of what learns alone: in validation nothing does, and a part may be frozen
        to_states, to_head = (
            torch.zeros(x.shape, dtype=losses.dtype, device=x.device) if learns and needed else None
            for x, needed in zip((states, head), ctx.needs_input_grad)
        )
        size = max(1, MOST_LOGITS.get(states.device.type, 2**26) // head.shape[1])
        for k, weight in enumerate(weights):
            for start in range(0, len(states), size):
                part = slice(start, start + size)
                loss, gradient = _losses(inputs[part] @ weight.T, labels[part, k, None])
                losses[part] += loss
                if to_states is not None:
                    to_states[part] += gradient @ weight
                if to_head is not None:
                    to_head[k] += gradient.T @ inputs[part]
        ctx.save_for_backward(to_states, to_head)
        ctx.of_each, ctx.dtypes = 1 / len(head), (states.dtype, head.dtype)
        losses /= len(head)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0] * ctx.of_each
        found = [None if it is None else (it * scale).to(dtype) for it, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return (*found, None, None)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus z-loss ``[m]`` of logits ``[m, V + 1]`` under labels ``[m, 1]``, and the sum's gradient, in
    the logits' dtype.
    """
    precise = logits.to(_precise(logits.dtype))
    log_p = precise.log_softmax(dim=-1)
    entropy = -log_p.gather(-1, labels)
    log_z = precise.gather(-1, labels) + entropy
    gradient = log_p.exp_().mul_(1 + 2 * Z_LOSS * log_z)
    gradient.scatter_add_(-1, labels, gradient.new_full((), -1.0).expand(labels.shape))
    return (entropy + Z_LOSS * log_z.square())[:, 0], gradient.to(logits.dtype)


def _product_dtype(x: Tensor) -> torch.dtype:
    """In which type autocast would multiply it."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def head_losses(head: Target, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus z-loss of the logits that a head reads from states ``[m, D]`` under labels ``[m, K]``.

    The sum, which has a gradient, and that of each state, a mean over codebooks ``[m]``, which has none.
    """
    return _HeadLosses.apply(states, head.head, labels, torch.is_grad_enabled())  # type: ignore[return-value]


def batch_loss(
    model: Transformer,
    batch: Batch,
    *,
    exits: Sequence[int] = (),
    skips: Sequence[int] = (),
    exit_weight: float = 0.1,
    length_weight: float = 0.1,
    align_weight: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """The sum of all losses of a batch, to be divided by the labels of the whole step; and each direction's share.

    `exits` are numbers of blocks after which the stream is read as well, each with `exit_weight`; blocks in `skips` are
    left out; `weights` scale the loss of target modalities; `align_weight` is that of `_align_loss`. The shares are
    ``{direction: (sum of its cross-entropies, labels)}``, detached.
    """
    aligned = batch.alignments if align_weight else {}
    middle = aligned_after(len(model.blocks))
    reads = sorted({*exits, middle} if aligned else exits)
    *read, last = model.states(batch, reads, skips)
    after = dict(zip(reads, read, strict=True))
    early = [after[number] for number in exits]
    total = last.new_zeros((), dtype=torch.float32)
    shares = torch.zeros(len(batch.directions), device=last.device)
    for name, target in batch.targets.items():
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        for states, scale in [*((states, exit_weight) for states in early), (last, 1.0)]:
            chosen = states.index_select(0, target.label_index)
            found, losses = head_losses(model.targets[name], chosen, target.labels)
            total = total + weight * scale * found
        total = total + weight * length_weight * _length_loss(model, name, target, last)
        shares.index_add_(0, target.label_directions, losses)
    for name, alignments in aligned.items():
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        total = total + weight * align_weight * _align_loss(model, name, alignments, after[middle])
    counted = zip(batch.directions, shares, batch.direction_labels, strict=True)
    return total, {direction: (share, count) for direction, share, count in counted if count}


def _length_loss(model: Transformer, name: str, target: PackedTargets, states: Tensor) -> Tensor:
    head = model.targets[name].length
    if head is None or not len(target.length_index):
        return states.new_zeros((), dtype=torch.float32)
    logits = head(states.index_select(0, target.length_index))
    return F.cross_entropy(logits.float(), target.length_labels, reduction="sum")


def _align_loss(model: Transformer, name: str, aligned: PackedAlignments, states: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006): the sources' own tokens must spell the target.

    They are read by the target's head, whose end means here that nothing is said. A target that is longer than its
    source counts nothing.
    """
    total, size = states.new_zeros((), dtype=torch.float32), model.targets[name].head.shape[1]
    labels = aligned.labels.split(aligned.label_lengths)
    lengths, label_lengths = torch.tensor(aligned.lengths), torch.tensor(aligned.label_lengths)
    starts = lengths.cumsum(0) - lengths
    groups = alike(aligned.lengths, MOST_LOGITS.get(states.device.type, 2**26) // size)
    for some in groups:
        longest = int(lengths[some].max())
        # tokens of shorter ones are read again up to the longest's: what is said there counts nothing
        places = starts[some] + torch.minimum(torch.arange(longest)[:, None], lengths[some] - 1)  # [T, B]
        index = aligned.index[places.flatten().to(states.device, non_blocking=True)]
        asked = torch.cat([labels[number] for number in some])
        least = partial(_spelling_loss, model, name, asked=asked, lengths=(lengths[some], label_lengths[some]))
        chosen = states.index_select(0, index).unflatten(0, places.shape)
        # of several groups, what is said is made again in the backward pass: never are all log-probabilities there
        total = total + (checkpoint(least, chosen, use_reentrant=False) if len(groups) > 1 else least(chosen))
    return total


def _spelling_loss(
    model: Transformer, name: str, states: Tensor, asked: Tensor, lengths: tuple[Tensor, Tensor]
) -> Tensor:
    """That states ``[T, B, D]`` of sources of these lengths spell the targets `asked`, one after another."""
    said = spelling(model, name, states.flatten(0, 1)).unflatten(0, states.shape[:2])
    return F.ctc_loss(said, asked, *lengths, said.shape[-1] - 1, "sum", zero_infinity=True)


def alike(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of what has these lengths, in groups of about one length, each with at most `most` tokens when padded."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= most:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
