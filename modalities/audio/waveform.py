"""Recordings in memory, from files and back."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor

from modalities.audio import container
from modalities.audio.whole import check_whole

SAMPLE_RATE = 16_000
SHORTEST = 0.03
LARGEST = 2**28
READABLE = "give wav, flac, ogg, opus or mp3, or m4a, aac, wma or webm"


@dataclass(frozen=True)
class Waveform:
    """Mono samples ``[n]`` (float32, about -1 to 1) at `sample_rate` (Hz)."""

    samples: Tensor
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read(data: bytes) -> Waveform:
    """A wav, flac, ogg, opus or mp3 file, or with PyAV an m4a, aac, wma or webm, mixed to mono at 16 kHz.

    ValueError: not a recording, cut short, empty, of more than `LARGEST` samples, or not finite.
    """
    samples, rate = container.decode(data, LARGEST) if container.fits(data) else _decode(data)
    mono = torch.from_numpy(samples).mean(dim=1)
    if len(mono) < SHORTEST * rate:
        raise ValueError(f"the recording lasts {len(mono) / rate:.4g} s, and at least {SHORTEST} s are needed")
    if not mono.isfinite().all():
        raise ValueError("the recording holds samples that are not finite: export it again")
    return Waveform(AF.resample(mono, rate, SAMPLE_RATE))


def _decode(data: bytes) -> tuple[np.ndarray, int]:
    """What soundfile reads: samples ``[n, channels]`` (float32) and their rate in Hz."""
    check_whole(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, size = file.samplerate, file.frames * file.channels
            if file.subtype in ("MPEG_LAYER_I", "MPEG_LAYER_II"):  # which any bytes may be, so near to FF FE
                raise ValueError(f"not a recording that can be read ({file.subtype}): {READABLE}")
            if size > LARGEST:  # silence of days is a small file
                raise ValueError(f"the recording has {size} samples, more than {LARGEST}: cut it")
            return file.read(dtype="float32", always_2d=True), rate
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(" .")
        raise ValueError(f"not a recording that can be read ({reason}): {READABLE}") from error


def write(value: Waveform) -> bytes:
    """A 16-bit wav file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, value.samples.clamp(-1, 1).numpy(), value.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
