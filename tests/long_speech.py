"""Recordings in which each word is a pitch, and an oracle in a model's place that hears exactly what a window holds."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from anyxform.pipeline import Pipeline
from anyxform.request import Generated, Request
from modalities.audio import Audio, Waveform
from modalities.audio.spectrogram import log_mel
from modalities.text import Text

WORDS = [
    "river", "stone", "green", "window", "seven", "music", "paper", "doctor", "yellow", "market", "winter", "button",
    "engine", "lemon", "castle",
]  # fmt: skip
SECONDS = 0.3
"""Of a word."""
RATE = 16_000
FRAMES = round(SECONDS * 80)


def spoken(word: str) -> Tensor:
    pitch = 250 * 1.22 ** WORDS.index(word)
    return 0.3 * torch.sin(2 * math.pi * pitch * torch.arange(round(SECONDS * RATE)) / RATE)


def speech(words: Sequence[str], gaps: Sequence[float] = ()) -> Waveform:
    """Words one after the other, with so many seconds of silence before each, none where there is no number."""
    gaps = [*gaps, *[0.0] * (len(words) - len(gaps))]
    return Waveform(torch.cat([it for gap, word in zip(gaps, words) for it in (silence(gap), spoken(word))]))


def silence(seconds: float) -> Tensor:
    return torch.zeros(round(seconds * RATE))


BANDS = [int(log_mel(spoken(word), 1)[6:-6].mean(dim=0).argmax()) for word in WORDS]
assert len(set(BANDS)) == len(WORDS)


def heard(frames: Tensor) -> str:
    """The words of log-mel frames ``[F, M]``; of a word that is cut, a part that is no word."""
    loud = frames.amax(dim=1) > 1.0
    nearest = [min(range(len(BANDS)), key=lambda n: abs(BANDS[n] - band)) for band in frames.argmax(dim=1).tolist()]
    runs: list[list[int]] = []
    for sounding, word in zip(loud.tolist(), nearest):
        if not sounding:
            word = -1
        if runs and runs[-1][0] == word:
            runs[-1][1] += 1
        else:
            runs.append([word, 1])
    words = [WORDS[word][: 99 if length > 0.8 * FRAMES else 2] for word, length in runs if word >= 0 and length > 4]
    return " ".join(words)


class Oracle:
    """Stands for `anyxform.generate.generate`: hears the first source; `loops` says which answers are loops how often.

    `calls` are the options of each call and how many requests it had.
    """

    def __init__(self, text: Text) -> None:
        self.text, self.calls = text, list[tuple[Any, int]]()

    def __call__(
        self, model: Any, modalities: Any, requests: Sequence[Request], options: Any, *, batch_size: int
    ) -> list[Generated]:
        self.calls.append((options, len(requests)))
        return [Generated(self.codes(heard(request.sources[0].values)), -1.0) for request in requests]

    def codes(self, answer: str) -> Tensor:
        return (self.text.preprocess(answer) if answer else torch.zeros(0, dtype=torch.long))[:, None]


def listener(**modalities: Any) -> Pipeline:
    """A pipeline for speech and text whose model is never asked: see `Oracle`."""
    known = {"text": Text(max_length=400), "audio": Audio(width=16), **modalities}
    model = SimpleNamespace(condition_ids={f"to:{name}": n for n, name in enumerate(known)})
    return Pipeline(cast(Any, model), known)
