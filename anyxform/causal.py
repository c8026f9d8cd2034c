"""Causal attention on CPUs whose gradient is computed in blocks of queries: of texts of `LENGTHS` torch's takes longer.

Letters: B segments, H heads, G key/value heads, of which R heads each share one, T tokens, C head size.
"""

import math
from typing import Any

import torch
from torch import Tensor

LENGTHS = range(256, 1025)
"""Tokens for which this is faster, forward and backward by 1.13 at 512 (`python -m benchmarks.attention`)."""
ROWS = 64
"""Queries of a block."""


class CausalAttention(torch.autograd.Function):
    """Queries ``[B, H, T, C]``, keys and values ``[B, G, T, C]`` in fp32 to outputs ``[B, H, T, C]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, output, logsumexp)
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return causal_backward(gradients[0], *ctx.saved_tensors)


@torch.library.custom_op("anyxform::causal_backward", mutates_args=())
def causal_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values. An operator, so that its operations are counted as one."""
    tokens, scale, shared = q.shape[2], q.shape[3] ** -0.5, q.shape[1] // k.shape[1]
    to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    unseen = torch.full((ROWS, ROWS), -math.inf, device=q.device).triu_(1)
    common = (gradient * output).sum(-1)  # of the gradient, what all scores of a query have in common
    for number, (keys, values) in enumerate(zip(k, v)):
        key_sums, value_sums = torch.zeros_like(keys), torch.zeros_like(values)
        for start in range(0, tokens, ROWS):
            rows, end = slice(start, start + ROWS), min(start + ROWS, tokens)
            query, given, total, along = (  # heads that share keys stand one below the other
                x[number, :, rows].unflatten(0, (-1, shared)).flatten(1, 2)
                for x in (q, gradient, logsumexp.unsqueeze(-1), common.unsqueeze(-1))
            )
            scores = (query @ keys[:, :end].mT).mul_(scale).unflatten(1, (shared, -1))
            scores[..., start:] += unseen[: end - start, : end - start]
            weights = scores.flatten(1, 2).sub_(total).exp_()
            value_sums[:, :end].baddbmm_(weights.mT, given)
            to_scores = (given @ values[:, :end].mT).sub_(along).mul_(weights)
            to_q[number, :, rows] = (to_scores @ keys[:, :end]).mul_(scale).view(to_q[number, :, rows].shape)
            key_sums[:, :end].baddbmm_(to_scores.mT, query, alpha=scale)
        to_k[number], to_v[number] = key_sums, value_sums
    return to_q, to_k, to_v


@causal_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
