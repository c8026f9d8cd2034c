"""Recordings in memory, from files and back."""

import io
import math
from collections.abc import Iterable, Iterator
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
LARGEST = 2**29
"""Samples at 16 kHz: 9 hours, 2 GiB."""
TOO_LONG = "the recording lasts longer than {:.3g} hours: cut it"
BLOCK, MARGIN = 30, 0.1
"""Seconds that are decoded and resampled at once, and on either side those that the resampling filter looks at too."""
MOST_WEIGHTS = 2**26
"""Of the resampling filter, in one direction of its table: rates without a common factor with 16 kHz would take GB."""
MOST_CHANNELS = 32
READABLE = "give wav, flac, ogg, opus or mp3, or m4a, aac, wma or webm"


@dataclass(frozen=True)
class Waveform:
    """Mono samples ``[n]`` (float32, about -1 to 1) at `sample_rate` (Hz)."""

    samples: Tensor
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def accept(value: object) -> Waveform:
    """A recording; samples ``[n]`` or ``[channels, n]``, floats or whole numbers, beside their rate are made one."""
    if isinstance(value, Waveform):
        samples, rate = value.samples, value.sample_rate
    elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray | Tensor):
        samples, rate = torch.as_tensor(value[0]), value[1]
    else:
        raise ValueError(f"a recording is (samples, rate in Hz) or a Waveform, not {type(value).__name__}")
    if samples.ndim not in (1, 2) or not samples.numel() or (samples.ndim == 2 and len(samples) > MOST_CHANNELS):
        raise ValueError(f"samples are [n] or [channels, n], not {list(samples.shape)}")
    if not isinstance(rate, int | np.integer) or rate < 1:
        raise ValueError(f"a recording's rate is a whole number of Hz, not {rate!r}")
    whole = not samples.is_floating_point()
    samples = samples.float() / (torch.iinfo(samples.dtype).max + 1) if whole else samples.float()
    samples = samples.mean(dim=0) if samples.ndim == 2 else samples
    if not samples.isfinite().all():
        raise ValueError("the recording holds samples that are not finite")
    return Waveform(samples, int(rate))


def read(data: bytes) -> Waveform:
    """A wav, flac, ogg, opus or mp3 file, or with PyAV an m4a, aac, wma or webm, mixed to mono at 16 kHz.

    It is decoded block by block: of a long one, only the result is in memory, 230 MB an hour, and for a moment twice.
    ValueError: not a recording, cut short, empty, longer than `LARGEST` allows, or not finite.
    """
    rate, blocks = container.decode(data) if container.fits(data) else _decode(data)
    samples = _joined(resampled(blocks, rate))
    if len(samples) < SHORTEST * SAMPLE_RATE:
        raise ValueError(
            f"the recording lasts {len(samples) / SAMPLE_RATE:.4g} s, and at least {SHORTEST} s are needed"
        )
    if not samples.isfinite().all():
        raise ValueError("the recording holds samples that are not finite: export it again")
    return Waveform(samples)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    found, size = [], 0
    for part in parts:
        found.append(part)
        size += len(part)
        if size > LARGEST:
            raise ValueError(TOO_LONG.format(LARGEST / SAMPLE_RATE / 3600))
    return torch.cat(found)


def _decode(data: bytes) -> tuple[int, Iterator[Tensor]]:
    """What soundfile reads: its rate in Hz, and mono samples ``[n]`` block by block."""
    check_whole(data)
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error
    if file.subtype in ("MPEG_LAYER_I", "MPEG_LAYER_II"):  # which any bytes may be, so near to FF FE
        raise ValueError(f"not a recording that can be read ({file.subtype}): {READABLE}")
    if file.frames / file.samplerate > LARGEST / SAMPLE_RATE:  # silence of days is a small file
        raise ValueError(TOO_LONG.format(LARGEST / SAMPLE_RATE / 3600))
    return file.samplerate, _blocks(file)


def _blocks(file: soundfile.SoundFile) -> Iterator[Tensor]:
    try:
        with file:
            for block in file.blocks(BLOCK * file.samplerate, dtype="float32", always_2d=True):
                yield torch.from_numpy(block).mean(dim=1)
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error


def _unreadable(error: soundfile.LibsndfileError) -> ValueError:
    return ValueError(f"not a recording that can be read ({error.error_string.strip(' .')}): {READABLE}")


def resampled(parts: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """Samples ``[n]`` at `rate` Hz, in parts, as samples at `SAMPLE_RATE`, in blocks: the same as of all at once."""
    common = math.gcd(rate, SAMPLE_RATE)
    whole = rate // common  # so many samples become a whole number of others
    if whole * (SAMPLE_RATE // common) > MOST_WEIGHTS:
        raise ValueError(f"the recording has the odd rate of {rate} Hz: export it at a common one, such as 48000")
    block, margin = (math.ceil(seconds * rate / whole) * whole for seconds in (BLOCK, MARGIN))
    held, size, before = [torch.zeros(0)], 0, 0  # `before`: of those held, how many are there for the filter alone
    for part in parts:
        held.append(part)
        size += len(part)
        while size > before + block + margin:
            joined = torch.cat(held)
            made = AF.resample(joined[: before + block + margin], rate, SAMPLE_RATE)
            yield made[before * SAMPLE_RATE // rate : (before + block) * SAMPLE_RATE // rate]
            held, before = [joined[before + block - margin :]], margin
            size = len(held[0])
    yield AF.resample(torch.cat(held), rate, SAMPLE_RATE)[before * SAMPLE_RATE // rate :]


def at_model_rate(value: Waveform) -> Tensor:
    """Its samples ``[n]`` at `SAMPLE_RATE`."""
    return torch.cat([*resampled(value.samples.split(BLOCK * value.sample_rate), value.sample_rate)])


def write(value: Waveform) -> bytes:
    """A 16-bit wav file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, value.samples.clamp(-1, 1).numpy(), value.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
