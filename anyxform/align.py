"""When each word of a transcript is said: the likeliest way in which the source's own tokens spell it.

For models that were trained with `train.align_weight` (`anyxform.spelling`). Letters: T source tokens, L codes of V.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from anyxform.long import Job, Made, Segment
from anyxform.modality import Modality, Piece
from anyxform.model import Transformer
from anyxform.spelling import spelt

Span = tuple[int, int]
"""Source tokens from, and up to but without."""


def with_words(
    model: Transformer, modalities: Mapping[str, Modality], jobs: Sequence[Job], made: Sequence[Made]
) -> list[Made]:
    """What was made of jobs of one source each, its segments with their words; none where it says more than fits."""
    places = [(n, place) for n, it in enumerate(made) for place, segment in enumerate(it.segments) if segment.value]
    segments = [list(it.segments) for it in made]
    requests = [jobs[n].requests[place] for n, place in places]
    for (n, place), request, log_p in zip(places, requests, spelt(model, modalities, requests), strict=True):
        target, segment = modalities[request.target.modality], segments[n][place]
        step = modalities[request.sources[0].modality].token_span
        words: tuple[Segment, ...] = ()
        with suppress(ValueError):  # written anew, a text may have more tokens than may be read
            codes = target.codes(target.preprocess(segment.value)).flatten()
            words = timed(target.words_of(codes), align(log_p, codes), jobs[n].pieces[place], step)
        segments[n][place] = replace(segment, words=words)
    return [replace(it, segments=own) for it, own in zip(made, segments)]


def align(log_p: Tensor, codes: Tensor) -> list[Span]:
    """The source tokens of each code ``[L]``, in order; none of any if they are more than log-probabilities
    ``[T, V + 1]`` can spell.
    """
    from torchaudio.functional import forced_align, merge_tokens  # which takes its time

    repeats = int((codes[1:] == codes[:-1]).sum())  # between equal ones something else must stand
    if not 0 < len(codes) + repeats <= len(log_p):
        return []
    nothing = log_p.shape[1] - 1
    path, scores = forced_align(log_p[None], codes[None], blank=nothing)
    return [(it.start, it.end) for it in merge_tokens(path[0], scores[0], blank=nothing)]


def timed(words: Sequence[tuple[Any, int]], spans: Sequence[Span], piece: Piece, step: float) -> tuple[Segment, ...]:
    """Words with how many codes each takes, as segments of a piece of which a token is `step` long.

    Where a word is told is a narrow place within it: two of them meet half-way between these places.
    """
    if not spans:
        return ()
    first, places = 0, []
    for value, count in words:
        places.append((value, spans[first][0], spans[first + count - 1][1]))
        first += count
    meet = [piece.offset + step * (one[2] + other[1]) / 2 for one, other in pairwise(places)]
    edges = [piece.start, *(min(max(it, piece.start), piece.end) for it in meet), piece.end]
    return tuple(Segment(start, end, value) for (value, _, _), (start, end) in zip(places, pairwise(edges)))
