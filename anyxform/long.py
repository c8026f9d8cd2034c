"""Values of any length: cut by their modality into what the model reads, answered, and joined by the target's.

An answer that loops is drawn again at rising temperatures, as Whisper does (arXiv 2212.04356, section 4.5), until one
is without a loop and likely; if none is, the loop is cut out of the first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from anyxform.field import Direction, Field
from anyxform.loops import loop, without_loops
from anyxform.modality import Modality, Piece
from anyxform.model import Transformer
from anyxform.refine import generate_refined
from anyxform.request import Generated, Request, seeded
from anyxform.sampling import Sampling

TEMPERATURES = (0.4, 0.8)
"""At which an answer that loops is drawn again."""
LEAST_LOGPROB = -1.0
"""Per token: what is less likely than this does not replace an answer that loops."""


@dataclass(frozen=True)
class Job:
    """What is to be made of one input: a request for each piece of it, and the unit of the pieces' spans."""

    target: Field
    pieces: list[Piece]
    requests: list[Request]
    unit: str


@dataclass(frozen=True)
class Segment:
    """What was made of a span of the source, in the unit of its modality: seconds of a recording, characters, …

    `words`: its parts, where they were asked for (see `anyxform.align`).
    """

    start: float
    end: float
    value: Any
    words: "tuple[Segment, ...] | None" = None


@dataclass(frozen=True)
class Made:
    """The value that was made of an input, its segments, and the codes of its pieces, with what they took.

    `target`: the field that was asked for. `unit`: of the segments' spans, as in `Job`.
    """

    value: Any
    segments: list[Segment]
    answers: Sequence[Generated] = ()
    target: Field | None = None
    unit: str = ""


def cut(
    modalities: Mapping[str, Modality],
    direction: Direction,
    values: Sequence[Any],
    request: Callable[[Direction, Sequence[Any]], Request],
    seed: int,
) -> Job:
    """The job for one input: its sources' values, of which one may be longer than the model reads.

    ValueError: two are, or the target's values cannot be joined, or nothing is there to make one of.
    """
    target = modalities[direction.target.modality]
    parts = [modalities[field.modality].split(value) for field, value in zip(direction.sources, values, strict=True)]
    values = [own[0].value if len(own) == 1 else value for own, value in zip(parts, values)]  # without the silence
    long = [number for number, pieces in enumerate(parts) if len(pieces) > 1]
    if len(long) > 1:
        names = ", ".join(str(direction.sources[number]) for number in long)
        raise ValueError(f"several sources ({names}) are longer than the model reads at once: only one may be")
    place = long[0] if long else 0
    pieces = parts[place]
    if long and not target.joins:  # the request says what is too long
        pieces = [Piece(values[place])]
    if not pieces and len(values) > 1:  # a silent source beside others
        pieces = [Piece(values[place])]
    if not pieces:
        target.join([], [])
    requests = [
        replace(request(direction, [*values[:place], piece.value, *values[place + 1 :]]), seed=seed + (number << 32))
        for number, piece in enumerate(pieces)
    ]
    return Job(direction.target, pieces, requests, modalities[direction.sources[place].modality].unit)


Failed = TypeVar("Failed")


def pooled(jobs: Iterable[Job | Failed], size: int) -> Iterator[list[Job | Failed]]:
    """Jobs, and what stands for those that there could not be, in lists of about `size` requests: few long inputs."""
    pool, requests = list[Job | Failed](), 0
    for job in jobs:
        pool.append(job)
        requests += max(1, len(job.requests)) if isinstance(job, Job) else 1
        if requests >= size:
            yield pool
            pool, requests = [], 0
    if pool:
        yield pool


def perform(
    model: Transformer,
    modalities: Mapping[str, Modality],
    jobs: Sequence[Job],
    options: Sampling,
    batch_size: int,
) -> list[Made]:
    """What is made of each job; their pieces are answered together, in batches of about equal length."""
    requests = [request for job in jobs for request in job.requests]
    answers = iter(answered(model, modalities, requests, options, batch_size))
    return [_joined(modalities[job.target.modality], job, [next(answers) for _ in job.requests]) for job in jobs]


def answered(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    options: Sampling,
    batch_size: int,
) -> list[Generated]:
    """Each request's answer, without loops where none of it was known."""
    requests = seeded(requests, options.seed)
    answers = generate_refined(model, modalities, requests, options, batch_size=batch_size)
    most = [modalities[request.target.modality].most_repeats for request in requests]
    looping = [
        number
        for number, (request, answer) in enumerate(zip(requests, answers))
        if request.known is None and loop(answer.codes, most[number])
    ]
    for temperature in TEMPERATURES:
        if not looping or temperature <= (options.temperature or 0):
            continue
        warmer = options.without_search(temperature)
        again = generate_refined(model, modalities, [requests[n] for n in looping], warmer, batch_size=batch_size)
        for number, answer in zip(list(looping), again):
            if not loop(answer.codes, most[number]) and answer.logprob >= LEAST_LOGPROB * (len(answer.codes) + 1):
                answers[number] = answer
                looping.remove(number)
    for number in looping:
        answers[number] = answers[number].at(without_loops(answers[number].codes, most[number]))
    return answers


def _joined(target: Modality, job: Job, answers: Sequence[Generated]) -> Made:
    values = target.merge([target.from_codes(answer.codes) for answer in answers], job.pieces)
    segments = [Segment(piece.start, piece.end, value) for piece, value in zip(job.pieces, values)]
    return Made(target.join(values, job.pieces), segments, answers, job.target, job.unit)
