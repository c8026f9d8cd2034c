"""The key/value cache: prefixes are computed once, then target tokens look at them.

Letters: L blocks, B rows, P tokens of the longest prefix, S slots, G key/value heads, C head size, T new tokens,
D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyxform.attention import CachedAttention
from anyxform.layers import rope
from anyxform.model import Transformer
from anyxform.sequence import AXES, Example, Source, pack


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all blocks. Slots [0, P) hold the prefixes, left-aligned; targets go from slot P on."""

    keys: Tensor  # [L, B, S, G, C]
    values: Tensor  # [L, B, S, G, C]
    prefix: Tensor  # [B, P] bool: which slots hold a prefix, and not padding
    first: Tensor  # [B], the position of the first target token
    marker: Tensor  # [B, D], the state of the prefix' last token, from which the first code and the length are read

    def rows(self, index: Tensor) -> "KVCache":
        """The cache of these rows, in this order; a row may come several times (beams)."""
        keys, values = self.keys[:, index], self.values[:, index]
        return KVCache(keys, values, self.prefix[index], self.first[index], self.marker[index])

    def reorder(self, index: Tensor, length: int) -> None:
        """Give the first rows the first `length` target slots of other rows with the same prefix, in place."""
        target = slice(self.prefix.shape[1], self.prefix.shape[1] + length)
        for part in (self.keys, self.values):
            part[:, : len(index), target] = part[:, index, target]

    def grown(self, room: int) -> "KVCache":
        """The cache with `room` more slots."""
        more = (*self.keys.shape[:2], room, *self.keys.shape[3:])
        keys, values = (torch.cat([x, x.new_empty(more)], dim=2) for x in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


@torch.no_grad()
def prefill(model: Transformer, examples: Sequence[Example], room: int) -> KVCache:
    """Run the prefixes of `examples`, and leave `room` slots for target tokens. Their targets must be empty.

    Embeddings are computed packed, the blocks on one padded batch (sort by length): on every device and for every
    size this is the kernel that decoding uses, so that nothing is compiled.
    """
    laid = lay_out(model, examples)
    rows, longest = laid.prefix.shape
    heads = model.config()["num_kv_heads"]
    shape = (len(model.blocks), rows, longest + room, heads, model.head_dim)
    cache = KVCache(
        keys=laid.x.new_empty(shape),
        values=laid.x.new_empty(shape),
        prefix=laid.prefix,
        first=laid.first,
        marker=laid.markers(laid.x),  # not yet the state: see below
    )
    sees = laid.prefix[:, None, :].expand(-1, longest, -1)
    states = _run(model, cache, laid.x, laid.positions, slice(0, longest), sees)
    return replace(cache, marker=laid.markers(states))


@dataclass(frozen=True)
class Laid:
    """Embedded prefixes, one a row, left-aligned, before any block."""

    x: Tensor  # [B, P, D]
    positions: Tensor  # [B, P, 3]
    prefix: Tensor  # [B, P] bool: what is no padding
    along: Tensor  # [B] bool: whose targets begin where their sources do

    @property
    def first(self) -> Tensor:
        """The position of each row's first target token ``[B]``."""
        after = self.markers(self.positions)[:, 0] + 1
        return after.masked_fill(self.along, 0)

    def markers(self, x: Tensor) -> Tensor:
        """Of what is there for each token ``[B, P, …]`` that of each prefix' last one ``[B, …]``."""
        return x[torch.arange(len(x), device=x.device), self.prefix.sum(dim=1) - 1]


@torch.no_grad()
def lay_out(model: Transformer, examples: Sequence[Example]) -> Laid:
    """The prefixes of `examples`, whose targets must be empty, as one padded batch."""
    weight = model.norm.weight
    examples = [replace(it, sources=tuple(cast(source, weight.dtype) for source in it.sources)) for it in examples]
    batch = pack(examples, model.condition_ids).to(weight.device)
    lengths = torch.tensor(batch.segments.prefixes, device=weight.device)
    rows, longest = len(examples), int(lengths.max())
    prefix = torch.arange(longest, device=weight.device) < lengths[:, None]
    x = weight.new_zeros(rows, longest, model.dim)
    positions = batch.positions.new_zeros(rows, longest, AXES)
    x[prefix], positions[prefix] = model.embed(batch).to(x.dtype), batch.positions
    along = torch.tensor([it.target.modality in model.along for it in examples], device=weight.device)
    return Laid(x, positions, prefix, along)


@torch.no_grad()
def advance(model: Transformer, cache: KVCache, x: Tensor, offsets: Tensor, start: int, sees: Tensor) -> Tensor:
    """Write target tokens into the cache's target slots from `start` on, and return their states ``[B, T, D]``.

    `x`: embeddings ``[B, T, D]``; `offsets` ``[T, 3]`` or ``[B, T, 3]``: positions counted from the target's first;
    `sees` ``[B, T, start + T]`` (bool): the target slots that each token looks at, beside the whole prefix.
    """
    longest, tokens = cache.prefix.shape[1], x.shape[1]
    mask = torch.cat([cache.prefix[:, None, :].expand(-1, tokens, -1), sees], dim=-1)
    slots = slice(longest + start, longest + start + tokens)
    return _run(model, cache, x, cache.first[:, None, None] + offsets, slots, mask)


def _run(model: Transformer, cache: KVCache, x: Tensor, positions: Tensor, slots: slice, sees: Tensor) -> Tensor:
    # the same for all heads; added, as a mask of truths would be turned into one to add in every block
    mask = torch.zeros(sees.shape, dtype=x.dtype, device=x.device).masked_fill_(~sees, -math.inf).unsqueeze(1)
    attends = [CachedAttention(keys, values, slots, mask) for keys, values in zip(cache.keys, cache.values)]
    return model.run_blocks(x, rope(positions, model.head_dim, model.rope_theta), attends)[-1]


def cast(source: Source, dtype: torch.dtype) -> Source:
    """A source whose values, if they are no whole numbers, have the dtype of the weights."""
    return replace(source, values=source.values.to(dtype)) if source.values.is_floating_point() else source
