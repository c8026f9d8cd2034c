"""The choice of a direction: weights by pattern, what is held out, several sources."""

from collections import Counter
from itertools import product

import pytest

from anyxform.directions import Directions
from anyxform.field import Field

FIELDS = [Field.parse(text) for text in ("image:noto", "image:line", "text:en", "text:fr", "audio:fr-phone")]


def names(directions, fields=FIELDS):
    return {str(direction) for _, group in directions.fitting(fields) for direction in group}


def drawn(directions, fields=FIELDS, steps=200):
    """How often each direction is drawn by numbers that are spread evenly."""
    grid = [(step + 0.5) / steps for step in range(steps)]
    return Counter(str(directions.draw(fields, *numbers)) for numbers in product(grid, grid))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("image>text:fr", {"image:noto>text:fr", "image:line>text:fr"}),
        ("text>text", {"text:en>text:fr", "text:fr>text:en"}),
        ("*:fr*>image:noto", {"text:fr>image:noto", "audio:fr-phone>image:noto"}),
        ("a*>text:e*", {"audio:fr-phone>text:en"}),
        ("image:noto > text:en", {"image:noto>text:en"}),
        ("image:noto+text:en>audio", {"image:noto+text:en>audio:fr-phone"}),
        ("image+image>text:en", {"image:noto+image:line>text:en", "image:line+image:noto>text:en"}),
        ("video>text", set()),
    ],
)
def test_the_directions_that_a_pattern_means(pattern, expected):
    assert names(Directions({pattern: 1})) == expected


def test_every_pair_of_different_fields_is_one_direction_of_any_to_any():
    assert len(names(Directions({"*>*": 1}))) == 5 * 4
    assert names(Directions({"*>*": 1}), FIELDS[:1]) == set()


def test_held_out_directions_are_never_drawn():
    directions = Directions(
        {"*>*": 1, "image+text>text": 1}, hold_out=["image>text:fr", "*>audio", "image:line+text>*"]
    )
    found = names(directions)
    assert len(found) == 20 - 2 - 4 + 2
    assert not {"image:noto>text:fr", "text:en>audio:fr-phone", "image:line+text:en>text:fr"} & found
    assert {"image:noto+text:en>text:fr", "image:noto>text:en", "text:fr>image:line"} <= found
    assert set(drawn(directions)) == found


def test_a_weight_is_that_of_a_kind_of_direction_however_many_fields_have_it():
    counts = drawn(Directions({"image>text": 3, "audio>text:en": 1, "video>text": 5, "text>text": 0}))
    images = {f"image:{style}>text:{language}": 7500 for style in ("noto", "line") for language in ("en", "fr")}
    assert counts == {"audio:fr-phone>text:en": 10_000, **images}


def test_a_direction_that_two_patterns_mean_is_drawn_by_both():
    counts = drawn(Directions({"text>text:en": 1, "*:fr>text:en": 1}))
    assert counts["text:fr>text:en"] == 200 * 200


def test_the_order_of_the_fields_does_not_matter():
    directions = Directions({"*>*": 1})
    assert directions.draw(FIELDS, 0.3, 0.7) == directions.draw(reversed(FIELDS), 0.3, 0.7)


def test_the_largest_numbers_below_1_draw_the_last_direction():
    weights = [0.3, 0.3, 0.1, 0.2, 1, 0.05, 4, 1]
    patterns = [f"*:{a}*>*:{b}*" for a in ("en", "fr", "noto") for b in ("en", "line", "fr-")] + ["audio>text"]
    directions = Directions(dict(zip(patterns[2:], weights)))
    almost = 1 - 2**-53
    assert len(directions.fitting(FIELDS)) == 8
    assert str(directions.draw(FIELDS, almost, almost)) == "audio:fr-phone>text:fr"


def test_nothing_fits():
    assert Directions({"video>text": 1}).draw(FIELDS, 0.5, 0.5) is None
    assert Directions({"image>text": 1}, ["*>*"]).draw(FIELDS, 0.5, 0.5) is None


@pytest.mark.parametrize(
    ("weights", "hold_out", "message"),
    [
        ({}, [], "names no direction to train"),
        ({"image>text": 0}, [], "names no direction to train"),
        ({"image>text": 1, "text>image": -1}, [], "the weight of text>image must be 0 or more, not -1"),
        ({"image>text": 1, "text>image": float("nan")}, [], "the weight of text>image must be 0 or more, not nan"),
        ({"image": 1}, [], "'image' is not a pattern of directions: write source>target"),
        ({"image>text>audio": 1}, [], "'image>text>audio' is not a pattern of directions"),
        ({"image>text": 1}, ["image-text"], "'image-text' is not a pattern of directions"),
    ],
)
def test_what_makes_no_sense(weights, hold_out, message):
    with pytest.raises(ValueError, match=message):
        Directions(weights, hold_out)
