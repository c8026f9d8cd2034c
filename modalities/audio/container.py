"""Recordings that soundfile cannot read, through PyAV (the extra ``av``): m4a, aac, wma, webm, the sound of videos."""

import io
from itertools import chain
from typing import Any

import numpy as np

ADTS = (b"\xff\xf1", b"\xff\xf9")
"""How an aac begins, which states no length: FFmpeg guesses one from the first frames."""
STARTS = {0: (*ADTS, b"\x30\x26\xb2\x75", b"\x1a\x45\xdf\xa3"), 4: (b"ftyp",)}
"""At which byte which containers begin how: ADTS, ASF, Matroska, ISO media."""
TOLERANCE = 0.95
"""Of the length that the container states: encoders pad the last packet."""


def fits(data: bytes) -> bool:
    """Whether the bytes begin as one of these containers does."""
    return any(data.startswith(starts, place) for place, starts in STARTS.items())


def decode(data: bytes, largest: int) -> tuple[np.ndarray, int]:
    """The first sound of a container: samples ``[n, channels]`` (float32) and their rate in Hz.

    ValueError: PyAV is not installed, or the container is damaged, cut short, without sound, or of more than `largest`
    samples.
    """
    try:
        import av
    except ImportError:
        raise ValueError("this kind of recording needs PyAV: pip install 'anyxform[av]'") from None
    try:
        with av.open(io.BytesIO(data), mode="r") as file:
            if not file.streams.audio:
                raise ValueError("the file has no sound: give one that has")
            stream = file.streams.audio[0]
            samples, rate = _samples(file, stream, av.AudioResampler("fltp"), largest), stream.rate
            stated = 0.0 if data.startswith(ADTS) else _seconds(file, stream)
    except av.FFmpegError as error:
        raise ValueError(
            f"not a recording that can be read ({error.strerror}): export it again, as flac say"
        ) from error
    if len(samples) < TOLERANCE * stated * rate:
        raise ValueError(f"the recording is cut short: {len(samples) / rate:.4g} of {stated:.4g} s: copy it again")
    return samples, rate


def _samples(file: Any, stream: Any, resampler: Any, largest: int) -> np.ndarray:
    """All frames as floats, whatever the codec gives; the rate stays."""
    parts, size = [np.zeros((stream.channels, 0), dtype=np.float32)], 0
    for frame in chain(file.decode(stream), [None]):
        for part in resampler.resample(frame):
            parts.append(part.to_ndarray())
            size += parts[-1].size
            if size > largest:  # silence of days is a small file
                raise ValueError(f"the recording has more than {largest} samples: cut it")
    return np.concatenate(parts, axis=1).T


def _seconds(file: Any, stream: Any) -> float:
    """The length that the container states; 0 if it states none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (file.duration or 0) / 1e6  # FFmpeg counts microseconds there
