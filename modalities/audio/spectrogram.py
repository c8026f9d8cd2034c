"""Log-mel spectrograms of recordings at 16 kHz, and the way back. F frames of 12.5 ms, M mel bands."""

import math
from functools import cache
from typing import Any

import torch
import torchaudio.functional as AF
from torch import Tensor

from modalities.audio.waveform import SAMPLE_RATE

HOP, WINDOW, FFT = 200, 800, 1024
"""Samples. The window is long for speech recognition, but without its overlap no phase can be guessed."""
BANDS = 80
FLOOR = 1e-4
MEAN, DEVIATION = -4.8, 2.2
"""Of log-mel values over telephone prompts in English."""
SILENCE = (math.log(FLOOR) - MEAN) / DEVIATION


@cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW)


@cache
def _filters() -> Tensor:
    """``[FFT/2 + 1, M]``."""
    return AF.melscale_fbanks(FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")


@cache
def _inverse_filters() -> Tensor:
    return torch.linalg.pinv(_filters())


def log_mel(samples: Tensor, multiple: int) -> Tensor:
    """Samples ``[n]`` as normalised log-mel frames ``[F, M]``, silence added at the end to a multiple of frames."""
    missing = -len(samples) % (HOP * multiple)
    samples = torch.cat([samples, samples.new_zeros(missing)])
    spectrum = torch.stft(
        samples, FFT, HOP, WINDOW, _window(), center=True, pad_mode="constant", return_complex=True
    )  # [FFT/2 + 1, n/HOP + 1]
    mel = spectrum.abs()[:, :-1].T @ _filters()
    return (mel.clamp_min(FLOOR).log() - MEAN) / DEVIATION


def recipe() -> dict[str, Any]:
    """What `log_mel` does, in numbers: the magnitudes of centred windows, padded with zeros, in Slaney's mel bands."""
    return {
        "hop": HOP, "window": WINDOW, "fft": FFT, "bands": BANDS, "mel": "slaney", "floor": FLOOR, "mean": MEAN,
        "deviation": DEVIATION, "formula": "(log(max(mel, floor)) - mean) / deviation",
    }  # fmt: skip


def griffin_lim(frames: Tensor, iterations: int = 60) -> Tensor:
    """Frames ``[F, M]`` as samples ``[F · HOP]``, phases guessed: fast Griffin-Lim, doi 10.1109/WASPAA.2013.6701851."""
    mel = (frames.float() * DEVIATION + MEAN).exp()
    mel = torch.where(mel <= FLOOR * 1.5, torch.zeros_like(mel), mel)
    spectrum = (mel @ _inverse_filters()).clamp_min(0).T
    spectrum = torch.cat([spectrum, spectrum[:, -1:]], dim=1)
    return AF.griffinlim(
        spectrum, _window(), FFT, HOP, WINDOW, power=1.0, n_iter=iterations, momentum=0.99,
        length=len(frames) * HOP, rand_init=False,
    )  # fmt: skip


def distance(a: Tensor, b: Tensor) -> float:
    """Log-spectral distance (dB) of frames ``[F, M]``: root mean square over bands, mean over frames.

    The first is stretched linearly in time to the length of the second.
    """
    if len(a) != len(b):
        a = torch.nn.functional.interpolate(a.T[None], size=len(b), mode="linear", align_corners=False)[0].T
    decibels = 20 / torch.log(torch.tensor(10.0)) * DEVIATION
    return float(((a - b).square().mean(dim=1).sqrt() * decibels).mean())
