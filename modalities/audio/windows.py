"""Where a recording is cut to be read: at silences, and only where there is none, in the middle of speech.

Levels are counted in frames of 20 ms. Speech is what is less than `DEPTH` below the loud parts and above `QUIETEST`:
energy alone decides, so steady noise above that is not told from speech.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

FRAME = 0.02
"""Seconds."""
QUIETEST = -60.0
"""dB of full scale: what is nowhere louder is silence."""
DEPTH = 35.0
"""dB below the loud parts, those that 5 % of the sounding frames exceed."""
PAUSE = 0.5
"""Seconds of silence that part two utterances, each of which is read by itself."""
BREATH = 0.16
"""Seconds of silence at which an utterance that is too long may be cut; a stop consonant's is shorter."""
PADDING = 0.2
"""Seconds of silence, at most, that a window keeps on either side."""
OVERLAP = 2.0
"""Seconds, at most a third of a window, that two windows share where there is no silence to cut at."""


@dataclass(frozen=True)
class Window:
    """Samples ``[first, last)`` to read, the span in samples that they stand for, and how many the last one has too."""

    first: int
    last: int
    start: int
    end: int
    overlap: int = 0


Run = tuple[int, int]
"""Frames from, and up to but without."""


def windows(samples: Tensor, sample_rate: int, longest: float) -> list[Window]:
    """Windows of at most `longest` seconds that hold all speech of samples ``[n]``; none if there is none."""
    size = round(FRAME * sample_rate)
    most = int(longest / FRAME)
    padding = min(round(PADDING / FRAME), most // 20)
    shared = min(round(OVERLAP / FRAME), most // 3)
    spans = [
        span
        for utterance in utterances(speech(levels(samples, size)))
        for span in _cut(utterance, max(2, most - 2 * padding), shared)
    ]
    return _padded(spans, padding, size, len(samples))


def levels(samples: Tensor, size: int) -> Tensor:
    """The level of each frame of `size` samples in dB of full scale ``[F]``, without a constant offset of all."""
    centred = samples - samples.mean() if len(samples) else samples
    frames = torch.nn.functional.pad(centred, (0, -len(samples) % size)).view(-1, size)
    return 20 * frames.square().mean(dim=1).sqrt().clamp_min(1e-9).log10()


def speech(level: Tensor) -> list[Run]:
    """The runs of frames with speech."""
    sounding = level[level > QUIETEST].sort().values
    if not len(sounding):
        return []
    loud = float(sounding[int(0.95 * (len(sounding) - 1))])
    voiced = (level > max(QUIETEST, loud - DEPTH)).int()
    edges = torch.nn.functional.pad(voiced, (1, 1)).diff()
    return list(zip((edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()))


def utterances(runs: list[Run]) -> list[list[Run]]:
    """Runs that no pause parts, together."""
    found: list[list[Run]] = []
    for run in runs:
        if found and run[0] - found[-1][-1][1] < PAUSE / FRAME:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def _cut(utterance: list[Run], most: int, shared: int) -> list[Run]:
    """An utterance as spans of at most `most` frames: cut in its longest silences, else `shared` frames overlap."""
    start, end = utterance[0][0], utterance[-1][1]
    gaps = [(sooner[1], later[0]) for sooner, later in pairwise(utterance)]
    silences = [gap for gap in gaps if gap[1] - gap[0] >= BREATH / FRAME]
    spans = []
    while end - start > most:
        near = [silence for silence in silences if start + most // 3 <= silence[0] <= start + most]
        if near:
            cut, after = max(near, key=lambda silence: (silence[1] - silence[0], silence[0]))
        else:
            cut, after = start + most, start + most - shared
        spans.append((start, cut))
        start = after
    return [*spans, (start, end)]


def _padded(spans: list[Run], padding: int, size: int, length: int) -> list[Window]:
    """Spans of frames as windows of samples, with some of the silence beside them, and parted where they overlap."""
    if not spans:
        return []
    between = [later[0] - sooner[1] for sooner, later in pairwise(spans)]  # below 0 where they overlap
    edges = [2 * spans[0][0], *between, 2 * (-(-length // size) - spans[-1][1])]
    found = []
    for (first, last), (before, after) in zip(spans, pairwise(edges)):
        start, end = first + max(0, -before) // 2, last - (max(0, -after) + 1) // 2
        first, last = first - min(padding, max(0, before) // 2), last + min(padding, max(0, after) // 2)
        first, last, start, end = (min(frame * size, length) for frame in (first, last, start, end))
        found.append(Window(first, last, start, end, overlap=max(0, -before) * size))
    return found
