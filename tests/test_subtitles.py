"""Subtitles as players read them."""

import json

from anyxform.long import Made, Segment
from anyxform.subtitles import FORMATS, clock

MADE = Made(
    "One. Two & <three>\n\n--> four",
    [Segment(0.0, 1.25, "One."), Segment(2.0, 2.5, " "), Segment(3599.9996, 3661.5, "Two & <three>\n\n--> four")],
)


def test_clocks() -> None:
    assert clock(0, ",") == "00:00:00,000" and clock(59.9996, ".") == "00:01:00.000"
    assert clock(3661.0456, ",") == "01:01:01,046" and clock(360_000, ",") == "100:00:00,000"


def test_srt_numbers_what_is_said_and_has_no_empty_line_within() -> None:
    assert FORMATS["srt"](MADE) == (
        "1\n00:00:00,000 --> 00:00:01,250\nOne.\n\n2\n01:00:00,000 --> 01:01:01,500\nTwo & <three> --> four\n"
    )
    assert FORMATS["srt"](Made("", [])) == ""


def test_vtt_is_escaped() -> None:
    assert FORMATS["vtt"](MADE) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nOne.\n\n"
        "01:00:00.000 --> 01:01:01.500\nTwo &amp; &lt;three&gt; --&gt; four\n"
    )
    assert FORMATS["vtt"](Made("", [])) == "WEBVTT\n"


def test_json_has_the_keys_of_whisper() -> None:
    whole = json.loads(FORMATS["json"](MADE))
    assert whole["text"] == FORMATS["txt"](MADE) == MADE.value
    assert whole["segments"][0] == {"id": 0, "start": 0.0, "end": 1.25, "text": "One."}
    assert [it["id"] for it in whole["segments"]] == [0, 1]
