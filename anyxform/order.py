"""The order of data, a pure function of (seed, global index): nothing has to be replayed to go on anywhere."""

from collections.abc import Mapping
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
class Draw:
    """What stands at an index: the sample of a dataset, and a seed for all that is chosen about it."""

    dataset: str
    number: int
    seed: int


class Order:
    """An endless shuffled mixture of datasets of these sizes. Within each, every sample comes once an epoch.

    A dataset's weight is its share of the samples drawn; by default its size.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self.names, self.sizes, self.seed = list(sizes), list(sizes.values()), seed
        self._made_from = (sizes, weights, seed)
        chosen = np.array([(weights or {}).get(name, sizes[name]) for name in self.names], dtype=float)
        if not (chosen >= 0).all() or not 0 < chosen.sum() < np.inf:
            raise ValueError(f"weights of datasets must be 0 or more, and not all 0: {dict(zip(self.names, chosen))}")
        self.edges = np.concatenate([[0.0], np.cumsum(chosen)])
        self.edges /= self.edges[-1]  # the last is exactly 1
        self._block = lru_cache(maxsize=4)(self._mix)
        self._epoch = lru_cache(maxsize=64)(self._permutation)

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
        return rng(self.seed, 1, dataset, epoch).permutation(self.sizes[dataset])
