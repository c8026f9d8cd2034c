"""How likely a model holds given codes to be: teacher forcing, whole rows at a time.

Letters: T tokens of a target, K codebooks, m labels of a row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from anyxform.cache import cast
from anyxform.generate import Request
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer
from anyxform.sampling import log_probability
from anyxform.sequence import Example, Target, marker, pack

TOKENS = 8192
"""Of a row."""
VIEWS = 4
"""How often a masked target is hidden in part."""


@torch.no_grad()
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
            sources = tuple(cast(source, model.norm.weight.dtype) for source in request.sources)
            asked = (*request.target.attributes, marker(modality.name))
            examples.append(Example("candidate", str(len(examples)), sources, asked, target))
            weights.append(weight)
            owners.append(number)
    training = model.training
    model.eval()
    try:
        sums = [value for row in _rows(examples) for value in _sums(model, row)]
    finally:
        model.train(training)
    totals = torch.zeros(len(requests), dtype=torch.float64)
    weighted = torch.tensor(sums, dtype=torch.float64) * torch.tensor(weights, dtype=torch.float64)
    return totals.index_add(0, torch.tensor(owners, dtype=torch.long), weighted).tolist()


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


def _sums(model: Transformer, row: Sequence[Example]) -> list[float]:
    """Each example's log-probability of its labels; its direction is a name of its own."""
    batch = pack(row, model.condition_ids).to(model.norm.weight.device)
    states = model.states(batch)[-1]
    sums = torch.zeros(len(row), device=states.device)
    for name, target in batch.targets.items():
        logits = model.targets[name].logits(states[target.label_index])
        sums.index_add_(0, target.label_directions, log_probability(logits, target.labels).sum(dim=-1))
    return sums.tolist()
