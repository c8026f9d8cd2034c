"""Requests among the toy modalities, a model of decided opinions, and what it says of them when nothing is cached."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anyxform.field import Field
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.request import Request
from anyxform.sequence import Example, Source, Target, marker, pack
from tests.toy import toys

CONDITIONS = ["fr", "b", *(marker(name) for name in toys())]


@torch.no_grad()
def decided_model(modalities: dict[str, Modality] | None = None, seed: int = 0, **changes: int) -> Transformer:
    """Weights far from their initialisation, where all codes are about equally likely."""
    torch.manual_seed(seed)
    sizes = {"dim": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, **changes}
    model = Transformer(modalities=modalities or toys(), conditions=CONDITIONS, **sizes).eval()
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model


def toy_source(name: str, seed: int) -> Source:
    modality = toys()[name]
    values = modality.preprocess(modality.example(torch.Generator().manual_seed(seed)))
    return Source(name, values, modality.source_positions(values))


def toy_request(sources: Sequence[str], target: str, seed: int = 0) -> Request:
    """Sources of given modalities, and values drawn by `seed`."""
    return Request(tuple(toy_source(name, seed + 100 * n) for n, name in enumerate(sources)), Field.parse(target))


def toy_requests() -> list[Request]:
    """Every target, from one, two or no sources of several lengths, in mixed order."""
    directions = [
        (("text",), "text:fr"), (("image", "sound"), "text"), (("sound",), "image"), (("text", "text"), "sound:fr-b"),
        ((), "text:fr"), (("image",), "sound"), (("text", "image"), "image"), (("sound",), "text:b"), ((), "image"),
        (("sound", "text"), "sound:fr"),
    ]  # fmt: skip
    return [toy_request(*direction, seed) for seed, direction in enumerate(directions)]


def full_example(request: Request, codes: Tensor, causal: bool) -> Example:
    """A request with target codes ``[T, K]``; the id one past the last code, in a masked target, is the mask."""
    name = request.target.modality
    modality = toys()[name]
    positions, fixed = modality.code_positions(len(codes)), modality.fixed_length
    hidden = None if causal else torch.zeros(len(codes), dtype=torch.bool)  # the mask is among the codes already
    target = Target(name, codes, positions, modality.vocab_size, fixed, hidden)
    return Example("toy", f">{request.target}", request.sources, (*request.target.attributes, marker(name)), target)


@torch.no_grad()
def full_states(model: Transformer, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
    """The states of each example's prefix and target, from one packed row."""
    states = model.states(pack(examples, model.condition_ids))[-1].split([len(example) for example in examples])
    return [(it[: example.prefix_length], it[example.prefix_length :]) for it, example in zip(states, examples)]


def marker_state(model: Transformer, request: Request) -> Tensor:
    """The state from which the first code and the length are read, without a cache."""
    empty = torch.zeros(0, toys()[request.target.modality].num_codebooks, dtype=torch.long)
    return full_states(model, [full_example(request, empty, causal=True)])[0][0][-1]


def full_logits(model: Transformer, request: Request, codes: Tensor, causal: bool) -> Tensor:
    """Logits ``[T + 1, K, V + 1]`` of the marker and of the target's tokens, without a cache."""
    prefix, target = full_states(model, [full_example(request, codes, causal)])[0]
    return model.targets[request.target.modality].logits(torch.cat([prefix[-1:], target])).detach()
