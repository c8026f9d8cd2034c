"""`ax.edit(…)` and sessions: what is kept is kept exactly, rounds follow from seeds, and are taken back."""

import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch

import anyxform
from anyxform import edit as module
from anyxform.edit import Session
from anyxform.pipeline import Pipeline
from tests.test_region import assert_pasted
from tests.tiny import picture, tone


@pytest.fixture(scope="module")
def ax(checkpoint: Path) -> Pipeline:
    return anyxform.load(str(checkpoint), device="cpu")


@pytest.fixture
def disc(tmp_path: Path) -> str:
    (tmp_path / "disc.png").write_bytes(picture("red", "disc", torch.Generator().manual_seed(5)))
    return str(tmp_path / "disc.png")


def samples_of(ax: Pipeline) -> tuple:
    return ("audio", ax.modalities["audio"].load(tone("red", "disc", torch.Generator().manual_seed(5))))


def test_the_rest_of_a_picture_stays(ax: Pipeline, disc: str) -> None:
    original, redone = PIL.Image.open(disc), ax.edit(disc, redo="0,0,8,16", source="a blue disc", seed=1)
    kept = ax.edit(disc, keep="8,0,16,16", source="a blue disc", seed=1)
    assert kept.tobytes() == redone.tobytes()
    mask = ax.modalities["image"].region("0,0,8,16", original)
    assert_pasted(original, redone, mask)
    changes = ({"source": "a blue disc", "seed": 2}, {"source": "a blue disc", "seed": 1}, {"seed": 1})
    drawn = [ax.edit(disc, redo="0,0,16,8", temperature=3.0, **change) for change in changes]
    assert len({it.tobytes() for it in drawn}) == 3, "seed and source count"


