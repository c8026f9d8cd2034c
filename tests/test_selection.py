"""The choice of items: by the seed, the same samples in every direction, nothing that was trained on."""

import io
import json
import tarfile

import pytest

from anyxform.dataset import Dataset, extensions_of
from anyxform.field import Field
from anyxform.modality import get_modality
from anyxform.selection import Samples, choose_items, texts_of
from tests.toy import ToyText, toys

FIELDS = {"text:*": "json.text.*"}


def grid(number):
    return tuple(int(digit) for digit in f"{number:06o}")


@pytest.fixture
def datasets(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(30):
            word = "abcdefghijklmnopqrstuvwxyz"[number % 26] * 3
            text = {"en": word, "fr": word * 2 if number else "q" * 40}  # one text is longer than the model takes
            members = {"json": json.dumps({"text": text}), "x.grid": json.dumps(grid(number)), "y.grid": "broken"}
            for ending, content in list(members.items())[: 3 if number == 5 else 2]:
                info = tarfile.TarInfo(f"s{number:02d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    return {"toy": Dataset("toy", [tmp_path / "a.tar"], extensions=extensions_of(toys()), fields=FIELDS)}


def choose(datasets, **options):
    return choose_items(datasets, toys(), **({"patterns": ["image>text", "text>text"]} | options))


def keys(selection, direction):
    return [item.key for item in selection.items if str(item.direction) == direction]


def test_items_hold_what_the_shard_holds(datasets):
    items = {str(item.direction): item for item in choose(datasets).items if item.key == "toy/s07"}
    assert items["image:x>text:fr"].sources == (grid(7),) and items["image:x>text:fr"].reference == "hhhhhh"


def test_judges_are_given_the_english_text_unless_another_language_is_asked_for(datasets):
    items = choose(datasets, patterns=["*>*"]).items
    texts = {str(item.direction): item.text for item in items if item.key == "toy/s07"}
    assert texts["image:x>text:en"] == texts["text:fr>image:x"] == "hhh"
    assert texts["image:x>text:fr"] == ""


def test_other_values_in_the_same_language_are_right_too(tmp_path):
    members = {
        "json": json.dumps({"text": {"en": "cat", "en-2": "kitten", "fr": "chat"}}),
        **{f"{style}.grid": json.dumps(grid(number)) for number, style in enumerate("xyz")},
        "w.grid": "broken",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending, content in members.items():
            info = tarfile.TarInfo(f"s.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    datasets = {"toy": Dataset("toy", [tmp_path / "a.tar"], extensions=extensions_of(toys()), fields=FIELDS)}
    items = {str(item.direction): item for item in choose(datasets, patterns=["text:en>image:x", "*>text"]).items}
    assert sorted(items["text:en>image:x"].alternatives) == [grid(1), grid(2)]
    assert items["image:y>text:en"].alternatives == ("kitten",) and items["image:y>text:fr"].alternatives == ()
    assert items["text:fr>text:en"].alternatives == ("kitten",)
    assert items["text:en>text:en-2"].alternatives == ()  # the source itself is no answer


def test_the_limit_takes_the_same_samples_in_every_direction(datasets):
    chosen = choose(datasets, limit=8, seed=3)
    assert len(keys(chosen, "image:x>text:en")) == 8
    assert len(set(keys(chosen, "image:x>text:en")) ^ set(keys(chosen, "text:en>text:fr"))) <= 2  # one may be refused
    assert keys(chosen, "image:x>text:en") == keys(choose(datasets, limit=8, seed=3), "image:x>text:en")
    assert keys(chosen, "image:x>text:en") != keys(choose(datasets, limit=8, seed=4), "image:x>text:en")


def test_refused_and_broken_values_are_counted(datasets):
    chosen = choose(datasets)
    assert "toy/s00" in keys(chosen, "image:x>text:en") and "toy/s00" not in keys(chosen, "image:x>text:fr")
    assert any("longer than" in reason for reason in chosen.refused)
    assert keys(chosen, "image:y>text:en") == [] and any("not a grid" in reason for reason in chosen.refused)


def test_texts_are_known_by_their_letters_and_by_what_is_behind_a_colon(tmp_path):
    texts = [{"en": "Flag: Åland Islands", "fr": 5}, {"de": "q" * 9 + "1", "en": "a cat!"}]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, text in enumerate(texts):
            content = json.dumps({"text": text}).encode()
            info = tarfile.TarInfo(f"s{number}.json")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    modalities = {"text": get_modality("text")()}
    datasets = {"it": Dataset("it", [tmp_path / "a.tar"], extensions=extensions_of(modalities), fields=FIELDS)}
    found = texts_of(datasets, modalities)
    assert {("en", "flagålandislands"), ("en", "ålandislands"), ("en", "acat"), ("de", "q" * 9 + "1")} <= found


def test_silence_that_makes_no_picture_is_refused(datasets):
    """Of nothing an empty text can be made; a picture cannot."""
    for join in ({}, {"join": lambda self, values, pieces: ""}):
        silent = type("Silent", (ToyText,), {"split": lambda self, value: [], **join})()
        chosen = choose_items(datasets, {**toys(), "text": silent}, patterns=["text:en>image", "text:en>text:fr"])
        assert not keys(chosen, "text:en>image:x") and bool(keys(chosen, "text:en>text:fr")) == bool(join)
        assert any("the source says nothing" in reason for reason in chosen.refused)


def test_new_media_must_take_part(datasets):
    directions = {str(item.direction) for item in choose(datasets, new_only=True).items}
    assert directions == {"image:x>text:en", "image:x>text:fr"}


def test_what_the_model_does_not_know_is_left_out_and_named(datasets):
    chosen = choose(datasets, known=lambda direction: direction.target != Field("text", "fr"))
    assert "image:x>text:fr" in chosen.unknown and not keys(chosen, "image:x>text:fr")


def test_several_sources_are_asked_for_by_a_pattern(datasets):
    chosen = choose(datasets, patterns=["image+text:fr>text:en"], hold_out=["image:y+text>text"])
    assert {str(item.direction) for item in chosen.items} == {"image:x+text:fr>text:en"}


def test_samples_are_read_one_by_one(datasets):
    samples = Samples(datasets, toys())
    assert len(samples) == 30
    assert samples[7][Field("text", "en")] == "hhh" and set(samples[7]) == {
        Field("image", "x"),
        Field("text", "en"),
        Field("text", "fr"),
    }
