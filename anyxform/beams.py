"""Beam search: the likeliest whole sequence of each request, as transformers' ``early_stopping="never"`` finds it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
    spelt: Sequence[Prefixes] = (),
) -> list[tuple[Tensor, float]]:
    """Each request's sequence of the best log-probability / length ** `options.length_penalty`, as codes ``[T, 1]``.

    With its log-probability, undivided; the end, where there is one, counts in both. A sequence counts as finished
    where it ends, or where there is no room left. `head` is the target side of the model, `cache` the requests'
    prefixes with as many free slots as `offsets` ``[T, 3]`` has rows. `spelt`: what each one's source tokens spell,
    which then counts in what is best.
    """
    beams, longest, device = options.num_beams, len(offsets), cache.first.device
    count = len(cache.first)
    every = [_Beams(options, end, longest, spelt[number] if spelt else None) for number in range(count)]
    searches = every  # a block of rows each, whether all its beams are alive or not
    cache = cache.rows(torch.arange(count, device=device).repeat_interleave(beams))
    states = cache.marker
    for place in range(longest):
        for one, logits in zip(searches, head.logits(states).cpu().split(beams), strict=True):
            if not one.done:
                one.step(logits, never_ends(place))
        going = [number for number, one in enumerate(searches) if not one.done]
        if not going or place + 1 == longest:
            break
        cache.reorder(_in_blocks([one.parents for one in searches], beams).to(device), place)
        if 2 * len(going) <= len(searches):
            cache = cache.rows(_in_blocks([torch.arange(beams)] * len(going), beams, going).to(device))
            searches = [searches[number] for number in going]
        x = head.embed(torch.cat([one.last for one in searches]).to(device)[:, None, None])
        sees = torch.ones(len(x), 1, place + 1, dtype=torch.bool, device=device)
        states = advance(model, cache, x, offsets[place : place + 1], place, sees)[:, 0]
    return [one.best() for one in every]


def _in_blocks(rows: Sequence[Tensor], size: int, blocks: Sequence[int] | None = None) -> Tensor:
    """Rows ``[n]`` within blocks of this size as rows of all of them."""
    return torch.cat([size * block + own for block, own in zip(blocks or range(len(rows)), rows)])


class _Beams:
    """The search of one request, on the CPU: its beams so far, and what has ended."""

    def __init__(self, options: Sampling, end: int, longest: int, spelt: Prefixes | None) -> None:
        self.options, self.end, self.spelt = options, end, spelt
        self.most = longest if spelt is None else min(longest, spelt.most + 1)  # choices, the end included
        self.ids = torch.zeros(1, 0, dtype=torch.long)  # [R, T], of the beams that are alive
        self.own = self.scores = torch.zeros(1)  # [R], the model's log-probabilities; what beams are ranked by
        self.finished: list[tuple[float, float, Tensor]] = []  # normalised score, log-probability, ids
        self.done = False
        # [num_beams]: which beam each goes on from, and by which code; the last are of no use where fewer are alive
        self.parents = self.last = torch.zeros(options.num_beams, dtype=torch.long)

    def step(self, logits: Tensor, never_ends: bool) -> None:
        """One more code, or the end, from logits ``[num_beams, 1, V + 1]``."""
        beams, alive = self.options.num_beams, len(self.ids)
        logits = permitted(logits[:alive], self.ids[..., None], self.options.no_repeat, never_ends)[:, 0]
        own = self.own[:, None] + logits.log_softmax(dim=-1)
        total = own if self.spelt is None else self.spelt.scores(own, 2 * beams)
        best, flat = total.flatten().topk(min(2 * beams, total.numel()))  # at most half end, so that enough go on
        own, parents, chosen = own.flatten()[flat], flat // (self.end + 1), flat % (self.end + 1)
        length = self.ids.shape[1] + 1
        for score, its_own, parent, code in zip(best[:beams].tolist(), own.tolist(), parents.tolist(), chosen.tolist()):
            if code == self.end and score > -math.inf:
                self._finish(score, its_own, self.ids[parent], length)
        going = ((chosen != self.end) & (best > -math.inf)).nonzero().flatten()[:beams]
        parents, chosen = parents[going], chosen[going]
        self.ids = torch.cat([self.ids[parents], chosen[:, None]], dim=1)
        self.own, self.scores = own[going], best[going]
        self.done = not len(going) or self._settled()  # none goes on where a source has too few tokens to spell more
        if not self.done:
            if self.spelt is not None:
                self.spelt.go_on(parents, chosen)
            self.parents, self.last = (F.pad(it, (0, beams - len(going))) for it in (parents, chosen))

    def best(self) -> tuple[Tensor, float]:
        """The best sequence ``[T, 1]``, with its log-probability."""
        if not self.done:  # there was no room for an end
            for ids, score, own in zip(self.ids, self.scores.tolist(), self.own.tolist()):
                self._finish(score, own, ids, self.ids.shape[1])
        _, own, ids = max(self.finished, key=lambda it: it[0])
        return ids[:, None], own

    def _finish(self, score: float, own: float, ids: Tensor, length: int) -> None:
        self.finished.append((score / length**self.options.length_penalty, own, ids))

    def _settled(self) -> bool:
        """Whether no live beam can still become better than the best that is finished.

        A log-probability only falls; divided by a greater length it may rise, at most to that of the `most` choices.
        """
        best = max((it[0] for it in self.finished), default=-math.inf)
        return best >= float(self.scores.max()) / self.most**self.options.length_penalty
