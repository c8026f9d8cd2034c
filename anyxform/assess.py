"""A model judged on held-out samples beside every baseline, all on the same items."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anyxform.baselines import TrainingSet, copied, shuffled
from anyxform.candidates import Rank
from anyxform.dataset import Dataset
from anyxform.evaluate import BEST_OF, MODEL, Item, Report, evaluate
from anyxform.field import Direction
from anyxform.pipeline import Pipeline
from anyxform.routes import VIA
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
    known: TrainingSet | None = None,
    *,
    via: str | None = None,
    candidates: int = 1,
    rank: Rank = "back",
    options: Mapping[str, Any] | None = None,
    judges: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Assessment:
    """Answer `items` and score the answers beside the baselines that the training set `known` gives.

    `via`: a field by way of which the same model answers too, first to it and from it on, for comparison. `candidates`:
    of more than one, the best by `rank` is another answer to compare. `options` are those of generation
    (`anyxform.sampling.Sampling`); `say` is told what is being done.
    """
    between = None if via is None else pipeline.field(via)
    say(f"answering {len(items)} items")
    options = {"seed": seed, "batch_size": batch_size, **(options or {})}
    directions, sources = [item.direction for item in items], [item.sources for item in items]
    own = pipeline.answer(directions, sources, **options)
    answers: dict[str, Sequence[Any]] = {MODEL: own}
    if between is not None:
        seeds = [options["seed"] + number for number in range(len(items))]
        onward = pipeline.onward(directions, sources, [between] * len(items), seeds=seeds, batch_size=batch_size)
        answers[f"{VIA}{between}"] = by_way = _each(pipeline, *onward, **options)
        if lost := sum(it is None for it in by_way):
            say(f"via {between} {lost} items have no answer, so their directions have none: nothing to go on from")
    if candidates > 1:
        say(f"{candidates} candidates of each")
        ranked = pipeline.ranked(directions, sources, n=candidates, rank=rank, **options)
        answers[f"{BEST_OF}{candidates} by {rank}"] = [some[0].value for some in ranked]
    if known is not None:
        answers |= {
            "most frequent": known.most_frequent(items),
            "nearest": known.nearest(items),
            "shuffled": shuffled(items, own, seed),
            "copied": copied(items),
        }
    say("scoring")
    return Assessment(items, answers, evaluate(items, answers, pipeline.modalities, judges=judges, seed=seed))


def _each(pipeline: Pipeline, directions: Sequence[Direction], sources: Sequence[Any], **options: Any) -> list[Any]:
    """As `Pipeline.answer`, but None where nothing can be made, as of the nothing that was made on the way."""
    jobs = {}
    for number, (direction, values) in enumerate(zip(directions, sources, strict=True)):
        with suppress(ValueError):
            jobs[number] = pipeline.job(direction, values, options["seed"] + number)
    made = dict(zip(jobs, pipeline.perform(list(jobs.values()), **options)))
    return [made[number].value if number in made else None for number in range(len(directions))]


def training_set(pipeline: Pipeline, datasets: Mapping[str, Dataset], items: Sequence[Item]) -> TrainingSet:
    """What the baselines know: all of the training samples that matter to these items."""
    return TrainingSet(Samples(datasets, pipeline.modalities), pipeline.modalities, [it.direction for it in items])
