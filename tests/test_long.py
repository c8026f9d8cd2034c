"""Inputs of any length: an oracle hears each window exactly, so the whole transcript must be exact, with its times."""

import io
import random
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from anyxform.field import Direction, Field
from anyxform.long import Job, pooled
from anyxform.pipeline import Pipeline
from anyxform.request import Generated
from modalities.audio import Waveform
from tests.long_speech import RATE, SECONDS, WORDS, Oracle, listener, silence, speech


@pytest.fixture
def ax(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    pipeline = listener()
    monkeypatch.setattr("anyxform.long.generate_refined", Oracle(pipeline.modalities["text"]))
    return pipeline


def words_of(seed: int, count: int = 80) -> list[str]:
    chance = random.Random(seed)
    words = [chance.choice(WORDS)]
    while len(words) < count:
        words.append(chance.choice([word for word in WORDS if word not in words[-3:]]))
    return words


def random_gaps(seed: int, count: int = 80) -> list[float]:
    """Mostly none, some breaths, a few pauses."""
    chance = random.Random(seed)
    return [chance.choices([0.0, 0.06, 0.25, 0.9], [0.6, 0.2, 0.15, 0.05])[0] for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_speech_without_a_silence_loses_and_doubles_no_word(seed: int, ax: Pipeline) -> None:
    words = words_of(seed)
    recording = speech(words, [0.1 * seed])
    assert len(ax.modalities["audio"].split(recording)) > 5
    assert ax(("audio", recording), to="text") == " ".join(words)


@pytest.mark.parametrize("seed", range(6))
def test_segments_are_the_words_of_their_times(seed: int, ax: Pipeline) -> None:
    words, gaps = words_of(seed), random_gaps(seed)
    segments = ax.segments(("audio", speech(words, gaps)), to="text")
    assert " ".join(segment.value for segment in segments) == " ".join(words)
    starts = [sum(gaps[: n + 1]) + n * SECONDS for n in range(len(words))]
    place = 0
    for segment in segments:
        count = len(segment.value.split())
        assert segment.start == pytest.approx(starts[place], abs=2 * SECONDS)
        place += count
        assert segment.end == pytest.approx(starts[place - 1] + SECONDS, abs=2 * SECONDS)
    assert all(sooner.end <= later.start for sooner, later in pairwise(segments))


@pytest.mark.parametrize(("rate", "channels", "kind"), [(44_100, 2, "WAV"), (8_000, 1, "FLAC"), (48_000, 3, "WAV")])
def test_files_of_any_rate_and_number_of_channels(rate: int, channels: int, kind: str, ax: Pipeline) -> None:
    from torchaudio.functional import resample

    words = [word for word in words_of(0, 30) if word != "castle"]  # which is too high for 8 kHz
    samples = resample(speech(words, random_gaps(0, 30)).samples, RATE, rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([samples.numpy()] * channels, axis=1), rate, format=kind)
    assert ax(("audio", buffer.getvalue()), to="text") == " ".join(words)


def test_silence_says_nothing(ax: Pipeline) -> None:
    for seconds in (1, 20):
        assert ax(("audio", Waveform(silence(seconds))), to="text") == ""
        assert ax.segments(("audio", Waveform(silence(seconds))), to="text") == []
        with pytest.raises(ValueError, match="the source says nothing"):
            ax(("audio", Waveform(silence(seconds))), to="audio")
    spaced = speech(["river", "stone"], [30, 40])
    assert [(it.value, round(it.start), round(it.end)) for it in ax.segments(("audio", spaced), to="text")] == [
        ("river", 30, 30), ("stone", 70, 71),
    ]  # fmt: skip


def test_a_short_input_is_one_segment_and_the_same_as_an_answer(ax: Pipeline) -> None:
    (segment,) = ax.segments(("audio", speech(["river", "stone"], [1.0])), to="text")
    assert (segment.start, round(segment.end, 2), segment.value) == (1.0, 1.6, "river stone")


def test_only_one_of_several_sources_may_be_long(ax: Pipeline) -> None:
    words = words_of(1, 40)
    assert ax(("audio", speech(words)), ("text", "what is said?"), to="text") == " ".join(words)
    with pytest.raises(ValueError, match=r"several sources \(audio, text\) are longer than the model reads at once"):
        ax(("audio", speech(words)), ("text", "word " * 200), to="text")


def test_a_long_recording_of_one_utterance_may_be_any_of_the_sources(ax: Pipeline) -> None:
    recording = speech(["river", "stone"], [15.0])
    assert recording.seconds > 15
    (spoken,) = ax.request(Direction.parse("audio>text"), [speech(["river", "stone"])]).sources
    for given, values in (("audio+text", [recording, "what?"]), ("text+audio", ["what?", recording])):
        (request,) = ax.job(Direction.parse(f"{given}>text"), values).requests
        (heard,) = (it for it in request.sources if it.modality == "audio")
        assert len(heard.positions) < len(spoken.positions) + 20  # without the silence before


def test_what_cannot_be_joined_is_refused_as_ever() -> None:
    from modalities.image import Image

    ax = listener(image=Image(size=16, width=16))
    with pytest.raises(ValueError, match=r"the recording lasts 12.0 s, longer than max_seconds=6"):
        ax(("audio", speech(words_of(0, 40))), to="image")
    with pytest.raises(ValueError, match="tokens, more than max_length=400"):
        ax("word " * 200, to="image")


def test_pools_are_of_requests_so_that_few_long_inputs_are_in_memory() -> None:
    def job(requests: int) -> Job:
        return Job(Field("text"), [], [None] * requests, "")  # type: ignore[list-item]

    jobs = [job(1), "failed", job(0), job(1), job(9), job(9), job(2)]
    pools = [[it if isinstance(it, str) else len(it.requests) for it in pool] for pool in pooled(jobs, 4)]
    assert pools == [[1, "failed", 0, 1], [9], [9], [2]] and list(pooled([], 4)) == []


# Loops


def looping(monkeypatch: pytest.MonkeyPatch, ax: Pipeline, *answers: tuple[str, float]) -> Oracle:
    """Makes every first answer the first of these, every answer drawn again the next one, with its log-probability."""

    class Looping(Oracle):
        def __call__(self, model, modalities, requests, options, *, batch_size) -> list[Generated]:
            text, logprob = answers[len(self.calls)]
            self.calls.append((options, len(requests)))
            return [Generated(self.codes(text), logprob) for _ in requests]

    oracle = Looping(ax.modalities["text"])
    monkeypatch.setattr("anyxform.long.generate_refined", oracle)
    return oracle


SHORT: tuple[str, Tensor] = ("audio", speech(["river", "stone"]))  # type: ignore[assignment]
LOOP = "so " + "on and " * 20 + "on"


def test_an_answer_that_loops_is_drawn_again(monkeypatch: pytest.MonkeyPatch, ax: Pipeline) -> None:
    oracle = looping(monkeypatch, ax, (LOOP, -1.0), (LOOP, -1.0), ("so it ends", -3.0))
    assert ax(SHORT, to="text", num_beams=3) == "so it ends"
    assert [(it.temperature, it.num_beams, count) for it, count in oracle.calls] == [
        (None, 3, 1),
        (0.4, 1, 1),
        (0.8, 1, 1),
    ]


def test_what_is_unlikely_does_not_replace_it_and_the_loop_is_cut(
    monkeypatch: pytest.MonkeyPatch, ax: Pipeline
) -> None:
    looping(monkeypatch, ax, (LOOP, -1.0), ("gibberish", -60.0), (LOOP, -1.0))
    assert ax(SHORT, to="text") == "so on and"


def test_what_was_drawn_hot_is_not_drawn_colder(monkeypatch: pytest.MonkeyPatch, ax: Pipeline) -> None:
    oracle = looping(monkeypatch, ax, (LOOP, -1.0), ("so it ends", -3.0))
    assert ax(SHORT, to="text", temperature=0.5) == "so it ends"
    assert [it.temperature for it, _ in oracle.calls] == [0.5, 0.8]


def test_only_pieces_that_loop_are_drawn_again(monkeypatch: pytest.MonkeyPatch, ax: Pipeline) -> None:
    class Once(Oracle):
        def __call__(self, model, modalities, requests, options, *, batch_size) -> list[Generated]:
            answers = super().__call__(model, modalities, requests, options, batch_size=batch_size)
            return [Generated(self.codes(LOOP), -1.0), *answers[1:]] if len(self.calls) == 1 else answers

    oracle = Once(ax.modalities["text"])
    monkeypatch.setattr("anyxform.long.generate_refined", oracle)
    words = words_of(2)
    assert ax(("audio", speech(words)), to="text") == " ".join(words)
    assert [count for _, count in oracle.calls] == [oracle.calls[0][1], 1] and oracle.calls[0][1] > 5


def test_counting_is_no_loop(monkeypatch: pytest.MonkeyPatch, ax: Pipeline) -> None:
    looping(monkeypatch, ax, ("five five five five five", -1.0))
    assert ax(SHORT, to="text") == "five five five five five"


# Long texts


def test_a_long_text_becomes_one_text_with_its_own_separators(monkeypatch: pytest.MonkeyPatch, ax: Pipeline) -> None:
    class Echo(Oracle):
        def __call__(self, model, modalities, requests, options, *, batch_size) -> list[Generated]:
            return [Generated(request.sources[0].values[:, None], -1.0) for request in requests]

    monkeypatch.setattr("anyxform.long.generate_refined", Echo(ax.modalities["text"]))
    text = "A first sentence, said.  And a second one!\n\n" * 20 + "The end"
    assert ax(("text", text), to="text") == text
    segments = ax.segments(("text", text), to="text")
    assert len(segments) == 41 and all(text[int(it.start) : int(it.end)] == it.value for it in segments)


def test_seeds_of_pieces_differ_and_the_first_is_the_callers(ax: Pipeline) -> None:
    job = ax.job(Direction.parse("audio>text"), [speech(words_of(0))], seed=7)
    seeds = [request.seed for request in job.requests]
    assert seeds[0] == 7 and len(set(seeds)) == len(seeds) > 5 and max(s for s in seeds if s) < 2**62
    assert torch.equal(job.requests[0].sources[0].values, ax.modalities["audio"].preprocess(job.pieces[0].value))
