"""One request's tokens in the stack, of which each may have gone through another number of blocks.

What drafting with the first blocks and leaving early have in common. The prefix goes no deeper than a target token asks
for, and than it may. Letters: R rows of the request (2 with guidance, else 1), P slots of the prefix, S of all,
T tokens, D width, K codebooks, V codes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyxform.attention import CachedAttention
from anyxform.cache import Laid, lay_out
from anyxform.layers import rope
from anyxform.model import Transformer
from anyxform.sampling import Sampling, draw
from anyxform.sequence import Example

Places = slice | Tensor
"""Of target tokens, counted from the first: a range, or numbers ``[T]``."""


class Stream:
    """Prefix and target of one request, computed block by block as far as they are asked to be.

    Args:
        model: in eval mode.
        prefixes: the request's, one for each row, whose targets are empty.
        causal: whether a target token looks at none behind it; else at all that are there.
        prefix_depth: after how many blocks the prefix leaves, all but its last token, from which the first code is
            read; None: it does not.
    """

    def __init__(
        self, model: Transformer, prefixes: Sequence[Example], *, causal: bool, prefix_depth: int | None = None
    ) -> None:
        self.model, self.laid, self.causal = model, lay_out(model, prefixes), causal
        rows, self.start = self.laid.prefix.shape
        self.x, self.mask = self.laid.x, _mask(self.laid, 0, causal)
        self.angles = rope(self.laid.positions, model.head_dim, model.rope_theta)
        shape = (len(model.blocks), rows, self.start, model.config()["num_kv_heads"], model.head_dim)
        self.keys, self.values = self.x.new_empty(shape), self.x.new_empty(shape)
        self.prefix_blocks, self.prefix_depth = 0, prefix_depth or len(model.blocks)
        self.blocks: list[int] = []
        """Of each target token the number of blocks that hold its keys and values."""

    def grow(self, offsets: Tensor) -> None:
        """Make room for a target whose tokens have these positions ``[longest, 3]``, counted from its first."""
        model, more = self.model, len(offsets)
        angles = rope(self.laid.first[:, None, None] + offsets, model.head_dim, model.rope_theta)
        cos, sin = (torch.cat(pair, dim=1) for pair in zip(self.angles, angles))
        self.angles, self.mask = (cos, sin), _mask(self.laid, more, self.causal)
        self.x = torch.cat([self.x, self.x.new_zeros(len(self.x), more, model.dim)], dim=1)
        room = self.keys.new_empty(*self.keys.shape[:2], more, *self.keys.shape[3:])
        self.keys, self.values = torch.cat([self.keys, room], dim=2), torch.cat([self.values, room], dim=2)

    def put(self, x: Tensor, place: int = 0) -> None:
        """Put target tokens there, from `place` on, by embeddings ``[R, T, D]``; what stood there or behind goes."""
        self.blocks[place:] = [0] * x.shape[1]
        self.x[:, self.start + place : self.start + len(self.blocks)] = x

    @torch.no_grad()
    def marker(self, blocks: range) -> Tensor:
        """The state ``[R, 1, D]`` of the prefix' last token behind these blocks, into which the prefix is taken."""
        for number in blocks:
            self._catch_up(number)
        return self.model.norm(self.laid.markers(self.x[:, : self.start]))[:, None]

    @torch.no_grad()
    def run(self, blocks: range, places: Places) -> Tensor:
        """Take target tokens through blocks, the first of which they stand before; their states ``[R, T, D]``.

        In these blocks they look at the whole prefix, which is taken along, and at target tokens that have left the
        stack earlier: of those the keys and values are made of the stream that they left with (CALM, arXiv 2207.07061).
        """
        numbers = list(range(len(self.blocks)))[places] if isinstance(places, slice) else places.tolist()
        slots = (
            slice(self.start + numbers[0], self.start + numbers[-1] + 1)
            if isinstance(places, slice)
            else (self.start + places)
        )
        for number in blocks:
            self._catch_up(number)
            self._copy(number, set(numbers))
            self._run(number, slots, self.start + len(self.blocks))
            for place in numbers:
                self.blocks[place] = number + 1
        return self.model.norm(self.x[:, slots])

    def _catch_up(self, number: int) -> None:
        """The prefix, which looks at nothing but itself, into a block that it has not gone through."""
        if self.prefix_blocks != number:
            return
        if number < self.prefix_depth:
            self._run(number, slice(0, self.start), self.start)
        else:
            self._leave(number, slice(0, self.start))
            for row, length in enumerate(self.laid.prefix.sum(dim=1).tolist()):
                self._run(number, slice(length - 1, length), self.start, slice(row, row + 1))
        self.prefix_blocks = number + 1

    def _copy(self, number: int, going: set[int]) -> None:
        left = [place for place, blocks in enumerate(self.blocks) if blocks <= number and place not in going]
        if left:
            self._leave(number, self.start + torch.tensor(left, device=self.x.device))
            for place in left:
                self.blocks[place] = number + 1

    def _leave(self, number: int, slots: Places) -> None:
        """Keys and values in a block that what stands there does not go through."""
        block = self.model.blocks[number]
        _, keys, values = block.attention.project(block.norm1(self.x[:, slots]), self._rope(slots))
        self.keys[number][:, slots], self.values[number][:, slots] = keys, values

    def _run(self, number: int, slots: Places, end: int, rows: slice = slice(None)) -> None:
        attend = CachedAttention(
            self.keys[number][rows], self.values[number][rows], slots, self.mask[rows, :, slots, :end]
        )
        cos, sin = self._rope(slots)
        self.x[rows, slots] = self.model.blocks[number](self.x[rows, slots], (cos[rows], sin[rows]), attend)

    def _rope(self, slots: Places) -> tuple[Tensor, Tensor]:
        cos, sin = self.angles
        return cos[:, slots], sin[:, slots]


