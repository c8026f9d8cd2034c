"""Segments as the files that users of Whisper know: SubRip, WebVTT, JSON and plain text."""

import json
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from anyxform.long import Job, Made, Segment
from anyxform.request import Generated

TIMED = ("srt", "vtt")
"""Formats that need segments in seconds."""
LANGUAGE = re.compile(r"[a-z]{2,3}")
"""What a target's first attribute looks like where it is a language (ISO 639)."""


def timed(it: Job | Made) -> bool:
    """Whether its segments are those of a recording, or of something else that has time."""
    return it.unit == "seconds"


def check(form: str | None, job: Job) -> None:
    """ValueError: a format needs times that the job has not."""
    if form in TIMED and not timed(job):
        raise ValueError(f"{form} holds the times of a recording, and this input has none: give txt or json")


def lines(made: Made) -> str:
    """A line for each segment of a recording; anything else as it is, with the lines that it has."""
    return "".join(f"{_line(segment)}\n" for segment in _spoken(made)) if timed(made) else str(made.value)


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
    """JSON with keys of Whisper's: ``{"text": …, "segments": […], "language": …}``.

    A segment has ``id``, ``start``, ``end`` and ``text``; ``tokens``, the codes of its piece, before texts of
    overlapping windows were merged, and ``avg_logprob``, their mean log-probability, the end counted; and, where words
    were asked for, ``words`` of ``word``, ``start`` and ``end``. ``language`` is that of the text, where the target's
    first attribute is one.
    """
    answers: Sequence[Generated | None] = made.answers or [None] * len(made.segments)
    spoken = [pair for pair in zip(made.segments, answers, strict=True) if pair[0].value.strip()]
    segments = [{"id": number, **_segment(*pair)} for number, pair in enumerate(spoken)]
    first = made.target.attributes[0] if made.target is not None and made.target.attributes else ""
    language = {"language": first} if LANGUAGE.fullmatch(first) else {}
    return json.dumps({"text": made.value, "segments": segments, **language}, ensure_ascii=False, indent=2) + "\n"


def _segment(it: Segment, answer: Generated | None) -> dict[str, Any]:
    own: dict[str, Any] = {"start": round(it.start, 3), "end": round(it.end, 3), "text": it.value}
    if answer is not None:
        own["tokens"] = answer.codes.squeeze(1).tolist()
        own["avg_logprob"] = answer.logprob / (len(answer.codes) + 1)
    if it.words is not None:
        own["words"] = [
            {"word": word.value, "start": round(word.start, 3), "end": round(word.end, 3)} for word in it.words
        ]
    return own


FORMATS: dict[str, Callable[[Made], str]] = {"txt": lines, "srt": srt, "vtt": vtt, "json": whole}
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
