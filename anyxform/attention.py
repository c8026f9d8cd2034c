"""How queries reach keys: backends of the one definition `anyxform.sequence.may_attend`, and the cache for decoding.

Each backend is called with queries ``[..., H, C]`` and keys and values ``[..., G, C]`` (see `anyxform.layers.Attend`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyxform.causal import LENGTHS, CausalAttention
from anyxform.layers import Attend
from anyxform.sequence import Segments, may_attend


def packed_attention(segments: Segments, size: int, device: torch.device) -> Attend:
    """The fastest backend for a packed row on this device. Measurements: docs/design.md."""
    if device.type == "cuda":
        return FlexAttention(segments, size, device)
    return SegmentAttention(segments, size)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of ``[B, H, T, C]``, groups of heads sharing keys and values."""
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


class DenseAttention:
    """One mask over the whole row: the reference, and too slow for anything else."""

    def __init__(self, segments: Segments, size: int) -> None:
        self.mask = may_attend(segments, size)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return sdpa(q, k, v, self.mask.to(q.device))[0].transpose(0, 1)


BLOCK = 128
"""Tokens of a block of FlexAttention."""
SHORT, NEAR = 256, (4, 0.15)
"""Segments of at most so many tokens are padded to a longer one's length, if that is so many tokens, or so large a part
of it, longer at most: a call of the kernel for each of them would take longer than what is padded."""
LARGE, LONG = 2**16, 1024
"""Scores of a call from which on, and tokens of a segment up to which, `_weighed` is faster than torch's kernel."""


