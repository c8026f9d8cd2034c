"""What is done to log-mel frames ``[F, M]`` in training, with a generator as the only source of chance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modalities.audio.spectrogram import SILENCE


def augment(frames: Tensor, generator: torch.Generator | None, strength: float, multiple: int) -> Tensor:
    """Tempo, pitch, loudness, noise, and masks in time and frequency (SpecAugment, arXiv 1904.08779)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    length, bands = frames.shape
    tempo, pitch = 1 + strength * uniform(-0.15, 0.15), 1 + strength * uniform(-0.1, 0.1)
    new_length = max(multiple, round(length * tempo / multiple) * multiple)
    # tempo stretches the axis of time, pitch (and the size of a speaker's throat) that of frequency
    stretched = F.interpolate(frames[None, None], size=(new_length, round(bands * pitch)), mode="bilinear")[0, 0]
    frames = F.pad(stretched, (0, max(0, bands - stretched.shape[1])), value=SILENCE)[:, :bands]
    frames = frames + strength * uniform(-0.4, 0.4)
    tilt = torch.linspace(-1, 1, bands) * strength * uniform(-0.3, 0.3)
    noise = torch.randn(frames.shape, generator=generator) * strength * uniform(0, 0.25)
    frames = frames + tilt + noise
    for axis, widest, count in ((0, min(16, len(frames) // 5), 2), (1, 12, 2)):
        for _ in range(count):
            width = int(uniform(0, strength * widest + 1))
            start = int(uniform(0, frames.shape[axis] - width + 1))
            frames.narrow(axis, start, min(width, frames.shape[axis] - start)).zero_()
    return frames
