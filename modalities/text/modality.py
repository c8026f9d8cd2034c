"""Text: byte-level BPE, so that any unicode is read and written without an unknown token.

Letters: T tokens of one text, N tokens of all texts of a batch, D width.
"""

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import jiwer
import sacrebleu
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from anyxform.modality import Modality, Piece, Score
from modalities.text import overlap, sentences

CHARACTERS = 16
"""More than a token has on average: as many times the most tokens are looked at when a long text is cut."""
WORDS = ("a", "red", "fish", "une", "grenouille", "verte", "тигр", "和", "🐸", "d'été")
ELLIPSIS = "…"
SPACE, NEWLINE = "Ġ", "Ċ"
"""How byte-level tokens write them."""
PROBE = (" Ein  Tiger,", "d'été\n12", " 虎🐸")
"""Texts that a tokenizer must give back as they were, also one after the other."""
TOKENIZER, LETTERS = "tokenizer.json", "letters.json"
"""Files that the library `tokenizers` reads."""


class Text(Modality):
    """Unicode strings.

    A text is put into Unicode's normal form C, which looks the same and means the same: typed and composed accents
    are then the same tokens. Nothing else is changed; case, punctuation and spaces come back as they went in.
    """

    name: ClassVar[str] = "text"
    extensions: ClassVar[tuple[str, ...]] = ("txt",)
    literal: ClassVar[bool] = True
    elastic: ClassVar[bool] = True
    unit: ClassVar[str] = "characters"
    joins: ClassVar[bool] = True
    most_repeats: ClassVar[int] = 6
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"wer", "cer"})
    training_arguments: ClassVar[frozenset[str]] = frozenset({"augment"})
    source_arguments: ClassVar[frozenset[str]] = frozenset({"pace", "letters_for"})

    def __init__(
        self,
        vocab_size: int = 4096,
        max_length: int = 128,
        tokenizer: str | None = None,
        augment: float = 0.0,
        pace: int = 1,
        letters_for: Sequence[str] = (),
    ) -> None:
        """`vocab_size`: the most tokens that `fit` may make; `tokenizer`: the JSON of a fitted byte-level tokenizer.

        Without one, the tokens are the 256 bytes. `max_length` counts tokens. Special tokens, such as a chat's, which a
        published tokenizer may have, are no codes: they are never written, and in a text they are ordinary characters.
        `augment`: the share of a source's tokens that are taken apart in training, into the two that were merged, and
        of those again, so that a word is known by its parts as well (after BPE dropout, arXiv 1910.13267).
        `pace`: how far a token is from the next; where targets run along their sources, as far as their tokens are.
        `letters_for`: target modalities for which a text is read letter by letter, each a token, one from the next:
        how a word is said is in its letters.
        """
        if isinstance(letters_for, str):
            raise ValueError(f"text needs letters_for to be a list of modalities, not {letters_for!r}")
        if vocab_size < 256 or max_length < 1 or not 0 <= augment <= 1 or pace < 1 or pace % 1:
            raise ValueError(
                "text needs vocab_size >= 256, max_length >= 1, augment from 0 to 1 and a whole pace >= 1, "
                f"not {vocab_size}, {max_length}, {augment} and {pace}"
            )
        self.largest_vocab_size, self.augment, self.pace = vocab_size, augment, pace
        self.max_length, self.read_apart_for = max_length, tuple(letters_for)
        self.file = TOKENIZER
        self._use(_byte_tokenizer() if tokenizer is None else _read(tokenizer))
        self.fitted = tokenizer is not None

    def _use(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # as ordinary text
        self.tokenizer = tokenizer
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids = [number for number in sorted(tokenizer.get_vocab().values()) if number not in special]
        self._codes = {number: code for code, number in enumerate(self._ids)}
        self.vocab_size = len(self._ids)
        self._merged = self._merged_from() if self.augment else {}
        self.__dict__.pop("letters", None)

    @cached_property
    def letters(self) -> "Text":
        """The same tokens, but a text is made of those of one byte alone."""
        tokenizer = json.loads(self.tokenizer.to_str())
        tokenizer["model"] |= {"merges": [], "ignore_merges": False}
        letters = Text(self.largest_vocab_size, CHARACTERS * self.max_length, json.dumps(tokenizer))
        letters.file = LETTERS
        return letters

    def as_source_of(self, target: str) -> Modality:
        return self.letters if target in self.read_apart_for else self

    def _merged_from(self) -> dict[int, tuple[int, int]]:
        """The codes of the two tokens that one was merged from, by its code."""
        vocabulary, found = self.tokenizer.get_vocab(), dict[int, tuple[int, int]]()
        for merge in json.loads(self.tokenizer.to_str())["model"].get("merges", ()):
            left, right = merge.split(" ") if isinstance(merge, str) else merge  # both ways of writing are in use
            whole, *parts = (self._codes[vocabulary[token]] for token in (left + right, left, right))
            found.setdefault(whole, (parts[0], parts[1]))
        return found

    def _taken_apart(self, codes: list[int], chance: random.Random) -> list[int]:
        found, left = list[int](), codes[::-1]
        while left:
            code = left.pop()
            if code in self._merged and chance.random() < self.augment:
                left += self._merged[code][::-1]
            else:
                found.append(code)
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.tokenizer.encode_special_tokens = True  # which pickling forgets

    def load(self, data: bytes) -> str:
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 ({error.reason} at byte {error.start}): convert it") from None
        if not text:
            raise ValueError("the text is empty")
        return text

    def accept(self, value: Any) -> str:
        raise ValueError(f"a text is a string, not {type(value).__name__}")

    def save(self, value: str) -> bytes:
        return value.encode("utf-8")

    def preprocess(self, value: str, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        ids = self._encode(value)
        if not ids:
            raise ValueError("the text is empty")
        if len(ids) > self.max_length:
            raise ValueError(
                f"the text {value[:40]!r}… has {len(ids)} tokens, more than max_length={self.max_length}: "
                "split it, or train with a larger modality.text.max_length"
            )
        if train and self.augment:
            parts = self._taken_apart(ids, random.Random(int(torch.randint(2**62, (), generator=generator))))
            ids = parts if len(parts) <= self.max_length else ids
        return torch.tensor(ids)

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds half a surrogate pair at character {error.start}: not unicode") from None
        encoded = self.tokenizer.encode(unicodedata.normalize("NFC", text), add_special_tokens=False)
        return [self._codes[number] for number in encoded.ids]

    def source_positions(self, tensor: Tensor) -> Tensor:
        return self.code_positions(tensor.shape[0])

    def front_end(self, dim: int) -> nn.Module:
        return TokenEmbedding(self.vocab_size, dim)

    def codes(self, tensor: Tensor) -> Tensor:
        return tensor

    def code_positions(self, length: int) -> Tensor:
        return self.pace * torch.arange(length).unsqueeze(1)

    def from_codes(self, codes: Tensor) -> str:
        """Bytes that are not UTF-8, as a model may produce, become U+FFFD."""
        return self.tokenizer.decode([self._ids[code] for code in codes.flatten().tolist()])

    def region(self, spec: str, value: str) -> Tensor:
        """The mask of the characters of ``from:to``, or of words that the text holds, in quotes or not."""
        start, end = _span(spec, value)
        mask = torch.zeros(len(value), dtype=torch.bool)
        mask[start:end] = True
        return mask

    def extended(self, spec: str, value: str) -> tuple[str, Tensor]:
        """Longer at its ``start`` or its ``end``: by an ellipsis, in place of which the new text comes."""
        if spec not in ("start", "end"):
            raise ValueError(f"{spec!r} is not where a text can go on: give start or end")
        longer = value + ELLIPSIS if spec == "end" else ELLIPSIS + value
        mask = torch.zeros(len(longer), dtype=torch.bool)
        mask[-1 if spec == "end" else 0] = True
        return longer, mask

    def divided(self, value: str, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of what stands before, in and behind the mask, each by itself, so that what is kept is whole."""
        head, middle, tail = _parts(value, mask)
        before, anew, behind = map(self._encode, (_without_space(head), middle, tail))
        keep = [True] * len(before) + [False] * len(anew) + [True] * len(behind)
        return torch.tensor([*before, *anew, *behind]), torch.tensor(keep)

    def first_codes(self, value: str, mask: Tensor) -> Tensor | None:
        """Those that begin with a space, where one was left to them."""
        head, _, _ = _parts(value, mask)
        if head == _without_space(head):
            return None
        return torch.tensor([str(self.tokenizer.id_to_token(number)).startswith(SPACE) for number in self._ids])

    def paste(self, original: str, edited: str, mask: Tensor) -> str:
        head, _, tail = _parts(original, mask)
        before, behind = (unicodedata.normalize("NFC", part) for part in (head, tail))
        if not edited.startswith(before) or not edited.endswith(behind) or len(edited) < len(before) + len(behind):
            raise ValueError(f"{edited[:40]!r} does not go on from {before[-40:]!r}")  # a word has grown at its end
        return head + edited[len(before) : len(edited) - len(behind)] + tail

    def split(self, value: str) -> list[Piece]:
        """Sentences, if the text is too long for the model; of a sentence that is too long itself, parts."""
        if not value.strip():
            return []
        if len(self._encode(value)) <= self.max_length:
            return [Piece(value, 0, len(value))]
        text, pieces, before = unicodedata.normalize("NFC", value), list[Piece](), 0
        for start, end in sentences.spans(text, self._longest):
            between = text[before:start] if pieces else ""
            pieces.append(Piece(text[start:end], start, end, between=between, offset=start))
            before = end
        return pieces

    def _longest(self, text: str) -> int:
        """How many of a text's first characters have at most `max_length` tokens."""
        text = text[: CHARACTERS * self.max_length]
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= self.max_length:
            return len(text)
        cut = encoding.offsets[self.max_length][0]
        while cut > 1 and len(self._encode(text[:cut])) > self.max_length:  # a token more where a merge is broken
            cut -= 1
        return max(1, cut)

    def merge(self, values: Sequence[str], pieces: Sequence[Piece]) -> list[str]:
        """Words that two windows share stand in one of the values only: see `overlap.seam`."""
        if len(values) < 2:
            return list(values)
        merged = [value.strip() for value in values]
        for number in range(1, len(merged)):
            piece = pieces[number]
            if piece.overlap:
                heard = len(overlap.WORDS.findall(merged[number]))
                share = piece.overlap / (piece.end - piece.start + piece.overlap / 2)
                end, start = overlap.seam(merged[number - 1], merged[number], heard * min(1.0, share))
                merged[number - 1], merged[number] = merged[number - 1][:end], merged[number][start:].lstrip()
        return merged

    def join(self, values: Sequence[str], pieces: Sequence[Piece]) -> str:
        """One after the other, with what stood between them; of nothing, the empty text."""
        text = ""
        for before, value, piece in zip([None, *pieces], values, pieces):
            between = piece.between
            if before and overlap.touches(text, value) and not _touched(before, piece):
                between = between.removesuffix(" ")
            elif before and not between and _touched(before, piece) and not overlap.touches(text, value):
                between = " "  # what was translated from a script without spaces into one that has them
            text += between + value if text and value else value
        return text

    def words_of(self, codes: Tensor) -> list[tuple[str, int]]:
        """What stands between spaces, its signs included."""
        codes = codes.flatten()
        tokens = [str(self.tokenizer.id_to_token(self._ids[code])) for code in codes.tolist()]
        blank = [not token.strip(SPACE + NEWLINE) for token in tokens]
        starts = [
            n
            for n, token in enumerate(tokens)
            if n == 0 or (token.startswith((SPACE, NEWLINE)) and not blank[n - 1] and not all(blank[n:]))
        ]
        return [(self.from_codes(codes[a:b]).strip(), b - a) for a, b in pairwise([*starts, len(codes)])]

    def fit(self, values: Sequence[str], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        """Learn merges (there is no step to count and no chance in it)."""
        if not values:
            raise ValueError("there is no text to fit a tokenizer on")
        yield {"step": 0, "steps": 1, "vocab_size": self.vocab_size}
        tokenizer = _byte_tokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=self.largest_vocab_size,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((unicodedata.normalize("NFC", value) for value in values), trainer)
        self._use(tokenizer)
        self.fitted = True
        yield {"step": 1, "steps": 1, "vocab_size": self.vocab_size}

    def report(self, values: Sequence[str]) -> dict[str, float]:
        """Bytes per token, tokens per text, the share of texts beyond `max_length`, codes in use."""
        if not values:
            raise ValueError("there is no text to report on")
        texts = [self._encode(value) for value in values]
        lengths = [len(ids) for ids in texts]
        used = Counter(token for ids in texts for token in ids)
        return {
            "bytes_per_token": sum(len(value.encode()) for value in values) / sum(lengths),
            "tokens_per_text": sum(lengths) / len(values),
            "longest": max(lengths),
            "too_long": sum(length > self.max_length for length in lengths) / len(values),
            "codes_used": len(used),
            "codebook_usage": len(used) / self.vocab_size,
        }

    def config(self) -> dict[str, Any]:
        return {
            "vocab_size": self.largest_vocab_size,
            "max_length": self.max_length,
            "tokenizer": self.tokenizer.to_str() if self.fitted else None,
            "augment": self.augment,
            "pace": self.pace,
            "letters_for": list(self.read_apart_for),
        }

    @classmethod
    def published(cls, folder: Path) -> dict[str, Any]:
        path = folder / TOKENIZER
        if not path.is_file():
            return {}
        tokenizer = _read(path.read_text(encoding="utf-8"))
        if not _keeps_texts(tokenizer):
            raise ValueError(f"{path} does not give every text back: only byte-level tokenizers are supported")
        return {"tokenizer": tokenizer.to_str()}

    def adopt(self, front_end: nn.Module, embeddings: Tensor) -> Tensor | None:
        if self._ids[-1] >= len(embeddings):
            raise ValueError(
                f"the tokenizer has the token {self._ids[-1]}, the checkpoint only {len(embeddings)} embeddings"
            )
        ids = torch.tensor(self._ids)
        assert isinstance(front_end, TokenEmbedding)
        with torch.no_grad():
            front_end.table.weight.copy_(embeddings[ids])
        return ids

    def recipe(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        how: dict[str, Any] = {"normalization": "NFC", "tokenizer": self.file}
        if list(self._ids) != list(range(len(self._ids))):
            how["ids"] = list(self._ids)  # of the tokenizer, by code
        return how, {self.file: self.tokenizer.to_str().encode()}

    def metrics(self, predicted: str, reference: str) -> dict[str, Score]:
        """Case and punctuation count; error rates weigh by the reference's length; chrF and BLEU reach 100."""
        predicted, reference = (unicodedata.normalize("NFC", text).strip() for text in (predicted, reference))
        wanted, found = (" ".join(text.split()) for text in (reference, predicted))  # jiwer splits at plain spaces
        return {
            "exact": Score(float(predicted == reference)),
            "wer": Score(jiwer.wer(wanted, found), max(1, len(reference.split()))),
            "cer": Score(jiwer.cer(reference, predicted), max(1, len(reference))),
            "chrf": Score(min(100.0, sacrebleu.sentence_chrf(predicted, [reference]).score)),
            "bleu": Score(min(100.0, sacrebleu.sentence_bleu(predicted, [reference], use_effective_order=True).score)),
        }

    def example(self, generator: torch.Generator) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (3,), generator=generator).tolist())


def _touched(before: Piece, piece: Piece) -> bool:
    """Whether two pieces of a text were in a script without spaces, so that what stood between them was meant."""
    return overlap.touches(str(before.value), str(piece.value))


def _span(spec: str, text: str) -> tuple[int, int]:
    """The characters that a spec means: from, and the first one behind."""
    if span := re.fullmatch(r"(\d*):(\d*)", spec):
        start, end = int(span[1] or 0), int(span[2] or len(text))
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{spec!r} is no span of a text of {len(text)} characters: give from:to")
        return start, end
    words = spec[1:-1] if len(spec) > 2 and spec[0] == spec[-1] and spec[0] in "'\"" else spec
    if not words or words not in text:
        raise ValueError(f"{spec!r} is not in the text {text[:60]!r}: give words that it holds, or characters from:to")
    return text.index(words), text.index(words) + len(words)


def _parts(text: str, mask: Tensor) -> tuple[str, str, str]:
    """What stands before, in and behind a mask of one piece."""
    places = mask.nonzero().flatten().tolist()
    start, end = places[0], places[-1] + 1
    if len(places) != end - start:
        raise ValueError("of a text one span at a time can be made anew: edit in several rounds")
    return text[:start], text[start:end], text[end:]


def _without_space(head: str) -> str:
    """What stands before a gap, without the one space that in these tokens begins the word behind it."""
    return head[:-1] if head.endswith(" ") and head.rstrip() == head[:-1] else head


class TokenEmbedding(nn.Module):
    """Ids ``[N]`` to embeddings ``[N, D]``."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.table(values)


def _byte_tokenizer() -> Tokenizer:
    """The 256 bytes and no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _keeps_texts(tokenizer: Tokenizer) -> bool:
    """Whether texts come back as they were, also where the tokens of several are joined, and any byte is a token."""
    tokenizer.encode_special_tokens = True
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    texts = [*PROBE, *special]
    ids = [number for text in texts for number in tokenizer.encode(text, add_special_tokens=False).ids]
    vocabulary = tokenizer.get_vocab()
    return tokenizer.decode(ids) == "".join(texts) and vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())


def _read(json: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(json)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"the text tokenizer's JSON cannot be read: {error}") from None
