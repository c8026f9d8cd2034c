"""Packed rows of the toy modalities in every direction among them, and a state to train on them."""

from collections.abc import Iterator
from itertools import count, permutations

import torch

from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.optim import EMA, adamw
from anyxform.sequence import Batch, Example, Source, Target, marker, pack
from anyxform.train import TrainState
from tests.toy import toys

CONDITIONS = {marker(name): number for number, name in enumerate(toys())}
DIRECTIONS = list(permutations(toys(), 2))


def toy_example(source: str, target: str, generator: torch.Generator) -> Example:
    modalities = toys()
    given, wanted = modalities[source], modalities[target]
    value = given.preprocess(given.example(generator))
    codes = wanted.codes(wanted.preprocess(wanted.example(generator))).reshape(-1, wanted.num_codebooks)
    masked = wanted.decoding == "masked"
    hidden = torch.rand(len(codes), generator=generator) < 0.7 if masked else None
    return Example(
        key="toy",
        direction=f"{source}>{target}",
        sources=(Source(source, value, given.source_positions(value)),),
        conditions=(marker(target),),
        target=Target(target, codes, wanted.code_positions(len(codes)), wanted.vocab_size, wanted.fixed_length, hidden),
    )


def toy_row(number: int, repeats: int = 1) -> Batch:
    """Row `number`: one example of each direction, `repeats` times over."""
    generator = torch.Generator().manual_seed(number)
    examples = [toy_example(*pair, generator) for _ in range(repeats) for pair in DIRECTIONS]
    return pack(examples, CONDITIONS, size=160 * repeats)


def toy_rows(start: int | None = 0) -> Iterator[tuple[Batch, int]]:
    """Rows from number `start` on, each with the number of the next."""
    for number in count(start or 0):
        yield toy_row(number), number + 1


def toy_model(modalities: dict[str, Modality] | None = None, **changes: float) -> Transformer:
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 3, "num_heads": 2, **changes}
    return Transformer(modalities=modalities or toys(), conditions=list(CONDITIONS), **sizes)  # type: ignore[arg-type]


def toy_state(ema: float | None = 0.99, **changes: float) -> TrainState:
    model = toy_model(**changes)
    return TrainState(model, adamw(model, lr=3e-3), None if ema is None else EMA(model, ema))
