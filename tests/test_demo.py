"""The demo's page: it shows what it is given, stands on its own, and hides nothing."""

import io
import re
import shutil
import wave
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from anyxform.cli import main
from anyxform.cli.conf import compose
from anyxform.cli.demo import STARTER
from anyxform.curve import training_curve
from anyxform.demo.exhibits import choose_cards
from anyxform.demo.media import Gallery, marked, spectrogram
from anyxform.demo.page import Contents, render
from anyxform.demo.showcase import PARTS, Part, Shown, showcase
from anyxform.evaluate import Item, evaluate
from anyxform.field import Direction
from anyxform.pipeline import load
from tests.toy import ToyImage, ToySound, ToyText


class Picture(ToyImage):
    """A toy image whose files are PNGs."""

    extensions = ("png",)

    def save(self, value):
        file = io.BytesIO()
        Image.new("RGB", (3, 2), tuple(30 * v for v in value[:3])).save(file, "PNG")
        return file.getvalue()


class Sound(ToySound):
    """A toy sound whose files are WAVs and whose frames are numbers."""

    extensions = ("wav",)

    def save(self, value):
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, 8000, 0, "NONE", ""))
            writer.writeframes(bytes(160))
        return file.getvalue()

    def preprocess(self, value, train=False, generator=None):
        return torch.tensor(value).float()


MODALITIES = {"text": ToyText(), "image": Picture(), "sound": Sound()}
DIRECTIONS = ["image>text:en", "image>text:fr", "text:en>image", "sound>text:en", "text:en>sound", "text:en>text:fr"]


