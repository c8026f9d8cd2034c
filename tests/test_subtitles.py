"""Subtitles as players read them."""

import json
from dataclasses import replace

import pytest
import torch

from anyxform.field import Field
from anyxform.long import Made, Segment
from anyxform.request import Generated
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


def test_text_has_a_line_for_each_segment_of_a_recording() -> None:
    """And is left as it is where it was made of a text, whose lines mean something."""
    assert FORMATS["txt"](replace(MADE, unit="seconds")) == "One.\nTwo & <three> --> four\n"
    assert FORMATS["txt"](replace(MADE, unit="characters")) == FORMATS["txt"](MADE) == MADE.value


def test_json_has_keys_of_whisper() -> None:
    codes = [torch.tensor([[5], [7]]), torch.tensor([[1]]), torch.tensor([[3], [4], [9]])]
    answers = [Generated(it, logprob=-3.0) for it in codes]
    whole = json.loads(FORMATS["json"](replace(MADE, answers=answers, target=Field("text", "fr"))))
    assert whole["text"] == MADE.value and whole["language"] == "fr"
    assert whole["segments"] == [
        {"id": 0, "start": 0.0, "end": 1.25, "text": "One.", "tokens": [5, 7], "avg_logprob": -1.0},
        {
            "id": 1, "start": 3600.0, "end": 3661.5, "text": "Two & <three>\n\n--> four",
            "tokens": [3, 4, 9], "avg_logprob": -0.75,
        },
    ]  # fmt: skip


@pytest.mark.parametrize("target", [None, Field("text"), Field("text", "formal-fr")])
def test_json_says_nothing_that_is_not_known(target: Field | None) -> None:
    whole = json.loads(FORMATS["json"](replace(MADE, target=target)))
    assert whole.keys() == {"text", "segments"} and whole["segments"][0].keys() == {"id", "start", "end", "text"}
