"""A codec from outside, of fixed weights, and the modality that wraps it: see tests/test_codec.py.

Letters: T frames of one recording, W samples of a frame, K codebooks.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anyxform.modality import Modality, Score

WIDTH, VOCABULARY, CODEBOOKS = 4, 16, 2


class Codec(nn.Module):
    """As somebody else has published it: frames ``[T, W]`` to codes ``[T, K]`` and back, each codebook of what the
    ones before it left over."""

    def __init__(self) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.zeros(CODEBOOKS, VOCABULARY, WIDTH), requires_grad=False)

    def encode(self, frames: Tensor) -> Tensor:
        codes, rest = [], frames
        for book in self.codebooks:
            codes.append(torch.cdist(rest, book).argmin(dim=1))
            rest = rest - book[codes[-1]]
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        return sum(book[column] for book, column in zip(self.codebooks, codes.T, strict=True))  # type: ignore[return-value]


class Frames(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, dim)

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.linear(values)


class Wave(Modality):
    """Tuples of samples. `weights`: the codec's file, needed until a folder of ours has them."""

    name, extensions = "wave", ("pcm",)
    vocab_size, num_codebooks, max_length = VOCABULARY, CODEBOOKS, 8

    def __init__(self, weights: str | None = None) -> None:
        self.codec = Codec()
        if weights:
            self.codec.load_state_dict(load_file(weights))

    def load(self, data: bytes) -> tuple[float, ...]:
        if not data or len(data) % (4 * WIDTH):
            raise ValueError(f"{len(data)} bytes are no whole frames")
        return tuple(array("f", data))

    def save(self, value: tuple[float, ...]) -> bytes:
        return array("f", value).tobytes()

    def preprocess(self, value: Any, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return torch.tensor(value).view(-1, WIDTH)

    def source_positions(self, tensor: Tensor) -> Tensor:
        return self.code_positions(len(tensor))

    def front_end(self, dim: int) -> nn.Module:
        return Frames(dim)

    def codes(self, tensor: Tensor) -> Tensor:
        return self.codec.encode(tensor)

    def code_positions(self, length: int) -> Tensor:
        return torch.arange(length)[:, None]

    def from_codes(self, codes: Tensor) -> tuple[float, ...]:
        return tuple(self.codec.decode(codes).flatten().tolist())

    def fit(self, values: Sequence[Any], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        yield from ()

    def report(self, values: Sequence[Any]) -> dict[str, float]:
        return {"error": sum(self.metrics(self._again(it), it)["error"].value for it in values) / len(values)}

    def _again(self, value: Any) -> tuple[float, ...]:
        return self.from_codes(self.codes(self.preprocess(value)))

    def config(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return self.codec.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.codec.load_state_dict(state)

    def metrics(self, predicted: Any, reference: Any) -> dict[str, Score]:
        return {"error": Score(max(abs(one - other) for one, other in zip(predicted, reference, strict=False)))}

    def example(self, generator: torch.Generator) -> tuple[float, ...]:
        return tuple(torch.randn(3 * WIDTH, generator=generator).tolist())
