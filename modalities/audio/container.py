"""Recordings that soundfile cannot read, through PyAV (the extra ``av``): m4a, aac, wma, webm, the sound of videos."""

import io
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

ADTS = (b"\xff\xf1", b"\xff\xf9")
"""How an aac begins, which states no length: FFmpeg guesses one from the first frames."""
STARTS = {
    "aac": (0, ADTS),
    "asf": (0, (b"\x30\x26\xb2\x75",)),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
    "mov": (4, (b"ftyp",)),
}
"""FFmpeg's names of containers, and at which byte they begin how. Left to guess, it may take bytes for a playlist that
leads elsewhere."""
TOLERANCE = 0.95
"""Of the length that the container states: encoders pad the last packet."""


def fits(data: bytes) -> bool:
    """Whether the bytes begin as one of these containers does."""
    return _format(data) is not None


def _format(data: bytes) -> str | None:
    return next((name for name, (place, starts) in STARTS.items() if data.startswith(starts, place)), None)


def decode(data: bytes) -> tuple[int, Iterator[Tensor]]:
    """The first sound of a container: its rate in Hz, and mono samples ``[n]`` (float32) frame by frame.

    ValueError, here or while it is read: PyAV is not installed, the container is damaged, cut short or has no sound.
    """
    try:
        import av
    except ImportError:
        raise ValueError("this kind of recording needs PyAV: pip install 'anyxform[av]'") from None
    try:
        file = av.open(io.BytesIO(data), mode="r", format=_format(data))
    except av.FFmpegError as error:
        raise _unreadable(error) from error
    if not file.streams.audio:
        raise ValueError("the file has no sound: give one that has")
    stream = file.streams.audio[0]
    frames = _frames(file, 0.0 if data.startswith(ADTS) else _seconds(file, stream))
    first = next(frames, torch.zeros(0))  # only now the rate is sure
    if not stream.rate:
        raise ValueError("the file has no sound: give one that has")
    return stream.rate, chain([first], frames)


def _frames(file: Any, stated: float) -> Iterator[Tensor]:
    """The mean of the channels of all frames, whatever the codec gives; the rate stays."""
    import av

    stream, resampler, size = file.streams.audio[0], av.AudioResampler("fltp"), 0
    try:
        with file:
            for frame in chain(file.decode(stream), [None]):
                for part in resampler.resample(frame):
                    samples = torch.from_numpy(part.to_ndarray()).mean(dim=0)
                    size += len(samples)
                    yield samples
    except av.FFmpegError as error:
        raise _unreadable(error) from error
    if size < TOLERANCE * stated * stream.rate:
        raise ValueError(f"the recording is cut short: {size / stream.rate:.4g} of {stated:.4g} s: copy it again")


def _unreadable(error: Any) -> ValueError:
    return ValueError(f"not a recording that can be read ({error.strerror}): export it again, as flac say")


def _seconds(file: Any, stream: Any) -> float:
    """The length that the container states; 0 if it states none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (file.duration or 0) / 1e6  # FFmpeg counts microseconds there
