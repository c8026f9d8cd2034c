"""How good answers are: every direction × its modality's metrics × n with 95 % intervals, beside baselines.

A *system* answers items: the model, a baseline of `anyxform.baselines`, or the truth itself. All of them answer the
same items and are scored by the same metrics, so that each comparison is paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anyxform.field import Direction, Field
from anyxform.modality import Modality, Score
from anyxform.routes import VIA
from anyxform.statistics import Comparison, Interval, Verdict, compare, interval

MODEL, TRUTH = "model", "truth"
BEST_OF = "best of "
"""How the names of the best of several answers of the model begin; those by way of a field begin with `VIA`."""


def is_baseline(name: str) -> bool:
    """Whether a system is one that the model has to beat, and not the truth or the model itself."""
    return name not in (MODEL, TRUTH) and not name.startswith((VIA, BEST_OF))


@dataclass(frozen=True)
class Item:
    """One sample in one direction: what is given, and what would be right."""

    key: str
    direction: Direction
    sources: tuple[Any, ...]
    reference: Any
    text: str = ""
    """The sample's English text, for judges; empty where it has none."""
    alternatives: tuple[Any, ...] = ()
    """The sample's other values that would be right too; each metric counts the nearest of all references."""


System = Callable[[Sequence[Item]], Sequence[Any]]
"""Answers one value for each item, or None where it has no answer."""


