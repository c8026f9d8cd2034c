"""Long texts are cut and put together again, and transcripts of overlapping windows lose and double no word."""

import random

import jiwer
import pytest

from anyxform.modality import Piece
from modalities.text import Text

STORY = """Once there was a fox. "Who are you?" she asked; nobody (not even the owl) said a word… e.g. this one.

La deuxième partie :
— une ligne, puis une autre !
第一句话。第二句话！ 最後。
An end without a full stop"""
VOCABULARY = [
    "river", "stone", "green", "window", "seven", "music", "paper", "doctor", "yellow", "market", "winter", "button",
    "engine", "lemon", "castle", "nobody", "silver", "garden", "pocket", "thunder", "mirror", "kitchen", "travel",
    "the", "and", "of", "a",
]  # fmt: skip


def rejoined(text: Text, value: str) -> str:
    pieces = text.split(value)
    return text.join(text.merge([piece.value for piece in pieces], pieces), pieces)


# Cutting


def test_what_fits_is_one_piece() -> None:
    (piece,) = Text().split("Two sentences. They fit.")
    assert (piece.value, piece.start, piece.end) == ("Two sentences. They fit.", 0, 24)


def test_sentences_and_lines_are_pieces() -> None:
    assert [piece.value for piece in Text(max_length=100).split(STORY)] == [
        "Once there was a fox.", '"Who are you?" she asked; nobody (not even the owl) said a word… e.g. this one.',
        "La deuxième partie :", "— une ligne, puis une autre !", "第一句话。", "第二句话！", "最後。",
        "An end without a full stop",
    ]  # fmt: skip


@pytest.mark.parametrize("max_length", [1, 4, 7, 20, 50, 1000])
@pytest.mark.parametrize("value", [STORY, "x" * 999, "ab " * 400, "d'été, " * 50, "和" * 99, "🐸 🐸\t\n 🐸" * 20])
def test_pieces_are_read_and_their_join_is_the_text(value: str, max_length: int) -> None:
    text, value = Text(max_length=max_length), value.strip()
    pieces = text.split(value)
    if max_length >= 4:  # bytes of one character
        assert all(1 <= len(text.preprocess(piece.value)) <= max_length for piece in pieces)
    assert all(value[int(piece.start) : int(piece.end)] == piece.value for piece in pieces)
    assert rejoined(text, value) == value


def test_a_fitted_tokenizer_cuts_as_well() -> None:
    text = Text(vocab_size=400, max_length=9)
    list(text.fit([STORY] * 5))
    pieces = text.split(STORY * 3)
    assert all(1 <= len(text.preprocess(piece.value)) <= 9 for piece in pieces)
    assert rejoined(text, STORY * 3) == STORY * 3


def test_a_sentence_that_is_too_long_is_cut_behind_clauses_then_words() -> None:
    value = "when the river is high, we take the old bridge over the mill"
    assert [it.value for it in Text(max_length=30).split(value)] == [
        "when the river is high,", "we take the old bridge over", "the mill",
    ]  # fmt: skip


# Joining


def test_full_width_signs_stand_without_a_space() -> None:
    pieces = [Piece(b"a recording", between=between) for between in ("", " ", " ")]
    assert Text().join(["你好吗？", "我很好。", "Good."], pieces) == "你好吗？我很好。 Good."


def test_translations_of_texts_without_spaces_have_them() -> None:
    pieces = Text(max_length=16).split("第一句话。第二句话！")
    assert [(piece.value, piece.between) for piece in pieces][1:] == [("第二句话！", "")]
    assert Text().join(["The first.", "The second!"], pieces) == "The first. The second!"


def test_empty_answers_leave_no_trace() -> None:
    pieces = [Piece("", between=""), Piece("", between="\n\n"), Piece("", between=" ")]
    assert Text().join(["a", "", "b"], pieces) == "a b"
    assert Text().join(["", "a", ""], pieces) == "a" and Text().join([], []) == ""


def test_no_space_is_put_between_words_of_scripts_without() -> None:
    pieces = [Piece(None, between=" ")] * 3
    assert Text().join(["你好", "世界", "ok"], pieces) == "你好世界 ok"


