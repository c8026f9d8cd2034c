"""Words and when they are said: what spells them best, and whose times they are."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from anyxform.align import align, timed, with_words
from anyxform.data import source
from anyxform.field import Direction, Field
from anyxform.long import Made, Segment
from anyxform.modality import Piece
from anyxform.pipeline import Pipeline
from anyxform.request import Request, prefix
from anyxform.sequence import pack
from anyxform.spelling import aligned_after, spelling, spelt
from modalities.text import Text
from tests.long_speech import SECONDS, WORDS, Oracle, heard, listener, speech
from tests.test_long import random_gaps, words_of
from tests.toy import toys
from tests.toy_training import toy_model

TOKEN = 0.05
"""Seconds of a token of a recording."""


@pytest.mark.parametrize("seed", range(8))
def test_the_likeliest_way_to_spell_the_codes(seed: int) -> None:
    log_p = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    codes = torch.tensor([[0, 1, 1], [2, 0, 2]][seed % 2])
    ways = [way for way in product(range(4), repeat=6) if [c for c, _ in groupby(way) if c < 3] == codes.tolist()]
    best = max(ways, key=lambda way: sum(float(log_p[t, code]) for t, code in enumerate(way)))
    runs = [(code, len(list(run))) for code, run in groupby(best)]
    ends = [sum(length for _, length in runs[: n + 1]) for n in range(len(runs))]
    assert align(log_p, codes) == [(end - n, end) for (code, n), end in zip(runs, ends) if code < 3]


def test_what_is_too_long_to_be_spelt_is_nowhere() -> None:
    log_p = torch.full((3, 5), -math.log(5))
    assert len(align(log_p, torch.tensor([0, 1, 2]))) == 3
    assert align(log_p, torch.tensor([0, 1, 1])) == []  # between equal ones something else must stand
    assert align(log_p, torch.zeros(0, dtype=torch.long)) == []


def test_words_meet_between_where_they_are_told() -> None:
    words, spans = [("one", 1), ("two", 2), ("three", 1)], [(2, 3), (5, 6), (8, 9), (15, 16)]
    found = timed(words, spans, Piece(None, start=10.02, end=10.9, offset=10.0), TOKEN)
    expected = [Segment(10.02, 10.2, "one"), Segment(10.2, 10.6, "two"), Segment(10.6, 10.9, "three")]
    for one, other in zip(found, expected, strict=True):
        assert (one.value, one.start, one.end) == (other.value, pytest.approx(other.start), pytest.approx(other.end))
    assert timed(words, [], Piece(None), TOKEN) == ()
    early = timed(words, spans, Piece(None, start=10.3, end=10.4, offset=10.0), TOKEN)
    assert all(10.3 <= it.start <= it.end <= 10.4 for it in early)


@pytest.mark.parametrize("text", ["Un tigre, là-bas!", "虎です", "one\ntwo", "a", "🐸 frog", "  two   spaces "])
def test_words_of_texts_are_what_stands_between_spaces(text: str) -> None:
    fitted = Text(vocab_size=300)
    list(fitted.fit(["Un tigre, one two, a frog"] * 3))
    for modality in (Text(), fitted):
        codes = modality.codes(modality.preprocess(text))
        words = modality.words_of(codes)
        assert [word for word, _ in words] == text.split() and sum(count for _, count in words) == len(codes)


def test_a_value_that_is_not_divided_is_its_only_word() -> None:
    image = toys()["image"]
    codes = image.codes(image.preprocess(image.example(torch.Generator().manual_seed(0))))
    assert image.words_of(codes) == [(image.from_codes(codes), len(codes))]


def test_sources_are_read_where_they_were_trained() -> None:
    model, modalities, generator = toy_model().eval(), toys(), torch.Generator().manual_seed(0)
    requests = [
        Request((source(modalities[name], modalities[name].example(generator), "text"),), Field("text"))
        for name in ("sound", "text", "sound") * 7
    ]
    found = list(spelt(model, modalities, requests))
    for request, log_p in zip(requests, found, strict=True):
        example = prefix(request, modalities["text"], request.sources)
        states, _ = model.states(pack([example], model.condition_ids), exits=(aligned_after(len(model.blocks)),))
        expected = spelling(model, "text", states[: len(request.sources[0].positions)])
        torch.testing.assert_close(log_p, expected, atol=1e-5, rtol=1e-4)


def told(text: Text) -> Any:
    """Stands for `spelt`: as soon as a word is heard to its end, the last tokens say its codes, else nothing."""

    def spelt(model: Any, modalities: Any, requests: Sequence[Request]) -> Iterator[Tensor]:
        for request in requests:
            frames = request.sources[0].values
            log_p = torch.full((len(frames) // 4, text.vocab_size + 1), -20.0)
            log_p[:, -1] = 0.0
            begun = 0
            for token in range(len(log_p)):
                words = [word for word in heard(frames[: 4 * (token + 1)]).split() if word in WORDS]
                if len(words) > begun:  # the last one has just been heard to its end
                    said, begun = (" " if begun else "") + words[-1], len(words)
                    for back, code in enumerate(reversed(text.codes(text.preprocess(said)).tolist())):
                        log_p[token - back, code] = 1.0
            yield log_p

    return spelt


@pytest.fixture
def ax(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    text = Text(vocab_size=400, max_length=400)
    list(text.fit([" ".join(words_of(seed)) for seed in range(9)]))
    pipeline = listener(text=text)
    monkeypatch.setattr("anyxform.long.generate_refined", Oracle(text))
    monkeypatch.setattr("anyxform.align.spelt", told(text))
    return pipeline


@pytest.mark.parametrize("seed", range(2))
def test_words_of_long_recordings_are_where_they_are_said(seed: int, ax: Pipeline) -> None:
    """In windows that overlap as well, each word stands once."""
    words, gaps = words_of(seed, 40), random_gaps(seed, 40)
    segments = ax.segments(("audio", speech(words, gaps)), to="text", words=True)
    found = [word for segment in segments for word in segment.words or ()]
    assert [word.value for word in found] == words and len(segments) > 3
    for number, word in enumerate(found):
        start = sum(gaps[: number + 1]) + number * SECONDS
        assert word.start == pytest.approx(start, abs=0.3) and word.end == pytest.approx(start + SECONDS, abs=0.3)
    assert all(one.start < one.end <= other.start + 1e-9 for one, other in pairwise(found))


def test_words_that_nobody_asked_for_are_not_there(ax: Pipeline) -> None:
    assert all(it.words is None for it in ax.segments(("audio", speech(["river"])), to="text"))


def test_words_of_what_has_no_time_or_was_not_learnt_are_refused(ax: Pipeline) -> None:
    with pytest.raises(ValueError, match="words are not possible for text>text"):
        ax.segments("river", to="text", words=True)
    for facts, known in (({}, "from nothing"), ({"aligned": ["text:a>text:b"]}, "from text to text")):
        ax.facts = {"facts": {"steps": 1, **facts}}
        with pytest.raises(ValueError, match=f"{known}; train it with train.align_weight"):
            ax.segments(("audio", speech(["river"])), to="text", words=True)
    ax.facts = {"facts": {"aligned": ["audio:en*>text:en"]}}
    assert ax.segments(("audio", speech(["river"])), to="text", words=True)[0].words


def test_more_words_than_the_recording_or_the_model_can_hold_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(vocab_size=400, max_length=20)
    pipeline = listener(text=text)
    monkeypatch.setattr("anyxform.align.spelt", told(text))
    job = pipeline.job(Direction.parse("audio>text"), [speech(["river"])])  # six tokens
    for value, words in (("river", ["river"]), ("a river", []), ("river " * 9, [])):
        (made,) = with_words(pipeline.model, pipeline.modalities, [job], [Made(value, [Segment(0.0, 0.3, value)])])
        assert made.value == value and [it.value for it in made.segments[0].words or ()] == words
        assert made.segments[0].words is not None
    assert with_words(pipeline.model, pipeline.modalities, [job], [Made("", [])]) == [Made("", [])]
