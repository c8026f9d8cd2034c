"""Bootstrap intervals: they cover what they claim to, and comparisons point the right way."""

import pytest
import torch

from anyxform.modality import Score
from anyxform.statistics import compare, interval


def _scores(values: torch.Tensor, weights: torch.Tensor | None = None) -> list[Score]:
    weights = torch.ones_like(values) if weights is None else weights
    return [Score(value, weight) for value, weight in zip(values.tolist(), weights.tolist())]


def _keys(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _coverage(draw, true_mean: float, keys: list[str], trials: int = 300) -> float:
    hits = 0
    for trial in range(trials):
        found = interval(draw(torch.Generator().manual_seed(trial)), keys, seed=trial)
        hits += found.low <= true_mean <= found.high
    return hits / trials


def test_the_interval_covers_the_true_mean_about_95_times_of_100():
    def draw(generator: torch.Generator) -> list[Score]:
        return _scores(torch.empty(80).exponential_(0.5, generator=generator))  # skewed, mean 2

    assert 0.90 <= _coverage(draw, 2.0, _keys(80)) <= 0.985


def test_scores_of_one_sample_are_drawn_together():
    """Eight equal scores per sample are no more than one: an interval that ignored this would cover far too little."""

    def draw(generator: torch.Generator) -> list[Score]:
        return _scores(torch.randn(40, generator=generator).repeat_interleave(8))

    keys = [str(number // 8) for number in range(320)]
    assert 0.88 <= _coverage(draw, 0.0, keys) <= 0.985
    assert _coverage(draw, 0.0, _keys(320)) < 0.7


def test_the_mean_is_weighted():
    found = interval([Score(1.0, 3.0), Score(0.0, 1.0)], ["a", "b"])
    assert found.value == pytest.approx(0.75)
    assert found.n == 2 and found.low <= found.value <= found.high


def test_the_same_seed_gives_the_same_interval():
    scores = _scores(torch.randn(30, generator=torch.Generator().manual_seed(0)))
    assert interval(scores, _keys(30), seed=1) == interval(scores, _keys(30), seed=1)
    assert interval(scores, _keys(30), seed=1) != interval(scores, _keys(30), seed=2)


def test_a_paired_comparison_sees_a_small_constant_gain_that_intervals_hide():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0))
    better, worse = _scores(values + 0.05), _scores(values)
    assert interval(better, _keys(60)).low < interval(worse, _keys(60)).high
    found = compare(better, worse, _keys(60))
    assert found.verdict == "better" and found.wins == 1.0 and found.gain.value == pytest.approx(0.05, abs=1e-6)


def test_a_metric_of_errors_is_better_when_lower():
    low, high = [Score(0.1)] * 10, [Score(0.9)] * 10
    assert compare(low, high, _keys(10), lower_is_better=True).verdict == "better"
    assert compare(low, high, _keys(10)).verdict == "worse"
    assert compare(low, low, _keys(10)).verdict == "undecided"
    assert compare(low, low, _keys(10)).wins == 0.5


def test_few_samples_decide_nothing():
    """However they turn out: five that are all won happen by chance more often than one time in twenty."""
    for count, verdict in ((1, "undecided"), (5, "undecided"), (6, "better")):
        assert compare([Score(1.0)] * count, [Score(0.0)] * count, _keys(count)).verdict == verdict


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no scores"):
        interval([], [])
