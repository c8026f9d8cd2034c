"""Adaptive depth: a token leaves at the first exit where its prediction is confident (CALM, arXiv 2207.07061).

Confidence is the probability of the likeliest code, and what it has to reach is the effort: 1 is never reached, so that
all blocks are used; at 0 everything leaves at the first exit. Letters: T tokens, K codebooks, V codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anyxform.sampling import log_probability
from anyxform.stream import Stream, Task


@dataclass(frozen=True)
class Spent:
    """Codes ``[T, K]``, their log-probability with that of the end, and the blocks ``[T]`` that each token took."""

    codes: Tensor
    logprob: float
    blocks: Tensor


WHOLE_PREFIX = 0.9
"""From this effort on the prefix goes as deep as the deepest token; below it no deeper than the first exit."""


def prefix_depth(depth: int, effort: float) -> int:
    """Through how many of a model's blocks all of the prefix goes, at most, where tokens are decoded one by one."""
    return exits_of(depth)[0] if effort < WHOLE_PREFIX else depth


def exits_of(depth: int) -> list[int]:
    """After how many of a model's blocks tokens may leave: half of them, or all.

    One exit alone, as every exit that a token does not take costs a reading of its head for nothing.
    """
    return sorted({-(-depth // 2), depth})


def confidence(logits: Tensor) -> Tensor:
    """Of tokens ``[…]``, from logits ``[…, K, V]``: the mean over codebooks."""
    return logits.softmax(dim=-1).amax(dim=-1).mean(dim=-1)


def decode(stream: Stream, task: Task, effort: float) -> Spent:
    """Decode left to right."""
    codes, total, used = task.given[:0], 0.0, list[int]()
    while True:
        logits, blocks = _read(stream, task, codes, effort)
        used.append(blocks)
        if logits is None:
            task.uniform()  # which plain decoding draws as well: what it draws behind this stays the same
            chosen = task.given[len(codes)]
        else:
            chosen = task.choose(logits)
            total += float(log_probability(logits, chosen).sum())
        if task.ends(chosen):
            break
        codes = torch.cat([codes, chosen[None]])
        if len(codes) == task.length:
            break
        stream.put(task.embed(codes[-1:]), len(codes) - 1)
    return Spent(codes, total, torch.tensor(used[: len(codes)], dtype=torch.float32))


def _read(stream: Stream, task: Task, codes: Tensor, effort: float) -> tuple[Tensor | None, int]:
    """Permitted logits ``[K, V + 1]`` of the token behind `codes`, and from how many blocks; None, 0: it is given."""
    if task.fixed(len(codes)):
        return None, 0
    exits, done = exits_of(len(stream.model.blocks)), 0
    first = stream.blocks.index(0) if 0 in stream.blocks else len(codes) - 1  # those that are given come along
    for blocks in exits:
        ran = range(done, blocks)
        states = stream.run(ran, slice(first, len(codes))) if len(codes) else stream.marker(ran)
        logits = task.permit(task.logits(states[:, -1:])[0], codes)
        if blocks == exits[-1] or float(confidence(logits)) >= effort:
            break
        done = blocks
    return logits, blocks


class Refiner:
    """How the masked target of one request is read, step by step: its hidden tokens, each from the blocks it needs.

    A token that is settled is shown to the others as deep as it was read itself, one that is given behind all blocks.

    Args:
        stream: with room for the target.
        embed: codes ``[1, T, K]`` to embeddings ``[R, T, D]``.
        read: states ``[R, n, D]`` to logits ``[1, n, K, V]``.
        effort: the confidence at which a token leaves.
    """

    def __init__(
        self, stream: Stream, embed: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor], effort: float
    ) -> None:
        self.stream, self.embed, self.read, self.effort = stream, embed, read, effort
        self.exits = exits_of(len(stream.model.blocks))
        self.takes = torch.zeros(0)  # [T], the blocks that each token goes through
        self.used, self.times = torch.zeros(()), torch.zeros(())

    @property
    def layers(self) -> Tensor:
        """The blocks ``[T]`` that each token took, in the mean over the steps in which it was hidden; 0: in none."""
        return (self.used / self.times.clamp(min=1)).cpu()

    def __call__(self, codes: Tensor, hidden: Tensor) -> Tensor:
        """Logits ``[1, T, K, V]`` of the `hidden` tokens ``[1, T]`` (bool) of codes ``[1, T, K]``; others have 0."""
        self.stream.put(self.embed(codes))
        hidden, done, logits = hidden[0], 0, torch.zeros(0)
        if not len(self.takes):
            self.takes = torch.full(hidden.shape, self.exits[-1], device=hidden.device)
        self.takes[hidden] = self.exits[-1]
        for blocks in self.exits:
            going = (self.takes > done).nonzero().flatten()
            if done and not hidden[going].any():
                break  # nobody would look at those that are left
            states = self.stream.run(range(done, blocks), going)
            asked = going[hidden[going]]
            found = self.read(states[:, hidden[going]])[0]
            logits = found.new_zeros(len(hidden), *found.shape[1:]) if done == 0 else logits
            logits[asked] = found
            self.takes[asked[confidence(found) >= self.effort]] = blocks
            done = blocks
        self.used, self.times = self.used + self.takes * hidden, self.times + hidden
        return logits[None]
