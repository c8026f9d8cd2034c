"""What every source of the starter gives: drafts of samples, and how their pictures and recordings are stored."""

import io
import re
from dataclasses import dataclass, field

import numpy as np
import soundfile
from PIL import Image

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "ro", "bg")
SIZE = 64
SAMPLE_RATE = 16_000
LONGEST = 4.0
"""Seconds; longer recordings are left out, none is cut."""


@dataclass
class Draft:
    """A sample before it is split: `media` maps member endings (``noto.webp``, ``fr-tux.ogg``) to bytes.

    `origins` are digests of the recordings as the packages hold them: samples that share one are one group.
    """

    dataset: str
    key: str
    text: dict[str, str]
    media: dict[str, bytes] = field(default_factory=dict)
    origins: set[str] = field(default_factory=set)
    about: str = ""


def safe_key(text: str) -> str:
    """A key that webdataset can use: no dots, no slashes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)


def webp(picture: Image.Image) -> bytes:
    """A picture on white, padded to a square of 64 × 64, as WebP: lossless or not, whichever is smaller."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    encoded = []
    for options in ({"lossless": True}, {"quality": 75}):
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", method=6, **options)
        encoded.append(buffer.getvalue())
    return min(encoded, key=len)


def trim(samples: np.ndarray, margin: float = 0.06) -> np.ndarray:
    """Cut silence off both ends of mono samples at 16 kHz: frames 40 dB below the loudest, but for a margin."""
    frame = SAMPLE_RATE // 50
    energy = np.sqrt(np.mean(np.square(samples[: len(samples) // frame * frame].reshape(-1, frame)), axis=1) + 1e-12)
    loud = np.flatnonzero(energy > energy.max(initial=0) * 0.01)
    if not len(loud):
        return samples[:0]
    start, end = loud[0] * frame - margin * SAMPLE_RATE, (loud[-1] + 1) * frame + margin * SAMPLE_RATE
    return samples[max(0, int(start)) : int(end)]


def opus(samples: np.ndarray) -> bytes:
    """Mono samples at 16 kHz as Opus in Ogg at about 13 kbit/s, their peak at 0.9."""
    samples = samples * (0.9 / max(1e-4, float(np.abs(samples).max())))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=0.995)
    return buffer.getvalue()


def outliers(lengths: list[int], durations: list[float], limit: float = 4.0) -> list[bool]:
    """Which durations are further than `limit` robust deviations from the line through text lengths."""
    x, y = np.array(lengths, float), np.array(durations)
    if len(x) < 10:
        return [False] * len(x)
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - (slope * x + intercept)
    residuals -= np.median(residuals)
    return list(np.abs(residuals) > limit * 1.4826 * np.median(np.abs(residuals)))
