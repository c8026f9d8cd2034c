"""Beam search: the likeliest whole sequence of one request, as transformers' ``early_stopping="never"`` finds it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyxform.cache import KVCache, advance
from anyxform.model import Transformer
from anyxform.sampling import Sampling, permitted
from anyxform.spelling import Prefixes


def search(
    model: Transformer,
    head: Any,
    cache: KVCache,
    offsets: Tensor,
    *,
    end: int,
    never_ends: Callable[[int], bool],
    options: Sampling,
    spelt: Prefixes | None = None,
) -> tuple[Tensor, float]:
    """The sequence of the best log-probability / length ** `options.length_penalty`, as codes ``[T, 1]``.

    With its log-probability, undivided; the end, where there is one, counts in both. A sequence counts as finished
    where it ends, or where there is no room left. `head` is the target side of the model, `cache` one request's prefix
    with as many free slots as `offsets` ``[T, 3]`` has rows. `spelt`: what the source's tokens spell, which then counts
    in what is best.
    """
    beams, longest, device = options.num_beams, len(offsets), cache.first.device
    most = longest if spelt is None else min(longest, spelt.most + 1)  # choices, the end included
    cache = cache.rows(torch.zeros(beams, dtype=torch.long, device=device))
    ids = torch.zeros(1, 0, dtype=torch.long, device=device)
    scores = torch.zeros(1, device=device)  # the model's own
    states = cache.marker[:1]
    finished: list[tuple[float, float, Tensor]] = []  # normalised score, log-probability, ids

    def finish(score: float, own: float, sequence: Tensor, length: int) -> None:
        finished.append((score / length**options.length_penalty, own, sequence))

    for place in range(longest):
        logits = permitted(head.logits(states), ids[..., None], options.no_repeat, never_ends(place))[:, 0]
        own = scores[:, None] + logits.log_softmax(dim=-1)
        total = own if spelt is None else spelt.scores(own.cpu(), 2 * beams).to(device)
        best, flat = total.flatten().topk(min(2 * beams, total.numel()))  # at most half end, so that enough go on
        own, parents, chosen = own.flatten()[flat], flat // (end + 1), flat % (end + 1)
        firsts = zip(best[:beams].tolist(), own.tolist(), parents.tolist(), chosen.tolist())
        for score, its_own, parent, code in firsts:
            if code == end and score > -math.inf:
                finish(score, its_own, ids[parent], place + 1)
        alive = ((chosen != end) & (best > -math.inf)).nonzero().flatten()[:beams]
        ids = torch.cat([ids[parents[alive]], chosen[alive, None]], dim=1)
        best, scores = best[alive], own[alive]
        if not len(alive) or _settled(finished, best, most, options):
            break  # none is alive where a source has too few tokens to spell more
        if spelt is not None:
            spelt.go_on(parents[alive].cpu(), chosen[alive].cpu())
        if place + 1 < longest:
            cache.reorder(parents[alive], place)
            sees = torch.ones(len(alive), 1, place + 1, dtype=torch.bool, device=device)
            x = head.embed(ids[:, -1:, None])
            states = advance(model, cache.first_rows(len(x)), x, offsets[place : place + 1], place, sees)[:, 0]
    else:  # no room for an end
        for sequence, score, its_own in zip(ids, best.tolist(), scores.tolist()):
            finish(score, its_own, sequence, longest)
    _, score, sequence = max(finished, key=lambda it: it[0])
    return sequence[:, None], score


def _settled(finished: list[tuple[float, float, Tensor]], scores: Tensor, most: int, options: Sampling) -> bool:
    """Whether no live beam can still become better than the best that is finished.

    A log-probability only falls; divided by a greater length it may rise, at most to that of the `most` choices.
    """
    best = max((it[0] for it in finished), default=-math.inf)
    return best >= float(scores.max()) / most**options.length_penalty
