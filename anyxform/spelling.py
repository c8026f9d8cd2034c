"""What a source's own tokens spell: connectionist temporal classification (CTC, Graves et al. 2006).

For models that were trained with `train.align_weight`: after some of their blocks a source's tokens are read by the
target's head, whose end means here that nothing is said. Letters: T source tokens, V codes, R prefixes, N longer ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anyxform.attention import steady_size
from anyxform.cache import cast
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.request import Request, prefix
from anyxform.sequence import pack

BATCH_SIZE = 16
HEARD = 0.01
"""Least probability, at some source token, of a code that is tried whatever the model itself would say next."""


def aligned_after(depth: int) -> int:
    """After how many blocks sources are read: those behind them can look at what was found there."""
    return max(1, round(2 * depth / 3))


def spelling(model: Transformer, name: str, states: Tensor) -> Tensor:
    """Log-probabilities ``[n, V + 1]`` of what source tokens of these states say, the last that they say nothing.

    That is what most of them must say: so in a model that knows nothing it is as likely as all codes together. Else
    to learn it costs the head, which it shares with the target, more than everything else.
    """
    logits = model.targets[name].logits(states)[:, 0]
    more = logits.new_zeros(logits.shape[1])
    more[-1] = math.log(logits.shape[1] - 1)
    return (logits + more).log_softmax(dim=-1)


@torch.no_grad()
def spelt(model: Transformer, modalities: Mapping[str, Modality], requests: Sequence[Request]) -> Iterator[Tensor]:
    """For each request, what its first source's tokens say: log-probabilities ``[T, V + 1]`` on the CPU."""
    weight, depth = model.norm.weight, len(model.blocks)
    for start in range(0, len(requests), BATCH_SIZE):
        some = requests[start : start + BATCH_SIZE]
        sources = [tuple(cast(source, weight.dtype) for source in it.sources) for it in some]
        examples = [prefix(it, modalities[it.target.modality], own) for it, own in zip(some, sources)]
        size = steady_size(sum(map(len, examples)), weight.device)
        row = pack(examples, model.condition_ids, size).to(weight.device)
        (states,) = model.states(row, skips=range(aligned_after(depth), depth))
        for request, first in zip(some, row.segments.starts):
            own = states[first : first + len(request.sources[0].positions)]
            yield spelling(model, request.target.modality, own).cpu()


def likeliest(log_p: Tensor) -> tuple[Tensor, float]:
    """The codes ``[L]`` of the likeliest path through ``[T, V + 1]``, and its log-probability: one look, no search."""
    best, path = log_p.max(dim=-1)
    codes = torch.unique_consecutive(path)
    return codes[codes < log_p.shape[1] - 1], float(best.sum())


class Prefixes:
    """Prefixes of a target that are searched for, and how likely the source's tokens spell something that begins so.

    The sum over all paths (Graves 2008, section 7.5), and its mixture with the model's own log-probability, as in joint
    decoding (Watanabe et al. 2017). There is one prefix at first, the empty one.
    """

    def __init__(self, log_p: Tensor, weight: float) -> None:
        self.log_p, self.weight = log_p.double().T, weight  # [V + 1, T]
        self.tried = (self.log_p[:-1] > math.log(HEARD)).any(dim=1)  # [V]
        # log-probabilities [R, T + 1] of having spelt the prefix after t tokens, of which the last says its last code
        # or says nothing
        self.silent = F.pad(self.log_p[-1:].cumsum(dim=1), (1, 0))
        self.spoken = torch.full_like(self.silent, -math.inf)
        self.last = torch.full((1,), -1)

    @property
    def most(self) -> int:
        """How many codes can be spelt: one a token."""
        return self.log_p.shape[1]

    def scores(self, own: Tensor, count: int) -> Tensor:
        """Mixed log-probabilities ``[R, V + 1]`` of going on by each code, or to the end, from the model's own.

        Minus infinity for codes that are neither among its `count` likeliest nor heard anywhere.
        """
        codes = own[:, :-1]
        tried = self.tried.expand(codes.shape).scatter(1, codes.topk(min(count, codes.shape[1])).indices, True)
        tried &= codes > -math.inf
        parents, chosen = tried.nonzero(as_tuple=True)
        mixed = torch.full_like(own, -math.inf)
        mixed[parents, chosen] = self._mixed(own[parents, chosen], self._extended(parents, chosen)[0])
        mixed[:, -1] = self._mixed(own[:, -1], torch.logaddexp(self.spoken[:, -1], self.silent[:, -1]))
        return mixed

    def go_on(self, parents: Tensor, chosen: Tensor) -> None:
        """Keep these prefixes, each with one more code."""
        _, self.spoken, self.silent = self._extended(parents, chosen)
        self.last = chosen

    def _mixed(self, own: Tensor, spelt: Tensor) -> Tensor:
        return (1 - self.weight) * own + self.weight * spelt.to(own.dtype)

    def _extended(self, parents: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of N longer prefixes the log-probability ``[N]``, and `spoken` and `silent` as of those that are kept."""
        said, nothing = self.log_p[chosen], self.log_p[-1:].expand(len(chosen), -1)
        # a code that comes twice must have nothing between
        again = (chosen == self.last[parents])[:, None]
        before = torch.where(again, self.silent[parents], torch.logaddexp(self.silent, self.spoken)[parents])[:, :-1]
        spoken = _cumulated(before, said)
        return (before + said).logsumexp(dim=1), spoken, _cumulated(spoken[:, :-1], nothing)


def _cumulated(before: Tensor, step: Tensor) -> Tensor:
    """``x[t + 1] = logaddexp(x[t], before[t]) + step[t]`` of all t at once, where ``x[0]`` is nothing."""
    total = step.cumsum(dim=1)
    found = total + (before - (total - step)).logcumsumexp(dim=1)
    return torch.cat([torch.full_like(found[:, :1], -math.inf), found], dim=1)