def test_folders_that_no_demo_made_are_left_alone(tmp_path, monkeypatch, capsys):
    """Such as the dataset itself, where the demo is to be written beside it."""
    (tmp_path / "data" / "starter").mkdir(parents=True)
    (tmp_path / "data" / "starter" / "stats.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "."]) == 2
    assert "data is there already, and is not known to be of an earlier call" in capsys.readouterr().err
    assert (tmp_path / "data" / "starter" / "stats.json").is_file()


@pytest.fixture
def items() -> list[Item]:
    generator = torch.Generator().manual_seed(0)
    return [
        Item(f"k{n}", direction, (MODALITIES[direction.sources[0].modality].example(generator),),
             MODALITIES[direction.target.modality].example(generator))
        for direction in map(Direction.parse, DIRECTIONS) for n in range(10)
    ]  # fmt: skip


def build(items, folder, starter=()) -> str:
    truth = [item.reference for item in items]
    other = [MODALITIES[item.direction.target.modality].example(torch.Generator().manual_seed(9)) for item in items]
    report = evaluate(items, {"model": other, "right": truth}, MODALITIES)
    contents = Contents(
        facts=[("steps", "12")],
        command="anyxform demo --out <here>",
        cards=choose_cards(items, MODALITIES, cards=3),
        items=items,
        answers={number: [other[number], truth[number]] for number in range(len(items))},
        summary=report.summary,
        directions=report.directions,
        curve=training_curve([{"step": s, "loss": 5 / s, "directions": {"image>text": 4 / s}} for s in range(1, 400)]),
        starter=starter,
        starter_facts="Trained <before>.",
    )
    return render(contents, MODALITIES, Gallery(folder / "media"))


class _Balance(HTMLParser):
    """Fails on a tag that is closed in the wrong place."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(items, tmp_path):
    page = build(items, tmp_path)
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|<script|url\(", page)
    sources = re.findall(r'src="([^"]+)"', page)
    assert sources and all((tmp_path / source).is_file() for source in sources)
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_answers_truths_and_lost_comparisons(items, tmp_path):
    page = build(items, tmp_path)
    for title in ("Pictures, described", "Words, drawn", "Speech, written down", "Words, spoken", "Words, translated"):
        assert title in page
    assert page.count("<article") == 3 * 5
    assert "✗" in page and 'class="worse"' in page  # the other answers are all wrong
    assert "the original" in page and "model, seed 1" in page
    assert "anyxform demo --out &lt;here&gt;" in page


def test_cards_are_drawn_by_the_seed_and_gather_a_samples_targets(items):
    cards = choose_cards(items, MODALITIES, cards=4, seed=1)
    assert cards == choose_cards(items, MODALITIES, cards=4, seed=1)
    assert cards != choose_cards(items, MODALITIES, cards=4, seed=2)
    captions = cards["image", "text"]
    assert len(captions) == 4 and len({items[card.items[0]].key for card in captions}) == 4
    for card in captions:
        assert len({items[number].key for number in card.items}) == 1


def test_text_is_escaped_and_right_words_are_marked():
    assert marked("a red <b>", "the red fish") == '<span class="words" dir="auto">a <mark>red</mark> &lt;b&gt;</span>'
    assert "<mark>Cat!</mark>" in marked("Cat!", "cat")
    assert "nothing" in marked("", "cat")


def test_a_spectrogram_has_low_frequencies_at_the_bottom():
    frames = torch.zeros(6, 4)
    frames[:, 0] = 1.0
    picture = spectrogram(frames)
    assert picture.size == (6, 4)
    assert picture.getpixel((2, 3)) == (252, 240, 180) and picture.getpixel((2, 0)) == (16, 16, 48)


def test_a_run_without_steps_has_no_curve():
    assert training_curve([]) == ""
    assert training_curve([{"step": 1, "loss": None, "directions": {}}]) == ""


@pytest.mark.parametrize("wrong", [("--minutes", "0"), ("--minutes", "nan"), ("--minutes", "inf"), ("--steps", "0")])
def test_no_time_is_one_line_and_what_is_there_stays(tmp_path, capsys, wrong):
    (tmp_path / "run").mkdir()
    assert main(["demo", "--out", str(tmp_path), *wrong]) == 2
    assert capsys.readouterr().err == "anyxform: error: --minutes and --steps must be numbers above 0\n"
    assert (tmp_path / "run").is_dir()


def test_below_stands_the_starter_with_its_failures(items, tmp_path):
    cards = choose_cards(items, MODALITIES, cards=2)["image", "text"]
    answers = {number: ["wrong"] for card in cards for number in card.items}
    right = cards[0].items[0]
    answers[right] = [items[right].reference]
    part = Part("Things & names", "All new.", "test", "d", ["image>text:en"])
    shown = Shown(part, items, cards, answers)
    alone, both = build(items, tmp_path), build(items, tmp_path, [shown])
    assert "The starter" not in alone
    ours = both.partition("The starter, which ships")[2]
    assert "Trained &lt;before&gt;." in ours and "Things &amp; names" in ours and "All new." in ours
    assert ours.count("<article") == 2 and ours.count("✓") == 1 and "✗" in ours


def test_the_starter_is_asked_for_what_its_split_holds():
    """The shipped weights, on the repository's shards: the same seed, the same samples and answers."""
    starter = load("starter")
    configs = compose("train", ["data=starter"])["data"]["datasets"]
    (named, drawn), (again,) = (
        showcase(starter, configs, STARTER, seed=3, parts=parts) for parts in (PARTS[:2], PARTS[:1])
    )
    assert named.answers == again.answers
    for shown, draws in ((named, 1), (drawn, 3)):
        assert len(shown.cards) == 6
        assert all(len(shown.answers[number]) == draws for card in shown.cards for number in card.items)
    assert any(named.items[number].reference == values[0] for number, values in named.answers.items())


def test_what_is_not_there_of_the_starter_is_left_out(tmp_path):
    """Such as the names, in a folder of shards of one's own."""
    configs = compose("train", ["data=starter"])["data"]["datasets"]
    assert showcase(load("starter"), configs, tmp_path, seed=0) == []
    shutil.copytree(STARTER / "names", tmp_path / "names", ignore=shutil.ignore_patterns("train*"))
    (shown,) = showcase(load("starter"), configs, tmp_path, seed=0)
    assert shown.part.dataset == "names"