@pytest.mark.parametrize("decoding", ["masked", "autoregressive"])
def test_the_codes_of_what_is_kept_are_those_of_the_original(
    ax: Pipeline, disc: str, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a model in between: those that are asked to be kept, and those that come back."""
    found = []
    monkeypatch.setattr(module, "draw", lambda *given: found.append((given[2][0], real(*given))) or found[-1][1])
    ax.edit(disc, redo="0,0,8,16", source="a blue disc", decoding=decoding)
    ((request, answers),) = found
    codes = ax.modalities["image"].codes(ax.modalities["image"].preprocess(PIL.Image.open(disc)))
    assert request.keep.tolist() == [False, True, False, True]
    assert torch.equal(answers[0][0][request.keep], codes.reshape(4, -1)[request.keep])


real = module.draw


def test_several_parts_together_and_parts_of_parts(ax: Pipeline, disc: str) -> None:
    original = PIL.Image.open(disc)
    region = ax.modalities["image"].region
    both = ax.edit(disc, redo=["0,0,4,4", "8,8,16,16"])
    assert_pasted(original, both, region("0,0,4,4", original) | region("8,8,16,16", original))
    ring = ax.edit(disc, redo="0,0,16,8", keep="4,2,12,6")
    assert_pasted(original, ring, region("0,0,16,8", original) & ~region("4,2,12,6", original))


def test_parts_may_be_numbers(ax: Pipeline, disc: str) -> None:
    one = ax.edit(disc, redo="0,0,16,8", keep="4,2,12,6")
    for redo, keep in (((0, 0, 16, 8), [4, 2, 12, 6]), ([(0, 0, 16, 8)], ("4,2,12,6",))):
        assert ax.edit(disc, redo=redo, keep=keep).tobytes() == one.tobytes()
    assert ax.edit(disc, extend=(0, 0, 16, 0)).tobytes() == ax.edit(disc, extend="0,0,16,0").tobytes()
    sound = samples_of(ax)
    assert torch.equal(ax.edit(sound, redo=(0.05, 0.15)).samples, ax.edit(sound, redo="0.05:0.15").samples)
    assert torch.equal(ax.edit(sound, extend=0.2).samples, ax.edit(sound, extend="0.2").samples)
    for wrong in ({"redo": 5}, {"redo": (True, 1)}, {"keep": torch.ones(16, 16)}, {"extend": None}):
        with pytest.raises(ValueError, match=r"no part|no number of a part"):
            ax.edit(disc, **wrong)


def test_out_painting(ax: Pipeline, disc: str) -> None:
    original, wide = PIL.Image.open(disc), ax.edit(disc, extend="0,0,16,0", source="a blue disc")
    assert wide.size == (32, 16) and wide.crop((0, 0, 16, 16)).tobytes() == original.convert("RGB").tobytes()
    assert len(set(wide.crop((16, 0, 32, 16)).getdata())) > 20, "it is drawn, not filled"


@pytest.mark.parametrize("decoding", ["masked", "autoregressive"])
@pytest.mark.parametrize("redo", ["0.1:", "0.05:0.15", "0:0.1"])
def test_recordings_keep_their_time(ax: Pipeline, redo: str, decoding: str) -> None:
    """And in both ways of decoding what lies behind a part stays behind it."""
    sound = samples_of(ax)
    mask = ax.modalities["audio"].region(redo, sound[1])
    redone = ax.edit(sound, redo=redo, source="a blue disc", decoding=decoding)
    assert redone.seconds == sound[1].seconds and torch.equal(redone.samples[~mask], sound[1].samples[~mask])
    assert redone.samples[mask].abs().max() > 0 and not torch.equal(redone.samples[mask], sound[1].samples[mask])


def test_recordings_go_on(ax: Pipeline) -> None:
    sound = samples_of(ax)
    redone = ax.edit(sound, redo="0.1:", source="a blue disc")
    assert torch.equal(redone.samples[:1600], sound[1].samples[:1600])
    assert not torch.equal(redone.samples[1600:], sound[1].samples[1600:])
    longer = ax.edit(sound, extend="0.2")
    assert longer.seconds == pytest.approx(0.4) and torch.equal(longer.samples[:3200], sound[1].samples)
    assert longer.samples[3300:].abs().max() > 0
    with pytest.raises(ValueError, match=r"longer than max_seconds=0\.5"):
        ax.edit(sound, extend="2")


@pytest.mark.parametrize("spec", [{"redo": "red"}, {"redo": "2:5"}, {"keep": ["a ", " disc"]}])
def test_a_span_of_a_text(ax: Pipeline, spec: dict, disc: str) -> None:
    one = ax.edit("a red disc", source=disc, **spec)
    assert one.startswith("a ") and one.endswith(" disc") and one != "a red disc" and len(one) > len("a  disc")
    assert ax.edit("a red disc", source=disc, **spec) == one


def test_a_text_goes_on(ax: Pipeline, disc: str) -> None:
    longer = ax.edit("a red", extend="end", source=disc)
    assert longer.startswith("a red") and len(longer) > len("a red")
    assert ax.edit("disc", extend="start", source=disc).endswith("disc")


def test_what_fills_a_gap_is_the_likeliest_of_what_was_drawn(ax: Pipeline, disc: str, monkeypatch) -> None:
    """By the whole, with what stands behind the gap."""
    from anyxform import infill
    from anyxform.likelihood import likelihoods

    seen = []

    def watched(model, modalities, requests, codes, **options):
        seen.append((codes, likelihoods(model, modalities, requests, codes, **options)))
        return seen[-1][1]

    monkeypatch.setattr(infill, "likelihoods", watched)
    text = ax.modalities["text"]
    result = ax.edit("a red disc", redo="red", source=disc)
    ((codes, scores),) = seen
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    assert len(codes) > 10 and result == text.from_codes(codes[order[0]])
    assert all(text.from_codes(it).startswith("a ") for it in codes), "no word grows at its end"
    several = [it.value for it in module.edit(ax, "text", "a red disc", module.Round(redo=("red",), n=3))]
    assert len(set(several)) == 3


def test_candidates_are_ranked_by_the_way_back(ax: Pipeline, disc: str) -> None:
    round = module.Round.of(redo="0,0,8,16", source="a blue disc", n=4, temperature=3.0)
    found = module.edit(ax, "image", PIL.Image.open(disc), round)
    scores = [it.score for it in found]
    assert len(found) == 4 and scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert (
        ax.edit(disc, redo="0,0,8,16", source="a blue disc", n=4, temperature=3.0).tobytes() == found[0].value.tobytes()
    )
    first = module.edit(ax, "image", PIL.Image.open(disc), replace(round, n=1))[0].value.tobytes()
    assert first in {it.value.tobytes() for it in found}, "the first candidate is the answer without candidates"


# Rounds


def test_rounds_are_done_again_from_their_json(ax: Pipeline, disc: str) -> None:
    session = Session(ax, disc)
    session.edit(redo="0,0,8,16", source="a blue disc", seed=3)
    session.edit(extend="0,0,0,8", source=[disc, "a disc"], seed=4, steps=2)
    again = Session(ax, disc, json.loads(json.dumps(session.rounds)))
    assert again.value.tobytes() == session.value.tobytes() and again.value.size == (16, 24)
    assert [it.tobytes() for it in again.values[1:]] == [it.tobytes() for it in session.values[1:]]


def test_undo(ax: Pipeline, disc: str) -> None:
    session = Session(ax, disc)
    first = session.edit(redo="0,0,8,16", seed=1)
    session.edit(redo="0,0,16,16", seed=2)
    assert session.undo() is first and session.value is first and len(session.rounds) == 1
    assert session.undo().tobytes() == PIL.Image.open(disc).tobytes()
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_a_round_that_fails_leaves_no_trace(ax: Pipeline) -> None:
    session = Session(ax, "a red disc")
    with pytest.raises(ValueError, match="not in the text"):
        session.edit(redo="blue")
    assert session.value == "a red disc" and not session.rounds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is nothing to edit: say what to make anew"),
        ({"keep": "0,0,16,16"}, "all of it is kept: there is nothing left to make anew"),
        ({"extend": "0,0,8,0", "keep": "0,0,8,8"}, "extend keeps all that there is"),
        ({"redo": "0,0,8,8", "to": "text:fr"}, "what is edited is image, and stays it"),
        ({"redo": "0,0,8,8", "to": "image:xyz"}, "knows no variant 'xyz'"),
        ({"redo": "0,0,8,8", "source": "missing.png"}, "there is no file 'missing.png'"),
        ({"redo": "0,0,8,8", "stesp": 3}, "no option is called 'stesp': did you mean 'steps'"),
        ({"redo": "0,0,8,8", "n": 0}, "n=0 is not possible: give 1 candidate or more"),
        ({"redo": "0,0,8,8", "n": 2, "rank": "bakc", "source": "a disc"}, "rank='bakc' is not possible"),
        ({"redo": "0,0,8,8", "length": 4}, "refine and length are of whole answers: leave them out"),
        ({"redo": "0,0,8,8", "refine": 1}, "refine and length are of whole answers: leave them out"),
        ({"redo": "0,0,8,8", "num_beams": 2}, "num_beams=2 is not possible"),
    ],
)
def test_what_cannot_be_done_is_said(ax: Pipeline, disc: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ax.edit(disc, **given)


def test_a_full_text_has_no_room(ax: Pipeline) -> None:
    with pytest.raises(ValueError, match="tokens"):
        ax.edit("x y " * 12, extend="end")
