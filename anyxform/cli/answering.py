"""What `anyxform run` makes of its inputs, one after another: read, taken by a way, answered; each fails alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from anyxform.candidates import Rank
from anyxform.cli.arguments import there
from anyxform.field import Direction, Field
from anyxform.long import Job, Made, pooled
from anyxform.pipeline import AHEAD, Pipeline
from anyxform.sampling import sampling_of
from anyxform.subtitles import check

_T = TypeVar("_T")


@dataclass(frozen=True)
class Failure:
    """Why an input gave nothing."""

    reason: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        return cls(" ".join(str(error).split()))


@dataclass(frozen=True)
class Asked:
    """What is wanted of the input of a number; its seed is that many above the first one's, whatever fails."""

    number: int
    direction: Direction
    values: Sequence[Any]


@dataclass(frozen=True)
class Choice:
    """How inputs are answered: the best of `n` candidates by `rank`, from `seed` on; `format` of what is written, with
    `words` or without; `options` of generation."""

    n: int
    rank: Rank
    seed: int
    batch_size: int
    format: str | None
    words: bool
    options: dict[str, Any]


def read_inputs(
    pipeline: Pipeline,
    inputs: Iterable[str],
    others: Sequence[tuple[str, Any]],
    target: Field,
    origin: str | None,
) -> Iterator[Asked | Failure]:
    """Each input, and the `others`, as sources of the target; `origin`: the modality of all of them."""
    for number, given in enumerate(inputs):
        try:
            value = Path(given) if there(given, Path.is_file) else given
            sources = [pipeline.read((origin, value) if origin else value), *others]
        except (ValueError, OSError) as error:
            yield Failure.of(error)
        else:
            direction = Direction(tuple(Field(name) for name, _ in sources), target)
            yield Asked(number, direction, [value for _, value in sources])


def by_way(
    pipeline: Pipeline, asked: Iterable[Asked | Failure], via: str, seed: int, batch_size: int
) -> Iterator[Asked | Failure]:
    """What is left to ask behind the field `via`; ``auto``: where that is better."""
    pipeline.judged() if via == "auto" else pipeline.field(via)  # what is wrong for all of them is said at once
    for chunk in _chunks(asked, batch_size):
        jobs: dict[int, Job] = {}
        for place, it in enumerate(chunk):
            if isinstance(it, Failure):
                continue
            try:
                field = pipeline.route(it.direction, via)
                if field is not None:
                    jobs[place] = pipeline.job(replace(it.direction, target=field), it.values, seed + it.number)
            except ValueError as error:
                chunk[place] = Failure.of(error)
        made = pipeline.perform(list(jobs.values()), batch_size=batch_size)
        for (place, job), between in zip(jobs.items(), made):
            it = chunk[place]
            if isinstance(it, Asked):
                chunk[place] = Asked(it.number, Direction((job.target,), it.direction.target), (between.value,))
        yield from chunk


def answers(pipeline: Pipeline, asked: Iterable[Asked | Failure], choice: Choice) -> Iterator[Made | Failure]:
    """What was made of each, or why nothing was."""
    if choice.n != 1:
        for chunk in _chunks(asked, choice.batch_size):
            yield from _best(pipeline, chunk, choice)
        return
    options = {**choice.options, "batch_size": choice.batch_size, "words": choice.words}
    for pool in pooled((_job(pipeline, it, choice) for it in asked), AHEAD * choice.batch_size):
        made = iter(pipeline.perform([job for job in pool if isinstance(job, Job)], **options))
        for job in pool:
            yield next(made) if isinstance(job, Job) else job


def _job(pipeline: Pipeline, asked: Asked | Failure, choice: Choice) -> Job | Failure:
    if isinstance(asked, Failure):
        return asked
    try:
        job = pipeline.job(asked.direction, asked.values, choice.seed + asked.number)
        check(choice.format, job)
        _check_spelling(pipeline, asked.direction, choice)
        if choice.words:
            pipeline.check_words(asked.direction)
    except ValueError as error:
        return Failure.of(error)
    return job


def _check_spelling(pipeline: Pipeline, direction: Direction, choice: Choice) -> None:
    pipeline.check_spelling(sampling_of(choice.options), direction.sources[0].modality, direction.target.modality)


def _best(pipeline: Pipeline, asked: Sequence[Asked | Failure], choice: Choice) -> list[Made | Failure]:
    """The best candidate of each; candidates are of whole inputs, not of pieces."""
    results: list[Made | Failure | None] = [it if isinstance(it, Failure) else None for it in asked]
    requests = {}
    for place, it in enumerate(asked):
        if isinstance(it, Failure):
            continue
        try:
            _check_spelling(pipeline, it.direction, choice)
            if pipeline.silent(it.direction, it.values):  # of which not every modality can make something
                nothing = pipeline.modalities[it.direction.target.modality].join([], [])
                results[place] = Made(nothing, [], target=it.direction.target)
            else:
                request = pipeline.request(it.direction, pipeline.whole(it.direction, it.values))
                requests[place] = it, replace(request, seed=choice.seed + it.number)
        except ValueError as error:
            results[place] = Failure.of(error)
    ranked = pipeline.ranked(
        [it.direction for it, _ in requests.values()],
        [it.values for it, _ in requests.values()],
        requests=[request for _, request in requests.values()],
        n=choice.n,
        rank=choice.rank,
        batch_size=choice.batch_size,
        **choice.options,
    )
    for (place, (it, _)), found in zip(requests.items(), ranked):
        results[place] = Made(found[0].value, [], target=it.direction.target)
    return [result for result in results if result is not None]


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk
