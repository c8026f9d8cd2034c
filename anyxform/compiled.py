"""A decode step of fixed shapes, compiled: for long-running use, as compiling takes longer than most commands run.

Letters: B rows, R rows of a compiled size, S slots, G key/value heads, C head size, D width.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyxform.attention import sdpa
from anyxform.layers import Attend, Linear, computed_once, rope
from anyxform.model import Transformer
from anyxform.quantize import linears

SLOTS = 256
"""A cache has a multiple of so many, or a half or a quarter of them, so that few sizes are compiled."""


class CompiledStep:
    """One token of each row through the whole stack, compiled once for each power of two of rows and each cache size.

    Rows beyond those in use are computed and not read. Every slot of the cache is looked at, under a mask. On CUDA a
    step is a CUDA graph, which one call replays.
    """

    def __init__(self, model: Transformer, backend: str = "inductor") -> None:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)  # one for each size
        self.model = model
        if model.norm.weight.device.type == "cpu":
            _by_rows(model)
        self.graphs = model.norm.weight.is_cuda
        self.of_thread = threading.local()
        mode = "reduce-overhead" if self.graphs else None
        self.step: Any = torch.compile(_step, dynamic=False, fullgraph=True, backend=backend, mode=mode)

    @staticmethod
    def size(rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots that a cache with room for so many has: few sizes, as each is compiled."""
        unit = min(SLOTS, max(SLOTS // 4, _power_of_two(slots)))
        return _power_of_two(rows), -(-slots // unit) * unit

    def memory(self, shape: Sequence[int]) -> list[Tensor]:
        """Keys of each block, then values, all zero.

        On CUDA a thread takes those of one shape once, for one cache after another: a graph is recorded for addresses.
        """
        weight, count = self.model.norm.weight, 2 * len(self.model.blocks)
        if not self.graphs:
            return [weight.new_zeros(shape) for _ in range(count)]
        if not hasattr(self.of_thread, "taken"):
            self.of_thread.taken = {}
        taken: dict[tuple[int, ...], list[Tensor]] = self.of_thread.taken
        with torch.inference_mode(False):  # else they could not be written outside of it
            if (key := tuple(shape)) not in taken:
                taken[key] = [weight.new_zeros(shape) for _ in range(count)]
            torch._foreach_zero_(taken[key])
        return taken[key]

    def __call__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], x: Tensor, positions: Tensor, slots: Sequence[int]
    ) -> Tensor:
        """States ``[B, D]`` of tokens ``[B, D]`` at positions ``[B, 3]``.

        Their keys and values are written into those of each block ``[rows, S, G, C]``, row b's at `slots[b]`.
        """
        count = len(x)
        size = _power_of_two(count)
        more = size - count
        own = torch.tensor([*slots, *[0] * more], device=x.device)
        x, positions = (F.pad(part, (0, 0, 0, more)) for part in (x, positions))
        used, read = ([part[:size] for part in parts] for parts in (keys, values))
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
            for part in (*used, *read):  # written by the graph at the addresses that it was recorded with
                torch._dynamo.mark_static_address(part, guard=False)
        states = self.step(self.model, used, read, x, positions, own)[:count]
        return states.clone() if self.graphs else states  # the next step writes where these are


@torch.no_grad()
def _by_rows(model: Transformer) -> None:
    """Lay matrices out as the compiler's loops read them, an output's weights one after another."""
    for block in model.blocks:
        for part, name in linears(block):
            linear = getattr(part, name)
            if isinstance(linear, Linear):
                linear.weight = nn.Parameter(linear.weight.contiguous(), requires_grad=False)


def _power_of_two(number: int) -> int:
    """The next one, or the number itself."""
    return 1 << (number - 1).bit_length()


def _step(
    model: Transformer, keys: Sequence[Tensor], values: Sequence[Tensor], x: Tensor, positions: Tensor, slots: Tensor
) -> Tensor:
    unseen = torch.arange(keys[0].shape[1], device=x.device) > slots[:, None]
    mask = torch.zeros_like(unseen, dtype=x.dtype).masked_fill(unseen, -math.inf)[:, None, None]
    attends = [_attention(*parts, slots, mask) for parts in zip(keys, values)]
    return model.run_blocks(x[:, None], rope(positions[:, None], model.head_dim, model.rope_theta), attends)[-1][:, 0]


def _attention(keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor) -> Attend:
    rows = torch.arange(len(slots), device=slots.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[rows, slots], values[rows, slots] = k[:, 0].to(keys.dtype), v[:, 0].to(values.dtype)
        if q.device.type == "cpu":
            return _looped(q[:, 0], keys, values, mask)
        seen, read = (part.to(q.dtype).transpose(1, 2) for part in (keys, values))
        return sdpa(q.transpose(1, 2), seen, read, mask).transpose(1, 2)

    return attend


def _looped(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of queries ``[B, H, C]``, as loops of the compiler: a call of a kernel would take longer."""
    q = computed_once(q.float() * q.shape[-1] ** -0.5).unflatten(1, (keys.shape[2], -1))  # [B, G, R, C]
    keys, values = (part.float().transpose(1, 2).unsqueeze(2) for part in (keys, values))  # [B, G, 1, S, C]
    scores = computed_once((q.unsqueeze(3) * keys).sum(-1)) + mask.float()  # [B, G, R, S]
    weights = computed_once(scores.softmax(-1))
    return (weights.unsqueeze(-1) * values).sum(3).flatten(1, 2).to(mask.dtype).unsqueeze(1)
