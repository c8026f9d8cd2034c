"""Beam search: the likeliest whole sequence of one request, as transformers' ``early_stopping="never"`` finds it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyxform.cache import KVCache, advance
from anyxform.model import Transformer
from anyxform.sampling import Sampling, permitted


def search(
    model: Transformer,
    head: Any,
    cache: KVCache,
    offsets: Tensor,
    *,
    end: int,
    never_ends: Callable[[int], bool],
    options: Sampling,
) -> tuple[Tensor, float]:
    """The sequence of the best log-probability / length ** `options.length_penalty`, as codes ``[T, 1]``.

    With its log-probability, undivided; the end, where there is one, counts in both. A sequence counts as finished
    where it ends, or where there is no room left. `head` is the target side of the model, `cache` one request's prefix
    with as many free slots as `offsets` ``[T, 3]`` has rows.
    """
    beams, longest, device = options.num_beams, len(offsets), cache.first.device
    cache = cache.rows(torch.zeros(beams, dtype=torch.long, device=device))
    ids = torch.zeros(1, 0, dtype=torch.long, device=device)
    scores = torch.zeros(1, device=device)
    states = cache.marker[:1]
    finished: list[tuple[float, float, Tensor]] = []  # normalised score, log-probability, ids

    def finish(score: float, sequence: Tensor, length: int) -> None:
        finished.append((score / length**options.length_penalty, score, sequence))

    for place in range(longest):
        logits = permitted(head.logits(states), ids[..., None], options.no_repeat, never_ends(place))[:, 0]
        total = (scores[:, None] + logits.log_softmax(dim=-1)).flatten()
        best, flat = total.topk(min(2 * beams, len(total)))  # at most half of them end, so that enough go on
        parents, chosen = flat // (end + 1), flat % (end + 1)
        for score, parent, code in zip(best[:beams].tolist(), parents.tolist(), chosen.tolist()):
            if code == end and score > -math.inf:
                finish(score, ids[parent], place + 1)
        alive = ((chosen != end) & (best > -math.inf)).nonzero().flatten()[:beams]
        ids = torch.cat([ids[parents[alive]], chosen[alive, None]], dim=1)
        scores = best[alive]
        if _settled(finished, scores, longest, options):
            break
        if place + 1 < longest:
            cache.reorder(parents[alive], place)
            sees = torch.ones(len(alive), 1, place + 1, dtype=torch.bool, device=device)
            x = head.embed(ids[:, -1:, None])
            states = advance(model, cache.first_rows(len(x)), x, offsets[place : place + 1], place, sees)[:, 0]
    else:  # no room for an end
        for sequence, score in zip(ids, scores.tolist()):
            finish(score, sequence, longest)
    _, score, sequence = max(finished, key=lambda it: it[0])
    return sequence[:, None], score


def _settled(finished: list[tuple[float, float, Tensor]], scores: Tensor, longest: int, options: Sampling) -> bool:
    """Whether no live beam can still become better than the best that is finished.

    A log-probability only falls; divided by a greater length it may rise, at most to that of the longest.
    """
    best = max((it[0] for it in finished), default=-math.inf)
    return best >= float(scores.max()) / longest**options.length_penalty
