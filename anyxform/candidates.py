"""Several answers to one question, ranked by how likely the model holds the way back: what was asked, given the answer.

A candidate from which the model could tell what was asked for is likely right (the noisy channel; for pictures, the
re-ranking of DALL·E, arXiv 2102.12092, with the model itself as the judge).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from anyxform.data import source
from anyxform.field import Direction, Field
from anyxform.infill import different
from anyxform.likelihood import likelihoods
from anyxform.long import answered
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.request import Request, seeded
from anyxform.sampling import FAR, Sampling
from anyxform.sequence import marker

Rank = Literal["back", "own", "both"]
RANKS: tuple[Rank, ...] = ("back", "own", "both")
"""By log p(sources | answer), by log p(answer | sources), or by their sum."""


def check_rank(by: str) -> None:
    """ValueError: it is none of `RANKS`."""
    if by not in RANKS:
        raise ValueError(f"rank={by!r} is not possible: give {', '.join(RANKS)}")


@dataclass(frozen=True)
class Candidate:
    """An answer, and its score in nats: the more, the better."""

    value: Any
    score: float


def draw(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    n: int,
    options: Sampling,
    *,
    batch_size: int = 64,
) -> list[list[Tensor]]:
    """Up to `n` different answers to each request, as codes ``[T, K]``, without loops as any other answer.

    The first is the one that is given without candidates. The others have seeds far above its own, so that they depend
    on no other request. Where nothing is left to chance, they are drawn as `Sampling.drawn` says.
    """
    if n < 1:
        raise ValueError(f"n={n} is not possible: give 1 candidate or more")
    requests = seeded(requests, options.seed)
    found = [[answer.codes] for answer in answered(model, modalities, requests, options, batch_size)]
    for name in {request.target.modality for request in requests}:
        chosen = [number for number, request in enumerate(requests) if request.target.modality == name]
        more = [replace(requests[i], seed=int(requests[i].seed or 0) + (k << FAR)) for i in chosen for k in range(1, n)]
        drawn = options.drawn(options.decoding or modalities[name].decoding)
        for place, answer in enumerate(answered(model, modalities, more, drawn, batch_size)):
            found[chosen[place // (n - 1)]].append(answer.codes)
    return [different(codes) for codes in found]


@dataclass(frozen=True)
class Answered:
    """A question, by its sources' values, and different answers to it, as codes ``[T, K]`` and as values."""

    direction: Direction
    sources: Sequence[Any]
    codes: Sequence[Tensor]
    values: Sequence[Any]


def rank(
    model: Transformer,
    modalities: Mapping[str, Modality],
    questions: Sequence[Answered],
    by: Rank = "back",
) -> list[list[Candidate]]:
    """Each question's answers, the best first; the only answer to a question has the score 0.

    The way back is asked for without attributes (``text``, not ``text:en``), from each answer to each source alone;
    several sources' log-probabilities are added up. Where there are no sources, the answers' own likelihood decides. An
    answer that cannot be read, as it is too long for a source, comes last. ValueError: `by` is none of `RANKS`, or a
    source is of a modality that the model does not make.
    """
    check_rank(by)
    for question in questions if by != "own" else ():
        for field in question.direction.sources:
            _check_made(model, field)
    scores = defaultdict[tuple[int, int], float](float)
    tasks, owners = list[tuple[Request, Tensor]](), list[tuple[int, int]]()
    for number, question in enumerate(questions):
        for place in range(len(question.values) if len(question.values) > 1 else 0):
            try:
                wanted = _tasks(model, modalities, question, place, by if question.sources else "own")
            except ValueError:
                scores[number, place] = -math.inf
                continue
            tasks += wanted
            owners += [(number, place)] * len(wanted)
    values = likelihoods(model, modalities, [request for request, _ in tasks], [codes for _, codes in tasks])
    for owner, value in zip(owners, values):
        scores[owner] += value
    return [
        sorted(
            (Candidate(value, scores[number, place]) for place, value in enumerate(question.values)),
            key=lambda it: -it.score,
        )
        for number, question in enumerate(questions)
    ]


def _tasks(
    model: Transformer, modalities: Mapping[str, Modality], question: Answered, place: int, by: Rank
) -> list[tuple[Request, Tensor]]:
    """What has to be likely, that an answer may be good."""
    target, tasks = question.direction.target, []
    pairs = list(zip(question.direction.sources, question.sources, strict=True))
    if by in ("own", "both"):
        sources = tuple(source(modalities[field.modality], value, target.modality) for field, value in pairs)
        tasks.append((Request(sources, target), question.codes[place]))
    if by in ("back", "both"):
        for field, value in pairs:
            answer = source(modalities[target.modality], question.values[place], field.modality)
            tasks.append((Request((answer,), Field(field.modality)), _codes(modalities[field.modality], value)))
    return tasks


def _check_made(model: Transformer, field: Field) -> None:
    if marker(field.modality) not in model.condition_ids:
        raise ValueError(f"there is no way back to {field.modality}, which this model does not make: give rank=own")


@torch.no_grad()
def _codes(modality: Modality, value: Any) -> Tensor:
    codes = modality.codes(modality.preprocess(value))
    return codes.reshape(len(codes), -1)
