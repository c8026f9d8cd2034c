"""Recordings in memory, from files and back."""

import io
from dataclasses import dataclass

import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor

SAMPLE_RATE = 16_000
SHORTEST = 0.03


@dataclass(frozen=True)
class Waveform:
    """Mono samples ``[n]`` (float32, about -1 to 1) at `sample_rate` (Hz)."""

    samples: Tensor
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read(data: bytes) -> Waveform:
    """A wav, flac, ogg, opus or mp3 file, mixed to mono at 16 kHz. ValueError: not a recording, empty or not finite."""
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a recording that can be read ({error}): give wav, flac, ogg, opus or mp3") from error
    mono = torch.from_numpy(samples).mean(dim=1)
    if len(mono) < SHORTEST * rate:
        raise ValueError(f"the recording lasts {len(mono) / rate:.3f} s, and at least {SHORTEST} s are needed")
    if not mono.isfinite().all():
        raise ValueError("the recording holds samples that are not finite: export it again")
    return Waveform(AF.resample(mono, rate, SAMPLE_RATE))


def write(value: Waveform) -> bytes:
    """A 16-bit wav file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, value.samples.clamp(-1, 1).numpy(), value.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
