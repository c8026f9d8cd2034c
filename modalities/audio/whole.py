"""Whether a recording's file is whole: of one that is cut short, decoders read what is there and say nothing."""

import struct

TOLERANCE = 0.99
"""Writers of wav and mp3 may err by a percent."""
STREAMED = (0, 0xFFFFFFFF)
"""What a wav says that was written before its length was known."""


def check_whole(data: bytes) -> None:
    """ValueError: fewer bytes than a wav or mp3 says it has, or half a page at the end of an ogg.

    FLAC's decoder finds it by itself; an mp3 without the header of LAME or FFmpeg says nothing of its length.
    """
    formats = {b"RIFF": _wav, b"OggS": _ogg}
    wanted, there = formats.get(data[:4], _mp3)(data)
    if there < wanted:
        raise ValueError(f"the recording is cut short, at byte {len(data)}: copy it again")


def _wav(data: bytes) -> tuple[int, int]:
    """Bytes of samples: said, and there."""
    if data[8:12] not in (b"WAVE", b""):  # another kind of file
        return 0, 0
    place = 12
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind == b"data":
            return (0 if size in STREAMED else int(size * TOLERANCE)), len(data) - place - 8
        place += 8 + size + size % 2
    return 1, 0


def _ogg(data: bytes) -> tuple[int, int]:
    """Bytes of the last page (RFC 3533): a header of 27, the sizes of its segments, and these."""
    page = data[data.rfind(b"OggS") :]
    if len(page) < 27:
        return 27, len(page)
    sizes = page[27 : 27 + page[26]]
    return 27 + page[26] + sum(sizes), len(page)


def _mp3(data: bytes) -> tuple[int, int]:
    """Bytes behind the ID3 tag: said in the first frame, which then holds nothing else, and there."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        a, b, c, d = data[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = data[start : start + 200]
    place = max(first.find(b"Xing"), first.find(b"Info"))
    if first[:1] != b"\xff" or place < 0 or len(first) < place + 16:
        return 0, 0
    (flags,) = struct.unpack_from(">I", first, place + 4)
    if not flags & 2:
        return 0, 0
    (size,) = struct.unpack_from(">I", first, place + (12 if flags & 1 else 8))
    return int(size * TOLERANCE), len(data) - start
