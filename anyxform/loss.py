"""From a model and a batch to losses: cross-entropy per modality, z-loss, length of masked targets, early exits."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyxform.model import Target, Transformer
from anyxform.sequence import Batch, PackedTargets

Z_LOSS = 1e-4
"""Keeps the logarithm of the softmax' denominator near 0 (arXiv 2202.08906)."""
MOST_LOGITS = 2**26
"""256 MB in fp32."""


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy plus z-loss of logits ``[…, V]`` under labels ``[…]``, whose gradient is made in one tensor.

    Derived by autograd, it would be the sum of two of the size of the logits, one of them next to empty.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_z = logits.logsumexp(dim=-1)
        ctx.save_for_backward(logits, labels, log_z)
        return log_z - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) + Z_LOSS * log_z.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_z = ctx.saved_tensors
        (gradient,) = gradients
        scale = gradient * (1 + 2 * Z_LOSS * log_z)
        found = (logits - log_z.unsqueeze(-1)).exp_().mul_(scale.unsqueeze(-1))
        return found.scatter_add_(-1, labels.unsqueeze(-1), -gradient.unsqueeze(-1)), None


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus z-loss of logits ``[m, K, V + 1]`` under labels ``[m, K]``: ``[m]``, mean over codebooks."""
    losses: Tensor = _CrossEntropy.apply(logits, labels)
    return losses.mean(dim=-1)


def chunked_losses(head: Target, states: Tensor, labels: Tensor) -> Tensor:
    """`token_losses` of the logits that a head reads from states ``[m, D]``.

    No more than `MOST_LOGITS` of them are there at once: where there would be more, they are computed in chunks, and
    again in the backward pass.
    """
    size = max(1, MOST_LOGITS // head.head[:, :, 0].numel())
    if len(labels) <= size:
        return token_losses(head.logits(states), labels)

    def losses(some: Tensor, their: Tensor) -> Tensor:
        return token_losses(head.logits(some), their)

    chunks = zip(states.split(size), labels.split(size))
    parts = [checkpoint(losses, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(parts)


def batch_loss(
    model: Transformer,
    batch: Batch,
    *,
    exits: Sequence[int] = (),
    skips: Sequence[int] = (),
    exit_weight: float = 0.1,
    length_weight: float = 0.1,
    weights: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """The sum of all losses of a batch, to be divided by the labels of the whole step; and each direction's share.

    `exits` are numbers of blocks after which the stream is read as well, each with `exit_weight`; blocks in `skips` are
    left out; `weights` scale the loss of target modalities. The shares are ``{direction: (sum of its cross-entropies,
    labels)}``, detached.
    """
    *early, last = model.states(batch, exits, skips)
    total = last.new_zeros((), dtype=torch.float32)
    shares = torch.zeros(len(batch.directions), device=last.device)
    for name, target in batch.targets.items():
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        for states, scale in [*((states, exit_weight) for states in early), (last, 1.0)]:
            chosen = states.index_select(0, target.label_index)
            losses = chunked_losses(model.targets[name], chosen, target.labels)
            total = total + weight * scale * losses.sum()
        total = total + weight * length_weight * _length_loss(model, name, target, last)
        shares.index_add_(0, target.label_directions, losses.detach())
    counted = zip(batch.directions, shares, batch.direction_labels, strict=True)
    return total, {direction: (share, count) for direction, share, count in counted if count}


def _length_loss(model: Transformer, name: str, target: PackedTargets, states: Tensor) -> Tensor:
    head = model.targets[name].length
    if head is None or not len(target.length_index):
        return states.new_zeros((), dtype=torch.float32)
    logits = head(states.index_select(0, target.length_index))
    return F.cross_entropy(logits.float(), target.length_labels, reduction="sum")
