"""Text: nothing is lost on the way through tokens, and its scores are those of jiwer and sacrebleu."""

import pickle
import unicodedata

import pytest
import torch

from anyxform.stored_codes import digest_of
from modalities.text import Text

STRINGS = [
    "A tiger.",
    " leading, trailing and  double   spaces ",
    "tabs\tand\nlines\r\n",
    "'s don't l'été 12 345,67 €",
    "Тигр. 虎。 شير",
    "👩‍👩‍👧 🇫🇷 \U0010ffff \x00",
    "e\u0301 typed in two, \u00e9 in one",
]


@pytest.fixture(scope="module")
def fitted() -> Text:
    text = Text(vocab_size=400)
    list(text.fit([f"{colour} fish number {n}" for n in range(50) for colour in ("red", "blue", "жёлтая")]))
    return text


@pytest.mark.parametrize("string", STRINGS)
def test_round_trip_of_any_unicode(string: str, fitted: Text) -> None:
    for text in (Text(), fitted):
        again = text.from_codes(text.codes(text.preprocess(string)))
        assert again == unicodedata.normalize("NFC", string)


def test_unfitted_tokens_are_bytes() -> None:
    text = Text()
    assert text.vocab_size == 256
    assert len(text.preprocess("aé🐸")) == 1 + 2 + 4


def test_fitting_makes_texts_shorter(fitted: Text) -> None:
    assert 256 < fitted.vocab_size <= 400
    assert len(fitted.preprocess("red fish number 7")) < len(Text().preprocess("red fish number 7")) / 2
    assert fitted.report(["red fish number 7"])["bytes_per_token"] > 2


@pytest.mark.parametrize("augment", [0.3, 1.0])
def test_sources_are_taken_apart_in_training_and_are_the_same_text(fitted: Text, augment: float) -> None:
    text, string = Text(**fitted.config() | {"augment": augment}), "a red fish number 7, жёлтая"
    whole = text.preprocess(string)
    assert torch.equal(whole, fitted.preprocess(string))
    apart = [text.preprocess(string, train=True, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(text.from_codes(codes) == string for codes in apart)
    assert {len(codes) for codes in apart} == {len(string.encode())} if augment == 1 else len(set(map(len, apart))) > 2
    assert min(map(len, apart)) >= len(whole)
    assert torch.equal(fitted.preprocess(string, train=True), whole)


def test_what_would_be_too_long_taken_apart_stays_whole(fitted: Text) -> None:
    text = Text(**fitted.config() | {"augment": 1.0, "max_length": len(fitted.preprocess("red fish"))})
    assert torch.equal(text.preprocess("red fish", train=True), fitted.preprocess("red fish"))


def test_letters_are_tokens_for_the_targets_that_are_named(fitted: Text) -> None:
    """The same text in the same vocabulary, one from the next, however far tokens stand apart."""
    text = Text(**fitted.config() | {"letters_for": ["audio"], "pace": 3, "augment": 1.0})
    assert text.as_source_of("image") is text and text.as_source_of("audio") is text.as_source_of("audio")
    letters = text.as_source_of("audio")
    tensor = letters.preprocess("une grenouille d'été", train=True, generator=torch.Generator())
    assert len(tensor) == len("une grenouille d'été".encode()) and tensor.max() < text.vocab_size
    assert text.from_codes(tensor) == letters.from_codes(tensor) == "une grenouille d'été"
    assert letters.source_positions(tensor)[:, 0].tolist() == list(range(len(tensor)))
    assert text.recipe()[1].keys() == {"tokenizer.json"} and letters.recipe()[1].keys() == {"letters.json"}
    again = pickle.loads(pickle.dumps(text))
    assert again.config() == text.config() and torch.equal(again.as_source_of("audio").preprocess("été"), tensor[-5:])


def test_letters_are_those_of_the_tokenizer_that_was_fitted_last() -> None:
    text = Text(vocab_size=300, letters_for=["audio"])
    before = text.as_source_of("audio").preprocess("a red fish")
    assert torch.equal(before, text.preprocess("a red fish"))  # bytes alone
    for _ in text.fit(["a red fish", "a red frog"] * 9):
        pass
    assert len(text.as_source_of("audio").preprocess("a red fish")) == 10 > len(text.preprocess("a red fish"))


def test_a_letter_each_is_no_reason_to_refuse_a_text(fitted: Text) -> None:
    config = fitted.config() | {"letters_for": ["audio"], "max_length": 8}
    text, said = Text(**config), "a red fish, a red fish, a red fish"
    with pytest.raises(ValueError, match="more than max_length=8"):
        text.preprocess(said)
    assert len(Text(**config).as_source_of("audio").preprocess(said)) == len(said)


def test_the_pace_is_from_a_token_to_the_next() -> None:
    text = Text(pace=3)
    assert text.code_positions(3).tolist() == text.source_positions(text.preprocess("abc")).tolist() == [[0], [3], [6]]
    assert digest_of(text) == digest_of(Text())  # its codes are the same
    with pytest.raises(ValueError, match=r"a whole pace >= 1, not 256, 128, 0\.0 and 1\.5"):
        Text(vocab_size=256, pace=1.5)  # type: ignore[arg-type]


def test_accents_are_one_token_however_they_are_typed(fitted: Text) -> None:
    assert torch.equal(fitted.preprocess("e\u0301te\u0301"), fitted.preprocess("\u00e9t\u00e9"))


def test_too_long_is_refused_never_cut() -> None:
    text = Text(max_length=8)
    assert len(text.preprocess("12345678")) == 8
    with pytest.raises(ValueError, match="9 tokens, more than max_length=8"):
        text.preprocess("123456789")
    assert text.report(["123456789", "1"])["too_long"] == 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b" \n", "empty"), (b"caf\xe9", "not UTF-8 .* at byte 3"), (b"\xff\xfea\x00", "UTF-8")],
)
def test_bytes_that_are_no_text(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text().load(data)


def test_empty_and_broken_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Text().preprocess("")
    with pytest.raises(ValueError, match="surrogate"):
        Text().preprocess("ab\ud800")


def test_files_may_have_a_byte_order_mark_and_a_last_newline() -> None:
    assert Text().load("\ufeffTigre.\n".encode()) == "Tigre."


def test_bytes_that_a_model_makes_up_are_replaced() -> None:
    text = Text()
    half = text.preprocess("é")[:1]
    assert text.from_codes(half) == "\ufffd"


def test_error_rates_weigh_by_the_length_of_the_reference() -> None:
    scores = Text().metrics("a red dish", "a red fish")
    assert (scores["wer"].value, scores["wer"].weight) == (pytest.approx(1 / 3), 3)
    assert (scores["cer"].value, scores["cer"].weight) == (pytest.approx(1 / 10), 10)
    assert scores["exact"].value == 0 and 0 < scores["chrf"].value < 100
    assert Text().metrics("", "a red fish")["wer"].value == 1
    for space in ("\n", "\t", "\u00a0", "\u3000"):  # whatever stands between words
        scores = Text().metrics("one two three fore", f"one two{space}three four")
        assert (scores["wer"].value, scores["wer"].weight) == (pytest.approx(1 / 4), 4)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        Text(vocab_size=100)
    with pytest.raises(ValueError, match="JSON"):
        Text(tokenizer="{broken")