def by_direction(items: Sequence[Item]) -> dict[Direction, list[int]]:
    """The numbers of the items in each direction."""
    numbers: dict[Direction, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(item.direction, []).append(number)
    return numbers


@dataclass(frozen=True)
class Row:
    """The result in one direction, or in all directions from one modality to another together."""

    direction: str
    n: int
    """Samples; a sample counts once however many of the pooled directions it is in."""
    headline: str
    """The metric that is looked at first: a judge's if there is one, else the first of the target's modality."""
    lower_is_better: frozenset[str]
    """Metrics of which less is better."""
    systems: dict[str, dict[str, Interval]]
    """For each system, the model among them: its metrics; for the truth, a judge's only."""
    against: dict[str, dict[str, Comparison]]
    """For each other system: the model against it, by metric."""

    @property
    def metrics(self) -> list[str]:
        """Their names, the headline first."""
        return list(dict.fromkeys([self.headline, *self.systems[MODEL]]))

    def strongest(self, metric: str) -> str | None:
        """The baseline over which the model gains least."""
        gains = {name: metrics[metric].gain.value for name, metrics in self._baselines(metric).items()}
        return min(gains, key=lambda name: gains[name]) if gains else None

    def verdict(self, metric: str) -> Verdict:
        """The model against all baselines: `better` than each, `worse` than one, else `undecided`."""
        verdicts = {metrics[metric].verdict for metrics in self._baselines(metric).values()}
        if "worse" in verdicts:
            return "worse"
        return "better" if verdicts == {"better"} else "undecided"

    def _baselines(self, metric: str) -> dict[str, dict[str, Comparison]]:
        return {name: it for name, it in self.against.items() if metric in it and is_baseline(name)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        verdicts = {metric: self.verdict(metric) for metric in self.metrics if self._baselines(metric)}
        return {**asdict(self), "lower_is_better": sorted(self.lower_is_better), "verdicts": verdicts}


@dataclass(frozen=True)
class Report:
    """Rows by direction, and the same scores pooled from modality to modality."""

    directions: list[Row]
    summary: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "summary": [row.to_dict() for row in self.summary],
            "directions": [row.to_dict() for row in self.directions],
        }


@dataclass
class _Scores:
    """What a row is made of: for each system the scores of each metric, and the keys of the samples behind them."""

    target: Modality
    keys: dict[str, list[str]]  # by metric, as a judge need not judge every direction
    systems: dict[str, dict[str, list[Score]]]
    truth: dict[str, list[Score]]
    """What a judge makes of the references themselves."""

    def add(self, other: "_Scores") -> None:
        """Pool another direction's; a system is kept only if it answered in both."""
        for metric, keys in other.keys.items():
            self.keys.setdefault(metric, []).extend(keys)
        self.systems = {name: scores for name, scores in self.systems.items() if name in other.systems}
        for name, scores in self.systems.items():
            for metric, values in other.systems[name].items():
                scores.setdefault(metric, []).extend(values)
        for metric, values in other.truth.items():
            self.truth.setdefault(metric, []).extend(values)


def evaluate(
    items: Sequence[Item],
    answers: Mapping[str, Sequence[Any]],
    modalities: Mapping[str, Modality],
    *,
    judges: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda direction: None,
) -> Report:
    """Score every system's answers, one for each item. `answers` holds `MODEL`'s, and those of what it is held against.

    A system with a None among its answers in a direction is left out of that direction. `judges`: ask each modality's
    independent judge too. `seed`: of the bootstrap. `progress` is told each direction before it is scored.
    """
    rows, pools = [], dict[str, _Scores]()
    for direction, numbers in sorted(by_direction(items).items()):
        progress(str(direction))
        chosen = {name: [values[number] for number in numbers] for name, values in answers.items()}
        complete = {name: values for name, values in chosen.items() if all(value is not None for value in values)}
        target = modalities[direction.target.modality]
        scores = _score([items[number] for number in numbers], complete, target, judges)
        rows.append(_row(str(direction), scores, seed))
        pool = str(_bare(direction))
        pools[pool] = _pooled(pools.get(pool), scores)
    return Report(rows, [_row(name, scores, seed) for name, scores in sorted(pools.items())])


def _bare(direction: Direction) -> Direction:
    """A direction without its variants."""
    return Direction(tuple(Field(source.modality) for source in direction.sources), Field(direction.target.modality))


def _pooled(pool: _Scores | None, scores: _Scores) -> _Scores:
    if pool is None:
        pool = _Scores(scores.target, {}, {name: {} for name in scores.systems}, {})
    pool.add(scores)
    return pool


def _score(items: Sequence[Item], answers: Mapping[str, Sequence[Any]], target: Modality, judges: bool) -> _Scores:
    """All scores of one direction."""
    keys = [item.key for item in items]
    references, texts = [item.reference for item in items], [item.text for item in items]
    systems: dict[str, dict[str, list[Score]]] = {}
    truth: dict[str, list[Score]] = {}
    for name, values in answers.items():
        each = [_nearest(value, item, target) for value, item in zip(values, items, strict=True)]
        systems[name] = {metric: [scores[metric] for scores in each] for metric in each[0]}
        if judges and all(texts):
            systems[name] |= target.judge(values, references, texts)
    if judges and all(texts):
        truth = target.judge(references, references, texts)
    return _Scores(target, {metric: list(keys) for metric in systems[MODEL]}, systems, truth)


def _nearest(value: Any, item: Item, target: Modality) -> dict[str, Score]:
    """Each metric against the reference that it likes best."""
    found = [target.metrics(value, reference) for reference in (item.reference, *item.alternatives)]
    return {
        metric: (min if metric in target.lower_is_better else max)(
            (scores[metric] for scores in found), key=lambda score: score.value
        )
        for metric in found[0]
    }


def _row(direction: str, scores: _Scores, seed: int) -> Row:
    lower = scores.target.lower_is_better
    model = scores.systems[MODEL]
    against = {
        name: {
            metric: compare(model[metric], values, scores.keys[metric], lower_is_better=metric in lower, seed=seed)
            for metric, values in metrics.items()
        }
        for name, metrics in scores.systems.items()
        if name != MODEL
    }
    systems = {
        name: {metric: interval(values, scores.keys[metric], seed=seed) for metric, values in metrics.items()}
        for name, metrics in {**scores.systems, TRUTH: scores.truth}.items()
        if metrics
    }
    headline = next(iter([*scores.truth, *model]))
    n = len(set(scores.keys[headline]))
    return Row(direction, n, headline, lower & model.keys(), systems, against)
