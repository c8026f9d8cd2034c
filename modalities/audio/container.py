"""Recordings that soundfile cannot read, through PyAV (the extra ``av``): m4a, aac, wma, webm, the sound of videos."""

import io

import numpy as np

STARTS = {0: (b"\xff\xf1", b"\xff\xf9", b"\x30\x26\xb2\x75", b"\x1a\x45\xdf\xa3"), 4: (b"ftyp",)}
"""At which byte which containers begin how: ADTS, ASF, Matroska, ISO media."""
TOLERANCE = 0.95
"""Of the length that the container states: encoders pad the last packet."""


def fits(data: bytes) -> bool:
    """Whether the bytes begin as one of these containers does."""
    return any(data.startswith(starts, place) for place, starts in STARTS.items())


def decode(data: bytes) -> tuple[np.ndarray, int]:
    """The first sound of a container: samples ``[n, channels]`` (float32) and their rate in Hz.

    ValueError: PyAV is not installed, or the container is damaged, cut short, or has no sound.
    """
    try:
        import av
    except ImportError:
        raise ValueError("this kind of recording needs PyAV: pip install 'anyxform[av]'") from None
    try:
        with av.open(io.BytesIO(data), mode="r") as file:
            if not file.streams.audio:
                raise ValueError("the file has no sound")
            stream = file.streams.audio[0]
            resampler = av.AudioResampler("fltp")  # floats, whatever the codec gives; the rate stays
            frames = [*file.decode(stream), None]
            parts = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
            rate, stated = stream.rate, float((stream.duration or 0) * (stream.time_base or 0))
    except av.FFmpegError as error:
        raise ValueError(f"not a recording that can be read ({error.strerror})") from error
    samples = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), dtype=np.float32)
    if len(samples) < TOLERANCE * stated * rate:
        raise ValueError(f"the recording is cut short: {len(samples) / rate:.4g} of {stated:.4g} s: copy it again")
    return samples, rate
