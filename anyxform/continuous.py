"""Continuous batching: rows of one batch at places of their own, each of which begins and ends when it likes.

All memory is taken once. A row that ends gives its room to the next request, and where none waits, the batch gets
smaller: so no row is computed that nobody reads. Letters: L blocks, B rows, S slots, G key/value heads, C head size,
P tokens of a prefix, K codebooks, D width.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyxform.attention import RowAttention, Slots
from anyxform.cache import KVCache
from anyxform.layers import rope
from anyxform.model import Transformer


class RowCache:
    """Keys and values of up to B rows; row b's prefix stands in its slots [0, P_b), its target from P_b on.

    Rows in use are the first `len(cache)`.
    """

    def __init__(self, model: Transformer, rows: int, slots: int) -> None:
        weight = model.norm.weight
        step, depth = model.decode_step, len(model.blocks)
        if step is not None:
            rows, slots = step.size(rows, slots)
        shape = (rows, slots, model.config()["num_kv_heads"], model.head_dim)
        self.model = model
        # zeros, as what a mask hides must still be a number
        memory = [weight.new_zeros(shape) for _ in range(2 * depth)] if step is None else step.memory(shape)
        self.keys, self.values = memory[:depth], memory[depth:]  # of each block
        self.states = weight.new_zeros(rows, model.dim)  # of each row's last token
        self.first = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.filled: list[int] = []  # slots of each row

    def __len__(self) -> int:
        return len(self.filled)

    def admit(self, prefixes: KVCache, row: int) -> None:
        """Begin a row with a prefix that has been computed; several rows may begin with the same."""
        own, length = len(self), int(prefixes.prefix[row].sum())
        for part, given in zip([*self.keys, *self.values], [*prefixes.keys, *prefixes.values]):
            part[own, :length] = given[row, :length]
        self.states[own], self.first[own] = prefixes.marker[row], prefixes.first[row]
        self.filled.append(length)

    def leave(self, row: int) -> None:
        """End a row; the last one takes its place."""
        last, length = len(self) - 1, self.filled[-1]
        if row != last:
            for part in (*self.keys, *self.values):
                part[row, :length] = part[last, :length]
            self.states[row], self.first[row] = self.states[last], self.first[last]
        self.filled[row] = length
        self.filled.pop()

    @torch.no_grad()
    def advance(self, x: Tensor, offsets: Tensor) -> None:
        """Write one token of each row, embedded ``[B, D]``; its state is then in `states`.

        `offsets` ``[B, 3]``: positions counted from each target's first.
        """
        rows, positions = len(self), self.first[: len(self), None] + offsets
        if self.model.decode_step is not None:
            self.states[:rows] = self.model.decode_step(self.keys, self.values, x, positions, self.filled)
        else:
            slots = Slots(self.filled, self.keys[0].shape[1], x.dtype, x.device)
            angles = rope(positions[:, None], self.model.head_dim, self.model.rope_theta)
            attends = [RowAttention(keys[:rows], values[:rows], slots) for keys, values in zip(self.keys, self.values)]
            self.states[:rows] = self.model.run_blocks(x[:, None], angles, attends)[-1][:, 0]
        self.filled = [slot + 1 for slot in self.filled]


@dataclass
class Row:
    """Which request a row answers, and at which place of its target it stands."""

    number: int
    place: int = 0


@dataclass(frozen=True)
class Steps:
    """What `decode` does with requests, each of which takes `width` rows of the cache, one behind another.

    Args:
        begin: the prefixes of requests, by number: for each row of each in turn a cache and the row in it.
        choose: the next codes ``[R, K]`` of R requests, their log-probabilities ``[R]``, and which have ended before
            them, from the states of their rows ``[R·width, D]`` and their codes so far ``[R, T, K]``, each up to its
            place.
        embed: codes ``[R, K]`` to what their rows read ``[R·width, D]``.
        most: tokens of each request at which it ends.
    """

    begin: Callable[[Sequence[int]], Sequence[tuple[KVCache, int]]]
    choose: Callable[[Tensor, Sequence[Row], Tensor], tuple[Tensor, Tensor, Sequence[bool]]]
    embed: Callable[[Tensor], Tensor]
    most: Sequence[int]
    width: int = 1


@torch.no_grad()
def decode(
    cache: RowCache, steps: Steps, order: Sequence[int], offsets: Tensor, *, num_codebooks: int, batch_size: int
) -> dict[int, tuple[Tensor, float]]:
    """Codes ``[T, K]`` and the sum of their log-probabilities for each request, as many at a time as `batch_size`.

    They begin in this order. `offsets` ``[longest, 3]``: positions of target tokens, counted from the first.
    """
    waiting, rows = deque(order), list[Row]()
    codes = torch.zeros(batch_size, len(offsets), num_codebooks, dtype=torch.long, device=offsets.device)
    total = torch.zeros(batch_size, device=offsets.device)
    answers: dict[int, tuple[Tensor, float]] = {}

    def places() -> tuple[Tensor, Tensor]:
        """Of each row's last token: the row, and its place."""
        last = torch.tensor([row.place - 1 for row in rows], device=codes.device)
        return torch.arange(len(rows), device=codes.device), last

    def take(start: int) -> None:
        """Choose the next token of all rows from `start` on, and end those that it ends."""
        count = len(rows)
        chosen, logprob, ended = steps.choose(
            cache.states[start * steps.width : len(cache)], rows[start:], codes[start:]
        )
        total[start:count] += logprob
        for row in rows[start:]:
            row.place += 1
        own, last = places()
        codes[own[start:], last[start:]] = chosen
        for number in reversed(range(start, count)):
            row = rows[number]
            if not ended[number - start] and row.place < steps.most[row.number]:
                continue
            length = row.place - ended[number - start]
            answers[row.number] = codes[number, :length].clone().cpu(), float(total[number])
            rows[number], codes[number], total[number] = rows[-1], codes[len(rows) - 1], total[len(rows) - 1]
            rows.pop()
            for part in reversed(range(number * steps.width, (number + 1) * steps.width)):
                cache.leave(part)

    while waiting or rows:
        while waiting and len(rows) < batch_size:
            start = len(rows)
            new = [waiting.popleft() for _ in range(min(len(waiting), batch_size - start))]
            for prefixes, row in steps.begin(new):
                cache.admit(prefixes, row)
            rows += [Row(number) for number in new]
            total[start : len(rows)] = 0
            take(start)
        if rows:
            own, last = places()
            cache.advance(steps.embed(codes[own, last]), offsets[last].repeat_interleave(steps.width, 0))
            take(0)
    return answers
