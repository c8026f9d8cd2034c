"""The key/value cache: prefixes computed once, packed; then new tokens that look at them.

Letters: B rows (requests), P the longest prefix, S slots of the cache, G key/value heads, C head size, T new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyxform.attention import CachedAttention, Recorder, packed_attention
from anyxform.layers import rope
from anyxform.model import Transformer
from anyxform.sequence import Example, pack


@dataclass
class KVCache:
    """Each block's keys and values ``[B, S, G, C]``: the prefix from the left, the target from slot P on."""

    keys: list[Tensor]
    values: list[Tensor]
    prefix: Tensor  # [B, P] bool: which slots of the prefix are not padding
    first: Tensor  # [B], the position of the first target token
    states: Tensor  # [B, D], the markers' states, from which the first token and the length are read

    def rows(self, index: Tensor) -> "KVCache":
        """The cache of these rows, in this order; rows may come several times (beams)."""
        keys, values = [k[index] for k in self.keys], [v[index] for v in self.values]
        return KVCache(keys, values, self.prefix[index], self.first[index], self.states[index])


@torch.no_grad()
def prefill(model: Transformer, examples: Sequence[Example], room: int) -> KVCache:
    """Run the prefixes of examples (their targets must be empty) packed, and keep their keys and values.

    `room`: slots for target tokens behind the longest prefix.
    """
    batch = pack(examples, model.condition_ids).to(model.norm.weight.device)
    lengths = batch.segments.lengths
    attend = packed_attention(batch.segments, batch.size, batch.positions.device)
    recorders = [Recorder(attend) for _ in model.blocks]
    x = model.embed(batch)
    (states,) = model.run_blocks(x, rope(batch.positions, model.head_dim, model.rope_theta), recorders)

    def padded(packed: Tensor | None) -> Tensor:
        assert packed is not None
        rows = pad_sequence(list(packed[: sum(lengths)].split(lengths)), batch_first=True)
        return torch.cat([rows, rows.new_zeros(len(lengths), room, *rows.shape[2:])], dim=1)

    ends = torch.tensor(lengths, device=x.device)
    last = ends.cumsum(0) - 1
    return KVCache(
        keys=[padded(recorder.keys) for recorder in recorders],
        values=[padded(recorder.values) for recorder in recorders],
        prefix=torch.arange(max(lengths), device=x.device) < ends[:, None],
        first=batch.positions[last, 0] + 1,
        states=states[last],
    )


@torch.no_grad()
def advance(model: Transformer, cache: KVCache, x: Tensor, positions: Tensor, start: int, sees: Tensor) -> Tensor:
    """Put target tokens ``[B, T, D]`` into the cache from target slot `start` on; their states ``[B, T, D]``.

    `positions` ``[B, T, 3]``; `sees` ``[B, T, start + T]`` (bool): which target slots each token may look at.
    """
    longest = cache.prefix.shape[1]
    slots = slice(longest + start, longest + start + x.shape[1])
    prefix = cache.prefix[:, None, :].expand(-1, x.shape[1], -1)
    mask = torch.cat([prefix, sees], dim=-1).unsqueeze(1)
    attends = [CachedAttention(keys, values, slots, mask) for keys, values in zip(cache.keys, cache.values)]
    (states,) = model.run_blocks(x, rope(positions, model.head_dim, model.rope_theta), attends)
    return states