def _mask(laid: Laid, room: int, causal: bool) -> Tensor:
    """Who looks at whom ``[R, 1, S, S]``: 0 where a row's slot looks at a column's, else minus infinity, to be added.

    Truths would do, but they are turned into this in every block.
    """
    rows, start = laid.prefix.shape
    there = torch.cat([laid.prefix, laid.prefix.new_ones(rows, room)], dim=1)
    sees = there[:, None, :].repeat(1, start + room, 1)
    sees[:, :start, start:] = False
    if causal:
        sees[:, start:, start:] = sees.new_ones(room, room).tril()
    return laid.x.new_zeros(sees.shape).masked_fill_(~sees, -math.inf)[:, None]


@dataclass(frozen=True)
class Task:
    """What one request asks for left to right: how its tokens are read and chosen, by which rules.

    Args:
        embed: codes ``[T, K]`` to embeddings ``[R, T, D]``.
        logits: states ``[R, T, D]`` to fp32 logits ``[T, K, V + 1]``.
        permit: logits ``[K, V + 1]`` of the token behind codes ``[T, K]``, with minus infinity for what may not follow.
        given: codes ``[longest, K]`` that are fixed; V where none is.
        length: the most tokens.
        end: V, the code that ends the target.
        temperature, options, generator: of what is drawn.
    """

    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    permit: Callable[[Tensor, Tensor], Tensor]
    given: Tensor
    length: int
    end: int
    temperature: float
    options: Sampling
    generator: torch.Generator

    def uniform(self, times: int = 1) -> Tensor:
        """Numbers in [0, 1) ``[times, K]``."""
        return torch.rand(times, self.given.shape[1], generator=self.generator).to(self.given.device)

    def fixed(self, place: int) -> bool:
        """Whether the token of that place is given."""
        return int(self.given[place, 0]) != self.end

    def choose(self, logits: Tensor) -> Tensor:
        """Codes ``[K]`` from permitted logits ``[K, V + 1]``."""
        return draw(logits, self.temperature, self.options, self.uniform()[0])

    def ends(self, codes: Tensor) -> bool:
        """Whether a token's codes ``[K]`` end the target."""
        return bool((codes == self.end).any())
