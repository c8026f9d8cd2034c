"""DNA as a modality, in a package of its own: letters in, letters and frequent triplets out, left to right.

Letters: T tokens of one sequence, N tokens of all sequences of a batch, D width.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jiwer
import torch
from torch import Tensor, nn

from anyxform.modality import Modality, Score

LETTERS = "ACGT"


class DNA(Modality):
    """Strings of A, C, G and T."""

    name: ClassVar[str] = "dna"
    extensions: ClassVar[tuple[str, ...]] = ("dna",)
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"edits"})

    def __init__(self, max_length: int = 64, num_triplets: int = 16, words: Sequence[str] = tuple(LETTERS)) -> None:
        """`max_length` counts letters; `num_triplets`: how many `fit` adds to the `words` that are codes."""
        self.max_length, self.num_triplets = max_length, num_triplets
        self._use(words)

    def _use(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.numbers = {word: number for number, word in enumerate(words)}
        self.vocab_size = len(words)

    def load(self, data: bytes) -> str:
        letters = data.decode("ascii", errors="replace").strip().upper()
        if not letters or set(letters) - set(LETTERS):
            raise ValueError(f"no DNA: {letters[:20]!r} is not written in the letters A, C, G and T alone")
        return letters

    def save(self, value: str) -> bytes:
        return value.encode()

    def preprocess(self, value: str, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Letters as numbers ``[n]``; in training, every other time, those of the other strand, read backwards."""
        if len(value) > self.max_length:
            raise ValueError(f"{len(value)} letters are more than max_length={self.max_length}: cut the sequence")
        numbers = torch.tensor([LETTERS.index(letter) for letter in value])
        if train and torch.rand((), generator=generator) < 0.5:
            return 3 - numbers.flip(0)
        return numbers

    def source_positions(self, tensor: Tensor) -> Tensor:
        return self.code_positions(len(tensor))

    def front_end(self, dim: int) -> nn.Module:
        return Letters(dim)

    def codes(self, tensor: Tensor) -> Tensor:
        """Whole triplets where the tokenizer knows them, else letters."""
        letters, ids = "".join(LETTERS[number] for number in tensor.tolist()), []
        while letters:
            word = letters[:3] if letters[:3] in self.numbers else letters[:1]
            ids.append(self.numbers[word])
            letters = letters[len(word) :]
        return torch.tensor(ids)

    def code_positions(self, length: int) -> Tensor:
        return torch.arange(length)[:, None]

    def from_codes(self, codes: Tensor) -> str:
        return "".join(self.words[number] for number in codes.flatten().tolist())

    def fit(self, values: Sequence[str], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        """Learn the most frequent triplets."""
        counts = Counter(value[start : start + 3] for value in values for start in range(len(value) - 2))
        self._use([*LETTERS, *sorted(word for word, _ in counts.most_common(self.num_triplets))])
        yield {"step": 1, "steps": 1, "vocab_size": self.vocab_size}

    def report(self, values: Sequence[str]) -> dict[str, float]:
        codes = [self.codes(self.preprocess(value)).tolist() for value in values]
        used, tokens = {number for ids in codes for number in ids}, sum(map(len, codes))
        return {
            "letters_per_token": sum(map(len, values)) / tokens,
            "codebook_usage": len(used) / self.vocab_size,
        }

    def config(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "num_triplets": self.num_triplets, "words": self.words}

    def metrics(self, predicted: str, reference: str) -> dict[str, Score]:
        """`edits`: letters to change, for each of the reference's."""
        edits = jiwer.cer(reference, predicted)
        return {"exact": Score(float(predicted == reference)), "edits": Score(edits, len(reference))}

    def example(self, generator: torch.Generator) -> str:
        length = int(torch.randint(6, 13, (), generator=generator))
        return "".join(LETTERS[number] for number in torch.randint(4, (length,), generator=generator).tolist())


class Letters(nn.Module):
    """Letters ``[N]`` to embeddings ``[N, D]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(LETTERS), dim)

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.table(values)
