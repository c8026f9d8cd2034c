"""Three toy modalities, one of each kind: left to right; masked, fixed length, 2-D; masked, variable, 2 codes.

Real subclasses of `Modality` in a few lines each: values are str, a grid as a tuple of rows, and a tuple of numbers.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anyxform.modality import Modality, Score


class _Embedding(nn.Module):
    """Source side of all three: one embedding for each whole number."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, dim)

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.table(values.flatten())


class _Toy(Modality):
    """What the three share: nothing to fit, values that compare equal or not."""

    def fit(self, values: Sequence[Any], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        yield {"step": 1, "steps": 1}

    def report(self, values: Sequence[Any]) -> dict[str, float]:
        return {"codebook_usage": 1.0}

    def config(self) -> dict[str, Any]:
        return {}

    def front_end(self, dim: int) -> nn.Module:
        return _Embedding(self.vocab_size, dim)

    def metrics(self, predicted: Any, reference: Any) -> dict[str, Score]:
        return {"exact": Score(float(predicted == reference))}

    def source_positions(self, tensor: Tensor) -> Tensor:
        return self.code_positions(tensor.shape[0] if self.position_axes == 1 else tensor.numel())


class ToyText(_Toy):
    """Lower-case letters, left to right."""

    name, extensions, literal = "text", ("txt",), True
    vocab_size, max_length = 27, 32

    def load(self, data: bytes) -> str:
        text = data.decode(errors="replace")
        if not text or not all(c == " " or "a" <= c <= "z" for c in text):
            raise ValueError(f"{text[:20]!r} is not a text of lower-case letters")
        return text

    def save(self, value: str) -> bytes:
        return value.encode()

    def preprocess(self, value: str, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        if len(value) > self.max_length:
            raise ValueError(f"a text of {len(value)} letters is longer than {self.max_length}")
        return torch.tensor([" abcdefghijklmnopqrstuvwxyz".index(c) for c in value])

    def codes(self, tensor: Tensor) -> Tensor:
        return tensor

    def code_positions(self, length: int) -> Tensor:
        return torch.arange(length)[:, None]

    def from_codes(self, codes: Tensor) -> str:
        return "".join(" abcdefghijklmnopqrstuvwxyz"[i] for i in codes.tolist())

    def example(self, generator: torch.Generator) -> str:
        length = int(torch.randint(2, 8, (), generator=generator))
        return self.from_codes(torch.randint(27, (length,), generator=generator))


class ToyImage(_Toy):
    """Grids of 2 × 3 numbers below 8, masked."""

    name, extensions = "image", ("grid",)
    position_axes, decoding = 2, "masked"
    vocab_size, max_length, fixed_length = 8, 6, True

    def load(self, data: bytes) -> tuple[int, ...]:
        try:
            value = tuple(json.loads(data))
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a grid: {error}") from error
        if len(value) != 6 or not all(isinstance(x, int) and 0 <= x < 8 for x in value):
            raise ValueError(f"{value!r} is not a grid of 6 numbers below 8")
        return value

    def save(self, value: tuple[int, ...]) -> bytes:
        return json.dumps(list(value)).encode()

    def preprocess(self, value: Any, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        grid = torch.tensor(value).view(1, 6)
        return grid.roll(int(torch.randint(2, (), generator=generator)), 1) if train else grid

    def codes(self, tensor: Tensor) -> Tensor:
        return tensor[0]

    def code_positions(self, length: int) -> Tensor:
        index = torch.arange(length)
        return torch.stack([index // 3, index % 3], dim=1)

    def from_codes(self, codes: Tensor) -> tuple[int, ...]:
        return tuple(codes.tolist())

    def example(self, generator: torch.Generator) -> tuple[int, ...]:
        return tuple(torch.randint(8, (6,), generator=generator).tolist())


class ToySound(_Toy):
    """Runs of pairs of numbers below 8: masked, of variable length, two codes a token."""

    name, extensions, decoding = "sound", ("snd",), "masked"
    vocab_size, max_length, num_codebooks = 8, 10, 2

    def load(self, data: bytes) -> tuple[tuple[int, int], ...]:
        try:
            value = tuple((int(a), int(b)) for a, b in json.loads(data))
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a sound: {error}") from error
        if not 0 < len(value) <= 10 or not all(0 <= x < 8 for pair in value for x in pair):
            raise ValueError("not a sound: 1 to 10 pairs of numbers below 8 are")
        return value

    def save(self, value: tuple[tuple[int, int], ...]) -> bytes:
        return json.dumps(value).encode()

    def preprocess(self, value: Any, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return torch.tensor(value)

    def front_end(self, dim: int) -> nn.Module:
        return _PairEmbedding(self.vocab_size, dim)

    def codes(self, tensor: Tensor) -> Tensor:
        return tensor

    def code_positions(self, length: int) -> Tensor:
        return torch.arange(length)[:, None]

    def from_codes(self, codes: Tensor) -> tuple[tuple[int, int], ...]:
        return tuple((a, b) for a, b in codes.tolist())

    def example(self, generator: torch.Generator) -> tuple[tuple[int, int], ...]:
        length = int(torch.randint(2, 8, (), generator=generator))
        return self.from_codes(torch.randint(8, (length, 2), generator=generator))


class _PairEmbedding(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size * size, dim)
        self.size = size

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.table(values[:, 0] * self.size + values[:, 1])


def toys() -> dict[str, Modality]:
    """All three by name."""
    return {modality.name: modality for modality in (ToyText(), ToyImage(), ToySound())}
