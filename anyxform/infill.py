"""Filling a gap in a target that is decoded left to right, in which nothing that is drawn knows what comes behind.

So continuations of what stands before the gap are drawn, each is broken off behind each of its tokens, what stands
behind is put there, and the model says how likely the whole is: the likeliest gap, given both sides, among those that
were drawn. Letters: T tokens, K codebooks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anyxform.generate import generate
from anyxform.likelihood import likelihoods
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.request import Request
from anyxform.sampling import FAR, Sampling

DRAWS = 16
"""Continuations, of which the first is the likeliest that a search without chance finds."""
LONGEST = 32
"""Tokens of what fills a gap with something behind it."""


def infill(
    model: Transformer,
    modalities: Mapping[str, Modality],
    request: Request,
    options: Sampling | None = None,
    *,
    draws: int = DRAWS,
    batch_size: int = 64,
) -> list[Tensor]:
    """Different targets ``[T, K]`` that keep what `request` keeps, the likeliest first; where nothing stands behind the
    gap, in the order in which they were drawn.

    `request.known` has one gap, of whatever length; it is filled by one token or more. The seed decides what is drawn.
    ValueError: several gaps, or no room.
    """
    options = options or Sampling()
    modality = modalities[request.target.modality]
    head, tail = _sides(request, modality)
    room = modality.max_length - len(head) - len(tail)
    if room < 1:
        raise ValueError(f"there is no room for more: {modality.name} has at most {modality.max_length} tokens")
    drawn = _draws(model, modalities, request, head, options, draws, batch_size)
    if not len(tail):
        return different(drawn)
    gaps = [codes[len(head) :][: min(room, LONGEST)] for codes in drawn]
    found = different([torch.cat([head, gap[:size], tail]) for gap in gaps for size in range(1, len(gap) + 1)])
    asked = [replace(request, known=None, keep=None, first=None)] * len(found)
    scores = likelihoods(model, modalities, asked, found, decoding="autoregressive")
    return [found[number] for number in sorted(range(len(found)), key=lambda number: -scores[number])]


def _sides(request: Request, modality: Modality) -> tuple[Tensor, Tensor]:
    """What stands before and behind the gap."""
    assert request.known is not None and request.keep is not None
    gap = (~request.keep).nonzero().flatten().tolist()
    if not gap or gap[-1] - gap[0] + 1 != len(gap):
        raise ValueError(f"{modality.name} is decoded left to right: make one part of it anew at a time")
    return request.known[: gap[0]], request.known[gap[-1] + 1 :]


def _draws(
    model: Transformer,
    modalities: Mapping[str, Modality],
    request: Request,
    head: Tensor,
    options: Sampling,
    count: int,
    batch_size: int,
) -> list[Tensor]:
    """Targets that begin with `head` and go on: the first by the options as they are, the others drawn."""
    seed = options.seed if request.seed is None else request.seed
    known, keep = torch.cat([head, head.new_zeros(1, head.shape[1])]), torch.arange(len(head) + 1) < len(head)
    requests = [replace(request, known=known, keep=keep, seed=seed + (number << FAR)) for number in range(count)]
    options = replace(options, decoding="autoregressive")
    first = generate(model, modalities, requests[:1], options)
    rest = generate(model, modalities, requests[1:], options.drawn("autoregressive"), batch_size=batch_size)
    return [answer.codes for answer in (*first, *rest)]


def different(codes: Sequence[Tensor]) -> list[Tensor]:
    """Each only once, in their order."""
    found: dict[tuple[int, ...], Tensor] = {}
    for it in codes:
        found.setdefault(tuple(it.flatten().tolist()), it)
    return list(found.values())
