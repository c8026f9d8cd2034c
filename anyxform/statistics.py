"""How sure a score is: bootstrap intervals of a metric's mean, and of the gain of one system over another.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over *clusters*: the scores that share a sample's key are
drawn together, as they are not independent. A metric whose scores are all equal gets an interval of width 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anyxform.modality import Score

RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 6
"""Samples below which nothing is decided: not even if each were won could chance be ruled out at that level."""

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean weighted by the scores' weights, its 95 % interval, and the number of clusters behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A system against another on the same samples. `gain` above 0 is better, whichever way the metric points.

    `wins` is the share of samples on which the system is better; a tie counts half.
    """

    gain: Interval
    wins: float

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval of the gain lies on one side of 0, that of enough samples."""
        if self.gain.n < FEWEST:
            return "undecided"
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "undecided"


def interval(scores: Sequence[Score], keys: Sequence[str], *, seed: int = 0) -> Interval:
    """The weighted mean of one metric's scores; `keys` name the sample that each score belongs to."""
    sums = _cluster_sums([scores], keys)
    return _percentiles(_means(sums.sum(1))[0], _resampled_means(sums, seed)[:, 0], sums.shape[1])


def compare(
    scores: Sequence[Score],
    others: Sequence[Score],
    keys: Sequence[str],
    *,
    lower_is_better: bool = False,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap: both systems are scored on the same draws of samples (Koehn, EMNLP 2004)."""
    sign = -1.0 if lower_is_better else 1.0
    sums = _cluster_sums([scores, others], keys)
    first, second = _means(sums.sum(1))
    draws = _resampled_means(sums, seed)
    gain = _percentiles(sign * (first - second), sign * (draws[:, 0] - draws[:, 1]), sums.shape[1])
    differences = [sign * (a.value - b.value) for a, b in zip(scores, others, strict=True)]
    wins = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / len(differences)
    return Comparison(gain, wins)


def _cluster_sums(systems: Sequence[Sequence[Score]], keys: Sequence[str]) -> Tensor:
    """``[systems, clusters, 2]``: the sums of weighted values and of weights of each cluster."""
    if not keys:
        raise ValueError("there are no scores to average")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    index = torch.tensor([numbers[key] for key in keys])
    sums = torch.zeros(len(systems), len(numbers), 2, dtype=torch.float64)
    for total, scores in zip(sums, systems):
        pairs = [(score.value * score.weight, score.weight) for score in scores]
        total.index_add_(0, index, torch.tensor(pairs, dtype=torch.float64))
    return sums


def _means(sums: Tensor) -> Tensor:
    """Sums ``[..., 2]`` of weighted values and of weights to means; 0 where nothing has weight."""
    return sums[..., 0] / sums[..., 1].clamp(min=1e-12)


def _resampled_means(sums: Tensor, seed: int) -> Tensor:
    """Means ``[RESAMPLES, systems]`` over clusters drawn with replacement."""
    clusters = sums.shape[1]
    draws = torch.randint(clusters, (RESAMPLES, clusters), generator=torch.Generator().manual_seed(seed))
    return torch.stack([_means(system[draws].sum(1)) for system in sums], dim=1)


def _percentiles(value: Tensor, draws: Tensor, clusters: int) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Interval(float(value), low, high, clusters)
