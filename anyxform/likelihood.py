"""How likely a model holds given codes to be: teacher forcing, whole rows at a time.

Letters: T tokens of a target, K codebooks, m labels of a row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anyxform.attention import steady_size
from anyxform.cache import cast
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer
from anyxform.request import Request
from anyxform.sampling import log_probability
from anyxform.sequence import Example, Target, marker, pack

TOKENS = 8192
"""Of a row."""
VIEWS = 4
"""How often a masked target is hidden in part."""


def likelihoods(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    codes: Sequence[Tensor],
    *,
    decoding: Decoding | None = None,
    views: int = VIEWS,
) -> list[float]:
    """The log-probability (nats) of each request's answer, given as codes ``[T, K]``.

    In the modality's own way of decoding, or that of `decoding`. Left to right it is exact, and counts the end. Masked,
    it is an estimate: `views` times a share cos(πu/2) of the tokens is hidden, as in training, and what is hidden
    counts for all T. What is hidden depends on T and `views` alone, so that one target's values given different
    sources can be compared. ValueError: an attribute that the model does not know.
    """
    examples, weights, owners = list[Example](), list[float](), list[int]()
    for number, (request, answer) in enumerate(zip(requests, codes, strict=True)):
        modality = modalities[request.target.modality]
        for target, weight in _views(modality, answer, decoding or modality.decoding, views):
            examples.append(_example(model, request, target))
            weights.append(weight)
            owners.append(number)
    totals = [0.0] * len(requests)
    for owner, weight, values in zip(owners, weights, _labels(model, examples)):
        totals[owner] += weight * float(values.sum())
    return totals


def token_likelihoods(
    model: Transformer, modalities: Mapping[str, Modality], requests: Sequence[Request], codes: Sequence[Tensor]
) -> list[Tensor]:
    """The log-probability ``[T]`` of each token, read left to right; one more, the end's, where the length varies."""
    targets = [
        next(_views(modalities[request.target.modality], answer, "autoregressive", 1))[0]
        for request, answer in zip(requests, codes, strict=True)
    ]
    return _labels(model, [_example(model, *pair) for pair in zip(requests, targets)])


def _example(model: Transformer, request: Request, target: Target) -> Example:
    sources = tuple(cast(source, model.norm.weight.dtype) for source in request.sources)
    return Example("candidate", "", sources, (*request.target.attributes, marker(target.modality)), target)


def _views(modality: Modality, codes: Tensor, decoding: Decoding, views: int) -> Iterator[tuple[Target, float]]:
    """A target as it is to be predicted, once or several times, each with its weight in the mean."""
    length, positions = len(codes), modality.code_positions(len(codes))
    common = (modality.name, codes, positions, modality.vocab_size, modality.fixed_length)
    if decoding == "autoregressive":
        yield Target(*common), 1.0
        return
    generator = torch.Generator().manual_seed(length)
    for view in range(views):
        hidden = torch.zeros(length, dtype=torch.bool)
        count = max(1, math.ceil(math.cos(0.5 * math.pi * view / views) * length))
        hidden[torch.randperm(length, generator=generator)[:count]] = True
        yield Target(*common, hidden), length / count / views


def _rows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Examples in their order, as many as fit into a row."""
    row, size = list[Example](), 0
    for example in examples:
        if row and size + len(example) > TOKENS:
            yield row
            row, size = [], 0
        row.append(example)
        size += len(example)
    if row:
        yield row


@torch.no_grad()
def _labels(model: Transformer, examples: Sequence[Example]) -> list[Tensor]:
    """Each example's log-probabilities ``[m]`` of its labels."""
    training = model.training
    model.eval()
    try:
        return [values for row in _rows(examples) for values in _labels_of_row(model, row)]
    finally:
        model.train(training)


def _labels_of_row(model: Transformer, row: Sequence[Example]) -> list[Tensor]:
    named = [replace(example, direction=str(number)) for number, example in enumerate(row)]  # so that labels say whose
    device = model.norm.weight.device
    batch = pack(named, model.condition_ids, steady_size(sum(map(len, row)), device)).to(device)
    states = model.states(batch)[-1]
    found = [torch.zeros(0)] * len(row)
    for name, target in batch.targets.items():
        logits = model.targets[name].logits(states[target.label_index])
        values = log_probability(logits, target.labels).sum(dim=-1).cpu()
        owners, counts = target.label_directions.cpu().unique_consecutive(return_counts=True)
        for owner, some in zip(owners.tolist(), values.split(counts.tolist())):
            found[owner] = some
    return found
