"""A model judged on held-out samples beside every baseline, all on the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyxform.baselines import TrainingSet, copied, shuffled
from anyxform.dataset import Dataset
from anyxform.evaluate import MODEL, Item, Report, evaluate
from anyxform.pipeline import Pipeline
from anyxform.selection import Samples


@dataclass(frozen=True)
class Assessment:
    """What was asked, what every system answered, and the scores."""

    items: Sequence[Item]
    answers: Mapping[str, Sequence[Any]]
    report: Report


def assess(
    pipeline: Pipeline,
    items: Sequence[Item],
    training: Mapping[str, Dataset],
    *,
    options: Mapping[str, Any] | None = None,
    baselines: bool = True,
    judges: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Assessment:
    """Answer `items` and score the answers beside the baselines that `training` gives.

    `options` are those of generation (`anyxform.sampling.Sampling`); `say` is told what is being done.
    """
    say(f"answering {len(items)} items")
    directions = [item.direction for item in items]
    options = {"seed": seed, **(options or {})}
    own = pipeline.answer(directions, [item.sources for item in items], batch_size=batch_size, **options)
    answers: dict[str, Sequence[Any]] = {MODEL: own}
    if baselines:
        say("reading the training data for the baselines")
        known = TrainingSet(Samples(training, pipeline.modalities), pipeline.modalities, directions)
        answers |= {
            "most frequent": known.most_frequent(items),
            "nearest": known.nearest(items),
            "shuffled": shuffled(items, own, seed),
            "copied": copied(items),
        }
    say("scoring")
    return Assessment(items, answers, evaluate(items, answers, pipeline.modalities, judges=judges, seed=seed))
