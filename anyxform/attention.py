"""How queries reach keys: backends of the one definition `anyxform.sequence.may_attend`, and the cache for decoding.

Each backend is called with queries ``[..., H, C]`` and keys and values ``[..., G, C]`` (see `anyxform.layers.Attend`).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


LARGE_MASK = 256
"""Tokens of a segment beyond which few masks are kept: they are up to megabytes each, smaller ones many."""
BLOCK = 128
"""Tokens of a block of FlexAttention."""
_Shape = tuple[int, int, bool]
"""Of a segment: prefix, target, whether it is causal."""


class SegmentAttention:
    """A loop over the segments, those of one shape together: the fastest on CPUs; nothing is computed across them."""

    def __init__(self, segments: Segments, size: int) -> None:
        self.lengths = [*segments.lengths, size - sum(segments.lengths)]
        self.shapes: dict[_Shape, list[int]] = {}
        for number, shape in enumerate(zip(segments.prefixes, segments.targets, segments.causal)):
            self.shapes.setdefault(shape, []).append(number)

    @torch.autocast("cpu", enabled=False)  # it would cast the inputs of the kernel to bf16 again
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype, attended = q.dtype, _weighed
        if dtype != torch.bfloat16 or not self._are_large(q.shape[1]):
            attended, q, k, v = _by_kernel, q.float(), k.float(), v.float()
        if len(self.shapes) == 1 and self.lengths[-1] == 0:
            return self._alike(attended, q, k, v).to(dtype)
        # one split and one concatenation: slicing in a loop would make the backward quadratic
        parts = [x.transpose(0, 1).split(self.lengths, dim=1) for x in (q, k, v)]
        outputs = list(parts[0])  # padding, the last, is never read: passed through to keep the shape
        for shape, numbers in self.shapes.items():
            a, b, c = (_stacked([part[number] for number in numbers]) for part in parts)
            for number, output in zip(numbers, attended(a, b, c, shape).unbind()):
                outputs[number] = output
        return torch.cat(outputs, dim=1).transpose(0, 1).to(dtype)

    def _alike(self, attended: "Attended", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All segments of one shape: nothing has to be copied."""
        ((shape, numbers),) = self.shapes.items()
        a, b, c = (x.unflatten(0, (len(numbers), -1)).transpose(1, 2) for x in (q, k, v))
        return attended(a, b, c, shape).transpose(1, 2).flatten(0, 1)

    def _are_large(self, heads: int) -> bool:
        """Whether `_weighed` is the fastest: few calls for much, and not too much at once."""
        lengths = self.lengths[:-1]
        scores = heads * sum(length * length for length in lengths)
        return max(lengths, default=0) <= LONG and scores >= LARGE * len(self.shapes)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)) if len(parts) > 1 else parts[0].unsqueeze(0)  # which is no copy


Attended = Callable[[Tensor, Tensor, Tensor, _Shape], Tensor]
"""Queries, keys and values of segments of one shape ``[B, H, T, C]`` to outputs."""
LARGE, LONG = 2**16, 1024
"""Scores of a call from which on, and tokens of a segment up to which, `_weighed` is faster than torch's kernel."""


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, shape: _Shape) -> Tensor:
    """Attention by torch's kernel, whose backward on CPUs takes twice as long in bf16 as in fp32."""
    prefix, _, causal = shape
    text_alone = prefix == 0 and causal  # the kernel then leaves out what no token sees
    return sdpa(q, k, v, None if text_alone else _mask(*shape), causal=text_alone)


def _weighed(q: Tensor, k: Tensor, v: Tensor, shape: _Shape) -> Tensor:
    """Attention as it is defined, all weights in memory: products in the inputs' dtype, the softmax in fp32 inside."""
    heads, tokens = q.shape[1:3]
    shared = heads // k.shape[1]  # heads that share keys stand one below the other: nothing is copied for them
    scores = (q * q.shape[-1] ** -0.5).unflatten(1, (-1, shared)).flatten(2, 3) @ k.mT  # [B, G, shared · T, T]
    if shape[1]:  # without a target everything is seen
        scores += _added(shape, shared, q.dtype)
    return (scores.softmax(-1) @ v).unflatten(2, (shared, tokens)).flatten(1, 2)


def _mask(prefix: int, target: int, causal: bool) -> Tensor | None:
    """The mask of one segment; None where everything is seen. Kept: lengths repeat from layer to layer, row to row."""
    if target == 0:
        return None
    return (_large_mask if prefix + target > LARGE_MASK else _small_mask)(prefix, target, causal)


def _made_mask(prefix: int, target: int, causal: bool) -> Tensor:
    return may_attend(Segments([0], [prefix], [target], [causal]), prefix + target)


def _added(shape: _Shape, times: int, dtype: torch.dtype) -> Tensor:
    """The mask of one segment so many times, one below the other, as what is added to scores. Kept as those are."""
    return (_large_added if shape[0] + shape[1] > LARGE_MASK else _small_added)(shape, times, dtype)


def _made_added(shape: _Shape, times: int, dtype: torch.dtype) -> Tensor:
    mask = _made_mask(*shape)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf).repeat(times, 1)


_small_mask, _large_mask = lru_cache(maxsize=2048)(_made_mask), lru_cache(maxsize=32)(_made_mask)
_small_added, _large_added = lru_cache(maxsize=256)(_made_added), lru_cache(maxsize=32)(_made_added)


def forget_masks() -> None:
    """Make masks anew from here on."""
    for kept in (_small_mask, _large_mask, _small_added, _large_added):
        kept.cache_clear()


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
