"""What is exported: the prefix of one request, the next token, all tokens of a masked target.

They differ from `anyxform.cache` in what a graph needs: sizes that stay the same, nothing written into an input.

Letters: L blocks, P tokens of the prefix, S slots of the cache, T new tokens, G key/value heads, C head size, K
codebooks, V codes, D width, n first size of a preprocessed source.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyxform.layers import rope
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer
from anyxform.sequence import AXES, to_axes

CACHE = ("keys", "values", "length", "first")
"""The first outputs of a prefix: the cache ``[L, 1, S, G, C]``, its filled slots, the target's first position."""


class _Attention:
    """New tokens ``[1, T, H, C]`` look at one block's cache ``[1, S, G, C]``, where they may, and at one another."""

    def __init__(self, cache: tuple[Tensor, Tensor] | None, sees: Tensor | None) -> None:
        self.cache, self.sees = cache, sees
        self.new: tuple[Tensor, Tensor]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.new = k, v
        if self.cache is not None:
            k, v = (torch.cat(pair, dim=1) for pair in zip(self.cache, self.new))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.sees, enable_gqa=gqa).transpose(1, 2)


class _Stack(nn.Module):
    """The shared blocks."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.blocks, self.norm = model.blocks, model.norm
        self.head_dim, self.rope_theta = model.head_dim, model.rope_theta

    def forward(
        self, x: Tensor, positions: Tensor, cache: tuple[Tensor, Tensor] | None = None, sees: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings ``[T, D]`` at ``[T, 3]`` to states ``[T, D]`` and new keys and values ``[L, 1, T, G, C]``."""
        x, angles = x[None], rope(positions[None], self.head_dim, self.rope_theta)
        attends = [_Attention(cache and (cache[0][n], cache[1][n]), sees) for n in range(len(self.blocks))]
        for block, attend in zip(self.blocks, attends):
            x = block(x, angles, attend)
        keys, values = (torch.stack([attend.new[side] for attend in attends]) for side in (0, 1))
        return self.norm(x)[0], keys, values


class Prefill(nn.Module):
    """Preprocessed sources ``[n, ...]`` to the cache ``[L, 1, slots, G, C]``, its length, and where the target starts.

    The last output is what the marker says: left to right, the first token's logits ``[K, V + 1]``; masked, those of
    the number of tokens ``[max_length + 1]``, if it is not always the same.
    """

    conditions: Tensor

    def __init__(
        self,
        model: Transformer,
        sources: Sequence[Modality],
        conditions: Sequence[int],
        target: str,
        *,
        decoding: Decoding,
        slots: int,
    ) -> None:
        """`conditions`: the ids of what asks for the target, its marker last."""
        super().__init__()
        self.stack, self.modalities = _Stack(model), list(sources)
        self.front_ends = nn.ModuleList(model.front_ends[it.name] for it in sources)
        self.source_embeddings = nn.ParameterList(model.source_embedding[it.name] for it in sources)
        self.register_buffer("conditions", model.condition_embedding.weight[list(conditions)].detach())
        self.along = target in model.along
        self.slots, self.last, self.head = slots, "logits", model.targets[target]
        if decoding == "masked":
            self.head = self.head.length
            self.last = "" if self.head is None else "lengths"
        self.outputs = [*CACHE, self.last] if self.last else [*CACHE]

    def forward(self, *sources: Tensor) -> tuple[Tensor, ...]:
        parts, places, start = [], [], torch.zeros((), dtype=torch.long)
        for modality, front_end, embedding, values in zip(
            self.modalities, self.front_ends, self.source_embeddings, sources
        ):
            parts.append(front_end(values, [values.shape[0]]) + embedding)
            places.append(to_axes(modality.source_positions(values)) + start)
            start = places[-1].max() + 1
        asked = len(self.conditions)
        places.append((start + torch.arange(asked))[:, None].expand(-1, AXES))
        x = torch.cat([*parts, self.conditions])
        states, keys, values = self.stack(x, torch.cat(places))
        length = torch.ones(x.shape[0], dtype=torch.long).sum()
        more = (0, 0, 0, 0, 0, self.slots - x.shape[0])
        first = (start + asked) * (not self.along)
        found = F.pad(keys, more), F.pad(values, more), length, first
        return *found, *self._last(states[-1])

    def _last(self, marker: Tensor) -> tuple[Tensor, ...]:
        if not self.last:
            return ()
        return (self.head.logits(marker) if self.last == "logits" else self.head(marker).float(),)


class _Target(nn.Module):
    """Tokens of the target behind a cache of S slots."""

    offsets: Tensor

    def __init__(self, model: Transformer, modality: Modality) -> None:
        super().__init__()
        self.stack, self.target = _Stack(model), model.targets[modality.name]
        self.register_buffer("offsets", to_axes(modality.code_positions(modality.max_length)).contiguous())

    def advance(
        self, codes: Tensor, places: Tensor, filled: Tensor, first: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``[T, K]`` at these places ``[T]`` of the target, which all look at the first `filled` slots."""
        tokens = codes.shape[0]
        cached = (torch.arange(keys.shape[2]) < filled).expand(tokens, -1)
        sees = torch.cat([cached, torch.ones(tokens, tokens, dtype=torch.bool)], dim=1)
        positions = first + self.offsets[places]
        states, keys, values = self.stack(self.target.embed(codes), positions, (keys, values), sees)
        return self.target.logits(states), keys, values


class Step(_Target):
    """Left to right: the codes ``[1, K]`` of the token at `place` to the logits ``[K, V + 1]`` of the next one.

    Its keys and values ``[L, 1, 1, G, C]`` are to be written into the cache at slot `length` + `place`.
    """

    inputs: ClassVar = ("codes", "place", "length", "first", "keys", "values")
    outputs: ClassVar = ("logits", "new_keys", "new_values")

    def forward(
        self, codes: Tensor, place: Tensor, length: Tensor, first: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, keys, values = self.advance(codes, place[None], length + place, first, keys, values)
        return logits[0], keys, values


class Parallel(_Target):
    """Masked: codes ``[T, K]`` of all tokens, V where one is hidden, to logits ``[T, K, V + 1]``."""

    inputs: ClassVar = ("codes", "length", "first", "keys", "values")
    outputs: ClassVar = ("logits",)

    def forward(self, codes: Tensor, length: Tensor, first: Tensor, keys: Tensor, values: Tensor) -> tuple[Any, ...]:
        return (self.advance(codes, torch.arange(codes.shape[0]), length, first, keys, values)[0],)