# Merging


def overlapping(words: list[str], sizes: list[int], overlap: int) -> tuple[list[str], list[Piece]]:
    """Transcripts of windows of so many words, each of which begins `overlap` words before the end of the last."""
    values, pieces, start = [], [], 0
    for size in sizes:
        last = min(start + size, len(words))
        values.append(" ".join(words[start:last]))
        shared = overlap if pieces else 0
        pieces.append(Piece(None, start + shared / 2, last - (overlap / 2 if last < len(words) else 0), shared, " "))
        if last == len(words):
            break
        start = last - overlap
    return values, pieces


def merged(values: list[str], pieces: list[Piece]) -> str:
    return Text().join(Text().merge(values, pieces), pieces)


@pytest.mark.parametrize("overlap", [1, 2, 4, 8])
@pytest.mark.parametrize("size", range(17, 40))
def test_no_word_is_lost_or_doubled_wherever_the_cuts_are(size: int, overlap: int) -> None:
    words = random.Random(size).choices(VOCABULARY[:23], k=80)
    words = [word for word, last in zip(words, ["", *words]) if word != last]
    assert merged(*overlapping(words, [size] * 80, overlap)) == " ".join(words)


@pytest.mark.parametrize("seed", range(40))
def test_half_words_at_the_edges_are_those_of_the_other_window(seed: int) -> None:
    chance = random.Random(seed)
    words = chance.sample(VOCABULARY * 4, k=80)
    values, pieces = overlapping(words, chance.choices(range(14, 20), k=80), overlap=6)
    spoilt = []
    for number, value in enumerate(values):
        own = value.split()
        if number:
            own[0] = own[0][2:] or "uh"
        if number + 1 < len(values):
            own[-1] = own[-1][:2] + "m"
        spoilt.append(" ".join(own))
    assert merged(spoilt, pieces) == " ".join(words)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("share", [0.05, 0.15])
def test_errors_stay_as_few_as_they_were(seed: int, share: float) -> None:
    """Words of each window are misheard, left out or made up: merging adds next to nothing to that."""
    chance = random.Random(seed)
    words = chance.sample(VOCABULARY * 4, k=90)
    values, pieces = overlapping(words, chance.choices(range(14, 20), k=80), overlap=6)
    wrong, spoilt = 0, []
    for value in values:
        heard = []
        for word in value.split():
            kind = chance.choices(["right", "misheard", "lost", "made up"], [1 - share, *[share / 3] * 3])[0]
            wrong += kind != "right"
            heard += {"right": [word], "misheard": ["zzz"], "lost": [], "made up": [word, "qqq"]}[kind]
        spoilt.append(" ".join(heard))
    made = merged(spoilt, pieces)
    errors = jiwer.process_words(" ".join(words), made)
    assert errors.substitutions + errors.deletions + errors.insertions <= wrong


def test_case_and_punctuation_do_not_part_the_same_words() -> None:
    pieces = [Piece(None, 0, 4), Piece(None, 4, 8, overlap=2, between=" ")]
    values = ["We went down to the Harbour, and", "the harbor and then home."]
    assert merged(values, pieces) == "We went down to the Harbour, and then home."


def test_scripts_without_spaces_are_merged_by_characters() -> None:
    pieces = [Piece(None, 0, 4), Piece(None, 4, 8, overlap=2, between=" ")]
    assert merged(["今天天气很好我们", "很好我们去公园"], pieces) == "今天天气很好我们去公园"


def test_windows_that_have_nothing_in_common_are_kept_whole() -> None:
    pieces = [Piece(None, 0, 4), Piece(None, 4, 8, overlap=2, between=" ")]
    assert merged(["one two the three four", "five six seven the eight"], pieces) == (
        "one two the three four five six seven the eight"
    )


def test_without_overlap_the_same_word_may_come_twice() -> None:
    pieces = [Piece(None, 0, 4), Piece(None, 5, 8, between=" ")]
    assert merged(["press five", "five is wrong"], pieces) == "press five five is wrong"