class SegmentAttention:
    """Segments of about one length together: the fastest on CPUs; nothing is computed across them."""

    def __init__(self, segments: Segments, size: int) -> None:  # `size`: as the other backends want it
        self.groups = [_Group(segments, numbers) for numbers in _near(segments.lengths)]
        self.tokens = sum(segments.lengths)
        self.sizes = [group.count * group.longest for group in self.groups]
        self.in_place = len(self.groups) == 1 and self.sizes[0] == self.tokens  # nothing has to be copied
        starts = np.array(segments.starts)
        padded = [starts[group.numbers, None] + group.places for group in self.groups]
        index = np.concatenate([part.ravel() for part in padded] or [np.zeros(0, dtype=np.int64)])
        # of a token that stands there several times, as padding too, its own place is the first
        self.index, self.own = torch.from_numpy(index), torch.from_numpy(np.unique(index, return_index=True)[1])

    @torch.autocast("cpu", enabled=False)  # it would cast the inputs of the kernel to bf16 again
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype, rest = q.dtype, q[self.tokens :]  # padding is never read: passed through to keep the shape
        if not self.groups:
            return q
        if dtype != torch.bfloat16:
            q, k, v = q.float(), k.float(), v.float()
        if self.in_place:
            parts = [[x[: self.tokens]] for x in (q, k, v)]
        else:
            parts = [list(_Padded.apply(x, self.index, self.own).split(self.sizes)) for x in (q, k, v)]
        outputs = [self._attended(group, *given).to(dtype) for group, *given in zip(self.groups, *parts)]
        output = outputs[0] if self.in_place else _Packed.apply(torch.cat(outputs), self.own)
        return torch.cat([output, rest]) if len(rest) else output

    @staticmethod
    def _attended(group: "_Group", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of a group's tokens ``[B · T, H, C]``."""
        q, k, v = (x.unflatten(0, (group.count, group.longest)).transpose(1, 2) for x in (q, k, v))
        if q.dtype == torch.bfloat16 and group.longest <= LONG and q.shape[1] * group.scores >= LARGE:
            output = _weighed(q, k, v, group)
        else:
            output = _by_kernel(q.float(), k.float(), v.float(), group)
        return output.transpose(1, 2).flatten(0, 1)


def _near(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of segments that are not empty, those of about one length together; the longest first."""
    groups: list[list[int]] = []
    there = (number for number, length in enumerate(lengths) if length)
    for number in sorted(there, key=lambda number: -lengths[number]):
        longest = lengths[groups[-1][0]] if groups else 0
        near = max(NEAR[0], NEAR[1] * longest) if longest <= SHORT else 0
        if groups and longest - lengths[number] <= near:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


class _Group:
    """Segments that are padded to one length, and who may look at whom in them. Padding looks, and is not looked at."""

    def __init__(self, segments: Segments, numbers: Sequence[int]) -> None:
        lengths = np.array(segments.lengths)[numbers]
        self.numbers, self.count, self.longest = numbers, len(numbers), int(lengths.max())
        self.scores = self.count * self.longest**2
        self.places = np.minimum(np.arange(self.longest), lengths[:, None] - 1)  # [B, T], of each segment's tokens
        shapes = [(segments.prefixes[n], segments.targets[n], segments.causal[n]) for n in numbers]
        self.shapes = shapes if len(set(shapes)) > 1 else shapes[:1]
        self.text_alone = all(prefix == 0 and causal for prefix, _, causal in shapes)
        self.all_seen = len(self.shapes) == 1 and shapes[0][1] == 0
        self.masks: dict[torch.dtype, Tensor] = {}

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to scores ``[B or 1, 1, T, T]``; None where everything is seen. Made once for all blocks."""
        if not self.all_seen and dtype not in self.masks:
            prefixes, targets, causal = (np.array(part)[:, None, None] for part in zip(*self.shapes))
            row, column = np.arange(self.longest)[:, None], np.arange(self.longest)
            target = (row >= prefixes) & (column < prefixes + targets)
            seen = (column < prefixes) | (target & (~causal | (column <= row) | (row >= prefixes + targets)))
            self.masks[dtype] = torch.from_numpy(np.where(seen, np.float32(0), -np.inf)).to(dtype).unsqueeze(1)
        return self.masks.get(dtype)


class _Padded(torch.autograd.Function):
    """Tokens ``[N, …]`` to where they stand in groups. The gradient of what is padding is 0, as nobody looks at it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, own: Tensor) -> Tensor:
        ctx.save_for_backward(own)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, own)
        rest = gradient.new_zeros(ctx.size - len(own), *gradient.shape[1:])
        return torch.cat([gradient, rest]) if len(rest) else gradient, None, None


class _Packed(torch.autograd.Function):
    """The way back: of tokens in groups each one that is no padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Tensor) -> Tensor:
        ctx.save_for_backward(own)
        ctx.size = len(x)
        return x.index_select(0, own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        padded = gradients[0].new_zeros(ctx.size, *gradients[0].shape[1:])
        return padded.index_copy_(0, own, gradients[0]), None


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, group: _Group) -> Tensor:
    """Attention ``[B, H, T, C]`` by torch's kernel, whose backward on CPUs takes twice as long in bf16 as in fp32."""
    # the kernel leaves out what no token of a text alone sees
    if group.text_alone and group.longest in LENGTHS and q.is_cpu and torch.is_grad_enabled():
        return CausalAttention.apply(q, k, v)  # type: ignore[return-value]
    return sdpa(q, k, v, None if group.text_alone else group.mask(q.dtype), causal=group.text_alone)


def _weighed(q: Tensor, k: Tensor, v: Tensor, group: _Group) -> Tensor:
    """Attention as it is defined, all weights in memory: products in the inputs' dtype, the softmax in fp32 inside."""
    heads, tokens = q.shape[1:3]
    shared = heads // k.shape[1]  # heads that share keys stand one below the other: nothing is copied for them
    scores = (q * q.shape[-1] ** -0.5).unflatten(1, (-1, shared)).flatten(2, 3) @ k.mT  # [B, G, shared · T, T]
    if (mask := group.mask(q.dtype)) is not None:
        scores += mask if shared == 1 else mask.repeat(1, 1, shared, 1)
    return (scores.softmax(-1) @ v).unflatten(2, (shared, tokens)).flatten(1, 2)


class FlexAttention:
    """A compiled block mask, for CUDA. Rows of one fixed size compile once; nothing waits for the device."""

    def __init__(self, segments: Segments, size: int, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        self.flex = flex_attention
        first, last = seen_spans(segments, size)
        some, whole = (_in_order(blocks.to(device, non_blocking=True)) for blocks in seen_blocks(first, last))
        first, last = (part.to(device, non_blocking=True) for part in (first, last))

        def may(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return (column >= first[row]) & (column <= last[row])

        lengths = (size, size)
        self.mask = BlockMask.from_kv_blocks(*some, *whole, BLOCK_SIZE=BLOCK, mask_mod=may, seq_lengths=lengths)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        # within a compiled block it is compiled with all that is around it
        flex = self.flex if torch.compiler.is_compiling() else _compiled_flex(q.device.type)
        output = flex(q, k, v, block_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])
        return output[0].transpose(0, 1)


def seen_spans(segments: Segments, size: int) -> tuple[Tensor, Tensor]:
    """The first and the last token ``[size]`` that each token looks at: every row of `may_attend` is one span."""
    starts, prefixes, targets = (
        torch.tensor(part, dtype=torch.int64) for part in (segments.starts, segments.prefixes, segments.targets)
    )
    number = torch.arange(len(starts)).repeat_interleave(prefixes + targets)
    first = torch.arange(size)  # padding looks at itself alone
    last, own = first.clone(), first[: len(number)].clone()
    middle = (starts + prefixes)[number]
    ends = torch.where(torch.tensor(segments.causal, dtype=torch.bool)[number], own, (middle + targets[number]) - 1)
    first[: len(number)] = starts[number]
    last[: len(number)] = torch.where(own < middle, middle - 1, ends)
    return first, last


def seen_blocks(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Which blocks of tokens each block looks at ``[blocks, blocks]``: in part, and as a whole.

    Of the spans of its tokens, as the mask itself would be the square of a row. What is between two spans may count as
    looked at in part.
    """
    behind = torch.arange(len(first), -(-len(first) // BLOCK) * BLOCK)
    first, last = (torch.cat([part, behind]).view(-1, BLOCK) for part in (first, last))
    left = torch.arange(len(first)) * BLOCK
    right = left + BLOCK - 1
    seen = (right >= first.amin(1, keepdim=True)) & (left <= last.amax(1, keepdim=True))
    whole = (left >= first.amax(1, keepdim=True)) & (right <= last.amin(1, keepdim=True))
    return seen & ~whole, whole


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block, as flex wants it: how many blocks it looks at, and all of them with those in front."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.int()[None, None]


def steady_size(tokens: int, device: torch.device) -> int | None:
    """To how many tokens a row is padded, that rows of any length need few compiled kernels; None: none are needed."""
    return max(BLOCK, 1 << (tokens - 1).bit_length()) if device.type == "cuda" else None


@lru_cache(maxsize=2)
def _compiled_flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


class CachedAttention:
    """New tokens ``[B, T, H, C]`` look at a cache ``[B, S, G, C]`` and at one another.

    Writes the new keys and values to the `slots` of the cache, a slice or numbers ``[T]``, and attends to as many slots
    as `mask` ``[B, 1, T, slots]`` has.
    """

    def __init__(self, keys: Tensor, values: Tensor, slots: slice | Tensor, mask: Tensor) -> None:
        self.keys, self.values, self.slots, self.mask = keys, values, slots, mask

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys[:, self.slots], self.values[:, self.slots] = k, v
        end = self.mask.shape[-1]
        keys, values = self.keys[:, :end].to(q.dtype), self.values[:, :end].to(q.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, keys, values))
        return sdpa(q, k, v, self.mask).transpose(1, 2)


class RowAttention:
    """One new token a row ``[B, 1, H, C]``, each row at a slot of its own of the cache ``[B, S, G, C]``.

    Writes the new keys and values to slot `slots[b]` of row b, in place, and attends to all slots up to there. Groups
    of heads share keys and values as they are: none is copied.
    """

    def __init__(self, keys: Tensor, values: Tensor, slots: "Slots") -> None:
        self.keys, self.values, self.slots = keys, values, slots

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.slots.write(self.keys, k)
        self.slots.write(self.values, v)
        keys, values = (x[:, : self.slots.end].to(q.dtype).transpose(1, 2) for x in (self.keys, self.values))
        return sdpa(q.transpose(1, 2), keys, values, self.slots.mask).transpose(1, 2)


class Slots:
    """Where each of B rows writes its next token; the same in all blocks, so prepared once a step.

    Rows that stand at one slot, such as a single one, need no mask and no index.
    """

    def __init__(self, slots: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.end = max(slots) + 1
        self.same = min(slots) + 1 == self.end
        self.mask: Tensor | None = None
        if not self.same:
            own = torch.tensor(slots, device=device)
            unseen = torch.arange(self.end, device=device) > own[:, None]
            self.mask = torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, -math.inf)
            self.mask = self.mask[:, None, None]  # [B, 1, 1, end]
            self.index = own + size * torch.arange(len(slots), device=device)

    def write(self, cache: Tensor, new: Tensor) -> None:
        """New keys or values ``[B, 1, G, C]`` into the cache ``[B, S, G, C]``."""
        if self.same:
            cache[:, self.end - 1 : self.end] = new
        else:
            cache.flatten(0, 1).index_copy_(0, self.index, new[:, 0].to(cache.dtype))
