"""Parts of recordings: ranges of time, which tokens they touch, and pasting. Masks are ``[n]`` (bool), one a sample."""

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

from modalities.audio.spectrogram import HOP
from modalities.audio.waveform import SAMPLE_RATE, Waveform

FADE = 0.005
"""Seconds over which what was made anew comes in, at its own cost."""


def named(spec: str, value: Waveform) -> Tensor:
    """The mask of ``from:to`` in seconds; either may be left out."""
    first, colon, last = spec.partition(":")
    try:
        start, end = float(first or 0), float(last or value.seconds)
    except ValueError:
        colon, start, end = "", 0.0, 0.0
    if not colon:
        raise ValueError(f"{spec!r} is no part of a recording: give from:to in seconds, such as 0:1.5 or 2:")
    if not 0 <= start < end <= value.seconds + 0.01:  # a length that was read off somewhere is rounded
        raise ValueError(f"{spec!r} is no part of a recording of {value.seconds:.2f} s: give from:to in seconds")
    mask = torch.zeros(len(value.samples), dtype=torch.bool)
    mask[round(start * value.sample_rate) : round(end * value.sample_rate)] = True
    return mask


def extended(spec: str, value: Waveform) -> tuple[Waveform, Tensor]:
    """The recording with silence of ``after`` or ``before,after`` seconds."""
    try:
        *before, after = (float(part) for part in spec.split(","))
    except ValueError:
        before, after = [], 0.0
    if len(before) > 1 or not 0 < sum(before, after) < 3600 or min(after, *before, 0) < 0:
        raise ValueError(f"{spec!r} is not how much longer a recording can get: give after, or before,after in seconds")
    padding = [round(seconds * value.sample_rate) for seconds in (sum(before), after)]
    mask = F.pad(torch.zeros(len(value.samples), dtype=torch.bool), padding, value=True)
    return Waveform(F.pad(value.samples, padding), value.sample_rate), mask


def touched(mask: Tensor, sample_rate: int, stride: int, length: int, reach: int = 0) -> Tensor:
    """Which of `length` tokens of `stride` frames each have a sample of the mask, or one of the `reach` before has."""
    tokens = (mask.nonzero().flatten() * SAMPLE_RATE // (sample_rate * HOP * stride)).unique()
    found = torch.zeros(length, dtype=torch.bool)
    found[(tokens[:, None] + torch.arange(reach + 1)).clamp_max(length - 1)] = True
    return found


def paste(original: Waveform, edited: Waveform, mask: Tensor) -> Waveform:
    """The edited recording where the mask is, faded in and out inside of it; else the original's samples."""
    new = AF.resample(edited.samples, edited.sample_rate, original.sample_rate)[: len(mask)]
    new = F.pad(new, (0, len(mask) - len(new)))
    reach = max(1, round(FADE * original.sample_rate))
    kept = F.pad((~mask).float()[None], (reach, reach))
    near = F.avg_pool1d(kept, 2 * reach + 1, stride=1)[0]  # about a half beside what is kept, 0 far from it
    share = (1 - 2 * near).clamp_min(0) * mask
    return Waveform(torch.where(mask, torch.lerp(original.samples, new, share), original.samples), original.sample_rate)
