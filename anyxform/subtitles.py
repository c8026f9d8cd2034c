"""Segments as the files that users of Whisper know: SubRip, WebVTT, JSON and plain text."""

import json
from collections.abc import Callable
from html import escape
from typing import Any

from anyxform.long import Job, Made, Segment

TIMED = ("srt", "vtt")
"""Formats that need segments in seconds."""


def check(form: str | None, job: Job) -> None:
    """ValueError: a format needs times that the job has not."""
    if form in TIMED and job.unit != "seconds":
        raise ValueError(f"{form} holds the times of a recording, and this input has none: give txt or json")


def srt(made: Made) -> str:
    """SubRip: a number, the span, the text, an empty line."""
    parts = [
        f"{number}\n{clock(segment.start, ',')} --> {clock(segment.end, ',')}\n{_line(segment)}\n"
        for number, segment in enumerate(_spoken(made), start=1)
    ]
    return "\n".join(parts)


def vtt(made: Made) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""
    parts = [
        f"{clock(segment.start, '.')} --> {clock(segment.end, '.')}\n{escape(_line(segment), quote=False)}\n"
        for segment in _spoken(made)
    ]
    return "\n".join(["WEBVTT\n", *parts])


def whole(made: Made) -> str:
    """JSON with the keys of Whisper's: ``{"text": …, "segments": [{"id", "start", "end", "text"}]}``.

    And, where words were asked for, ``"words": [{"word", "start", "end"}]`` in each segment.
    """
    segments: list[dict[str, Any]] = [
        {"id": number, "start": round(it.start, 3), "end": round(it.end, 3), "text": it.value}
        for number, it in enumerate(_spoken(made))
    ]
    for segment, it in zip(segments, _spoken(made)):
        if it.words is not None:
            segment["words"] = [
                {"word": word.value, "start": round(word.start, 3), "end": round(word.end, 3)} for word in it.words
            ]
    return json.dumps({"text": made.value, "segments": segments}, ensure_ascii=False, indent=2) + "\n"


FORMATS: dict[str, Callable[[Made], str]] = {"txt": lambda made: made.value, "srt": srt, "vtt": vtt, "json": whole}
"""By file ending."""


def clock(seconds: float, point: str) -> str:
    """``01:02:03,456``."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    whole, thousandths = divmod(milliseconds, 1000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{whole:02d}{point}{thousandths:03d}"


def _spoken(made: Made) -> list[Segment]:
    return [segment for segment in made.segments if segment.value.strip()]


def _line(segment: Segment) -> str:
    """An empty line would end it."""
    return " ".join(segment.value.split())
