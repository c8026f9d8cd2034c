"""Candidates: which are drawn, and that the ranking is the likelihood of the way back."""

from pathlib import Path

import pytest
import torch

import anyxform
from anyxform.candidates import RANKS, Rank, draw
from anyxform.field import Direction, Field
from anyxform.likelihood import likelihoods
from anyxform.pipeline import Pipeline
from anyxform.request import Generated
from anyxform.sampling import Sampling
from modalities.audio.waveform import Waveform
from tests.tiny import Tiny, picture


@pytest.fixture(scope="module")
def ax(checkpoint: Path) -> Pipeline:
    return anyxform.load(str(checkpoint), device="cpu")


DISC = ("image", picture("red", "disc", torch.Generator().manual_seed(5)))


def test_the_first_is_what_is_answered_without_candidates(ax: Pipeline) -> None:
    for given, to in ((DISC, "text:en"), ("a red disc", "image"), ("a red disc", "audio")):
        save = ax.modalities[to.partition(":")[0]].save
        alone = save(ax(given, to=to, seed=4))
        assert save(ax(given, to=to, seed=4, n=1)) == alone
        assert alone in [save(it.value) for it in ax.candidates(given, to=to, seed=4, n=4)]


def test_an_answer_that_cannot_be_read_comes_last(ax: Pipeline) -> None:
    """Texts of few large tokens, that come back as more and smaller ones."""
    scores = [it.score for it in ax.candidates(DISC, to="text:en", n=16)]
    assert scores[-1] == -float("inf") < scores[0]


def test_candidates_differ_and_follow_from_the_seed(ax: Pipeline) -> None:
    found = ax.candidates(DISC, to="text:en", length=6, n=5)
    assert 1 < len(found) <= 5 and len({it.value for it in found}) == len(found)
    assert (
        ax.candidates(DISC, to="text:en", length=6, n=5)
        == found
        != ax.candidates(DISC, to="text:en", length=6, n=5, seed=100)
    )
    assert ax(DISC, to="text:en", length=6, n=5) == found[0].value


def test_they_depend_on_no_other_request(ax: Pipeline) -> None:
    requests = [ax.request(Direction((Field("text"),), Field("image")), [text]) for text in ("a red disc", "a bird")]
    options = Sampling(temperature=2.0)
    (alone,) = draw(ax.model, ax.modalities, requests[:1], 3, options)
    together = draw(ax.model, ax.modalities, requests, 3, options)[0]
    assert len(alone) == len(together) == 3 and all(map(torch.equal, alone, together))


def test_none_of_them_loops(ax: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, loop, asked = torch.tensor([[1], [2]]), torch.full((20, 1), 5), []

    def looping(model, modalities, requests, options, *, batch_size) -> list[Generated]:
        asked.append((options.temperature, len(requests)))
        return [Generated(first if len(asked) == 1 else loop, -1.0) for _ in requests]

    monkeypatch.setattr("anyxform.long.generate_refined", looping)
    request = ax.request(Direction.parse("image>text:en"), [ax.read(DISC)[1]])
    (found,) = draw(ax.model, ax.modalities, [request], 3, Sampling())
    assert [it.flatten().tolist() for it in found] == [[1, 2], [5]]
    assert asked == [(None, 1), (0.7, 2), (0.8, 2)]


def test_of_silence_there_is_nothing_to_choose(ax: Pipeline) -> None:
    found = ax.candidates(("audio", Waveform(torch.zeros(8000))), to="text", n=3)
    assert [(it.value, it.score) for it in found] == [("", 0.0)]
    assert ax(("audio", Waveform(torch.zeros(8000))), to="text:fr", via="text:en") == ""


def back(ax: Pipeline, sources: list[str], value: object, field: str) -> float:
    """By the definition: how likely each source is, given the answer alone."""
    total, text = 0.0, ax.modalities["text"]
    for source in sources:
        request = ax.request(Direction((Field(field),), Field("text")), [value])
        (score,) = likelihoods(ax.model, ax.modalities, [request], [text.codes(text.preprocess(source))[:, None]])
        total += score
    return total


@pytest.mark.parametrize("sources", [["a red disc"], ["a red disc", "un carré bleu"]])
def test_they_are_ranked_by_the_way_back(ax: Pipeline, sources: list[str]) -> None:
    found = ax.candidates(*sources, to="image", n=4, temperature=2.0)
    assert len(found) > 1 and [it.score for it in found] == sorted((it.score for it in found), reverse=True)
    for it in found:
        assert it.score == pytest.approx(back(ax, sources, it.value, "image"), abs=1e-3)


def test_they_are_ranked_by_their_own_likelihood_or_by_both(ax: Pipeline) -> None:
    """Of the codes that were drawn, which need not be those into which a text is cut."""
    request = ax.request(Direction.parse("image>text:en"), [ax.read(DISC)[1]])
    (codes,) = draw(ax.model, ax.modalities, [request], 4, Sampling(length=6))
    own = likelihoods(ax.model, ax.modalities, [request] * len(codes), codes)
    scores: dict[Rank, dict[str, float]] = {
        rank: {it.value: it.score for it in ax.candidates(DISC, to="text:en", length=6, n=4, rank=rank)}
        for rank in RANKS
    }
    assert len(codes) > 1
    for it, value in zip(map(ax.modalities["text"].from_codes, codes), own):
        assert scores["own"][it] == pytest.approx(value, abs=1e-3)
        assert scores["both"][it] == pytest.approx(value + scores["back"][it], abs=1e-3)


def test_the_best_of_several_is_judged_beside_the_first(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    import json

    from anyxform.cli import main

    options = ("directions=image>text:en", "limit=3", "candidates=3", "rank=own", "baselines=false", f"out={tmp_path}")
    assert main(tiny.evaluate(run_dir, *options)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["directions"][0]["systems"]) == {"model", "best of 3 by own"}
    assert report["settings"]["candidates"] == 3 and report["settings"]["rank"] == "own"
    assert main(tiny.evaluate(run_dir, *options, "rank=bakc")) == 2


@pytest.mark.parametrize(("options", "message"), [({"n": 0}, "n=0"), ({"n": 2, "rank": "x"}, "rank='x' is not")])
def test_what_is_not_possible_is_said(ax: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ax("a red disc", to="image", temperature=3.0, **options)
