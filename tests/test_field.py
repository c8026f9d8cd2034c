import pytest

from anyxform.field import Direction, Field, did_you_mean, matches, pairs


def test_fields_and_directions_read_back_what_they_write():
    for text in ("image", "text:fr", "audio:fr-phone"):
        assert str(Field.parse(text)) == text
    for text in ("image>text:fr", "image+text:en>audio:fr-phone"):
        assert str(Direction.parse(text)) == text
    assert Field.parse("audio:fr-phone").attributes == ("fr", "phone")


@pytest.mark.parametrize(
    "text", ["", "Text", "text:", "text:fr:de", "text fr", "text:fr-", "image>", "+text>image", ">text"]
)
def test_what_is_neither_is_refused(text):
    with pytest.raises(ValueError, match="is not a"):
        (Direction if ">" in text else Field).parse(text)
        Direction.parse(text)


@pytest.mark.parametrize(
    ("direction", "pattern", "fits"),
    [
        ("image:noto>text:fr", "image>text", True),
        ("image:noto>text:fr", "image:*>text:fr", True),
        ("image:noto>text:fr", "*>*", True),
        ("image:noto>text:fr", "image>text:en", False),
        ("image>text:fr", "image+text>text:fr", False),
        ("image+text:en>audio:fr-phone", "image+text>audio:fr*", True),
        ("text:en+image>audio:fr-phone", "image+text>audio:fr*", True),
        ("text:en+image>audio", "image+image>audio", False),
        ("audio:fr-phone>text:fr", "audio:fr>text:fr", False),
    ],
)
def test_patterns(direction, pattern, fits):
    assert matches(Direction.parse(direction), pattern) is fits


def test_pairs_are_all_ordered_pairs_of_different_fields():
    fields = [Field.parse(text) for text in ("text:fr", "image", "text:en")]
    assert len(pairs(fields)) == len(set(pairs(fields))) == 6
    assert pairs(fields) == pairs(reversed(fields))


def test_did_you_mean_names_the_nearest_or_all():
    assert "'image'" in did_you_mean("imagee", ["image", "text"])
    assert did_you_mean("zzz", ["image", "text"]) == "known: image, text"
