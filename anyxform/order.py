"""The order of data, a pure function of (seed, global index): nothing has to be replayed to go on anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

BLOCK = 1024
"""Indices over which the weights of datasets are kept exactly, and within which datasets are shuffled."""


def rng(*numbers: int) -> np.random.Generator:
    """A generator that depends on these numbers alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))


@dataclass(frozen=True)
class Near:
    """How to read from shard to shard: how many samples each has, and among how many shards samples are shuffled."""

    runs: Sequence[int]
    at_once: int


@dataclass(frozen=True)
class Draw:
    """What stands at an index: the sample of a dataset, and a seed for all that is chosen about it."""

    dataset: str
    number: int
    seed: int


class Order:
    """An endless shuffled mixture of datasets of these sizes. Within each, every sample comes once an epoch.

    A dataset's weight is its share of the samples drawn; by default its size. Those in `near` are shuffled by shards,
    and each sample among those of so many shards; others as a whole.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        near: Mapping[str, Near] | None = None,
    ) -> None:
        self.names, self.sizes, self.seed = list(sizes), list(sizes.values()), seed
        self.near = [(near or {}).get(name) for name in self.names]
        self._made_from = (sizes, weights, seed, near)
        chosen = np.array([(weights or {}).get(name, sizes[name]) for name in self.names], dtype=float)
        if not (chosen >= 0).all() or not 0 < chosen.sum() < np.inf:
            raise ValueError(f"weights of datasets must be 0 or more, and not all 0: {dict(zip(self.names, chosen))}")
        self.edges = np.concatenate([[0.0], np.cumsum(chosen)])
        self.edges /= self.edges[-1]  # the last is exactly 1
        self._block = lru_cache(maxsize=4)(self._mix)
        self._epoch = lru_cache(maxsize=2 * len(self.names))(self._permutation)  # those under way, and no more

    def __reduce__(self) -> tuple[type["Order"], tuple[Any, ...]]:
        return Order, self._made_from  # pickled for worker processes without what is remembered

    def __getitem__(self, index: int) -> Draw:
        block, place = divmod(index, BLOCK)
        which, count = self._block(block)
        dataset = int(which[place])
        epoch, use = divmod(int(count[place]), self.sizes[dataset])
        number = int(self._epoch(dataset, epoch)[use])
        return Draw(self.names[dataset], number, int(rng(self.seed, 2, index).integers(2**62)))

    def _uses(self, index: int) -> np.ndarray:
        """How often each dataset is used before an index that is a multiple of BLOCK."""
        return np.diff(np.floor(self.edges * index + 1e-6).astype(np.int64))

    def _mix(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block: its dataset, and how often that was used before."""
        before, after = self._uses(block * BLOCK), self._uses((block + 1) * BLOCK)
        which = np.repeat(np.arange(len(self.names)), after - before)
        rng(self.seed, 0, block).shuffle(which)
        count = np.empty(BLOCK, dtype=np.int64)
        for dataset in range(len(self.names)):
            places = np.flatnonzero(which == dataset)
            count[places] = before[dataset] + np.arange(len(places))
        return which, count

    def _permutation(self, dataset: int, epoch: int) -> np.ndarray:
        chance, near, size = rng(self.seed, 1, dataset, epoch), self.near[dataset], self.sizes[dataset]
        if near is None or near.at_once >= len(near.runs):
            return chance.permutation(size).astype(np.uint32 if size < 2**32 else np.int64)
        ends = np.cumsum(near.runs)
        shards = chance.permutation(len(ends))
        numbers = np.concatenate([np.arange(ends[shard] - near.runs[shard], ends[shard]) for shard in shards])
        reach = near.at_once * size / len(ends)  # each goes down by chance, so that shards come and go one by one
        return numbers[np.argsort(np.arange(size) + reach * chance.random(size), kind="stable")]
