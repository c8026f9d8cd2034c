"""Refining drafts: what was decoded left to right is read from both sides, and its least certain tokens are redone.

As masked language models decode (mask-predict, arXiv 1904.09324), with a left-to-right draft to begin with. A redone
answer is taken where the model, reading it left to right, holds it to be likelier than the one before: so that no round
makes an answer worse by the model's own measure. Letters: T tokens, K codebooks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anyxform.generate import generate
from anyxform.likelihood import likelihoods, token_likelihoods
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.request import Generated, Request, seeded
from anyxform.sampling import Sampling

SHARE = 0.5
"""Of the tokens that the first round hides; later ones hide fewer."""


def generate_refined(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    options: Sampling,
    *,
    batch_size: int = 64,
) -> list[Generated]:
    """`generate`, and then `options.refine` rounds over what was decoded left to right.

    A refined answer's `logprob` is that of all of it, its end included. A model that has not learnt both ways of
    decoding (``data.other_decoding``) redoes tokens at random, which is next to never likelier. An answer without
    tokens, as of a source that spells nothing, stays as it is.
    """
    requests = seeded(requests, options.seed)  # some are asked again, among others
    answers = generate(model, modalities, requests, options, batch_size=batch_size)
    chosen = [
        number
        for number, (request, answer) in enumerate(zip(requests, answers))
        if len(answer.codes) and (options.decoding or modalities[request.target.modality].decoding) == "autoregressive"
    ]
    if not options.refine or not chosen:
        return answers
    asked, kept = [requests[number] for number in chosen], [answers[number] for number in chosen]
    redone = replace(options.without_search(options.temperature or 0.0), decoding="masked", length=None, draft=0)
    scores = likelihoods(model, modalities, asked, [it.codes for it in kept], decoding="autoregressive")
    for round in range(options.refine):
        share = SHARE * (1 - round / options.refine)
        certainties = token_likelihoods(model, modalities, asked, [it.codes for it in kept])
        keeps = [_keep(it, len(own.codes), share, request) for it, own, request in zip(certainties, kept, asked)]
        again = [replace(it, known=own.codes, keep=keep) for it, own, keep in zip(asked, kept, keeps)]
        found = generate(model, modalities, again, redone, batch_size=batch_size)
        new = likelihoods(model, modalities, asked, [it.codes for it in found], decoding="autoregressive")
        better = [one > other for one, other in zip(new, scores)]
        made = zip(better, kept, found, keeps)
        kept = [_redone(old, new, keep) if take else old for take, old, new, keep in made]
        scores = [max(pair) for pair in zip(new, scores)]
    for number, own, score in zip(chosen, kept, scores):
        answers[number] = replace(own, logprob=score)
    return answers


def _redone(before: Generated, after: Generated, keep: Tensor) -> Generated:
    """An answer with other tokens, and for each the layers behind which it was read when it was chosen."""
    if before.layers is None or after.layers is None:
        return replace(before, codes=after.codes)
    return replace(before, codes=after.codes, layers=torch.where(keep, before.layers, after.layers))


def _keep(certainty: Tensor, length: int, share: float, request: Request) -> Tensor:
    """Which tokens ``[T]`` stay: all but a share, the least certain, of those that the request does not keep itself."""
    certainty, given = certainty[:length].clone(), torch.zeros(length, dtype=torch.bool)
    if request.keep is not None:
        given[: len(request.keep)] = request.keep
    count = math.ceil(share * int((~given).sum()))
    order = certainty.masked_fill(given, math.inf).argsort()
    keep = torch.ones(length, dtype=torch.bool)
    keep[order[:count]] = False
    return keep
