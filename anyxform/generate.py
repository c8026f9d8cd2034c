"""Generation: requests in any mixture of directions, decoded left to right or by masked refinement with one set of weights.

Letters: B requests of a group, T target tokens, K codebooks, V codes, D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyxform.cache import KVCache, advance, prefill
from anyxform.field import Field
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer
from anyxform.sampling import Sampling, choose, generators
from anyxform.sequence import Example, Source, Target, marker, to_axes


@dataclass(frozen=True)
class Request:
    """What is given and what is wanted. `known` codes ``[T, K]`` stay where `keep` ``[T]`` is true (masked only)."""

    sources: tuple[Source, ...]
    target: Field
    known: Tensor | None = None
    keep: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Codes ``[T, K]``, and the sum of their log-probabilities when they were chosen."""

    codes: Tensor
    logprob: float


def generate(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 64,
) -> list[Generated]:
    """Answer requests, in their order. They are decoded in groups of one target modality; none depends on its group."""
    sampling = sampling or Sampling()
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.target.modality, []).append(number)
    answers: dict[int, Generated] = {}
    training = model.training
    model.eval()
    try:
        for name, numbers in groups.items():
            numbers.sort(key=lambda number: sum(len(source.positions) for source in requests[number].sources))
            for start in range(0, len(numbers), batch_size):
                chunk = numbers[start : start + batch_size]
                group = _Group(model, modalities[name], [requests[n] for n in chunk], chunk, sampling)
                answers |= dict(zip(chunk, group.decode()))
    finally:
        model.train(training)
    return [answers[number] for number in range(len(requests))]


class _Group:
    """Requests of one target modality, decoded together."""

    def __init__(
        self, model: Transformer, modality: Modality, requests: Sequence[Request], numbers: Sequence[int], sampling: Sampling
    ) -> None:
        self.model, self.modality, self.requests, self.sampling = model, modality, requests, sampling
        self.head = model.targets[modality.name]
        self.decoding: Decoding = sampling.decoding or modality.decoding
        default = 0.0 if self.decoding == "autoregressive" else 1.0
        self.temperature = default if sampling.temperature is None else sampling.temperature
        self.random = generators(sampling, numbers)
        self.guided = sampling.guidance != 1 and any(request.sources for request in requests)
        if sampling.num_beams > 1 and (self.decoding == "masked" or modality.num_codebooks > 1 or self.guided):
            raise ValueError(
                f"num_beams={sampling.num_beams}: beam search goes left to right with one code a token and without guidance; "
                f"{modality.name} here is decoded {self.decoding} with {modality.num_codebooks}, guidance={sampling.guidance:g}"
            )
        if sampling.length is not None and sampling.length > modality.max_length:
            raise ValueError(f"length={sampling.length}: {modality.name} has at most {modality.max_length} tokens")

    def decode(self) -> list[Generated]:
        if self.decoding == "masked":
            return self._masked()
        return self._beams() if self.sampling.num_beams > 1 else self._left_to_right()

    def _prefill(self, room: int) -> KVCache:
        """The prefixes; with guidance those without sources as well, behind the others."""
        examples = [_prefix(request, self.modality, request.sources) for request in self.requests]
        if self.guided:
            examples += [_prefix(request, self.modality, ()) for request in self.requests]
        return prefill(self.model, examples, room)

    def _logits(self, states: Tensor) -> Tensor:
        """Fp32 logits ``[B, …, K, V + 1]`` of states; with guidance those of twice as many rows."""
        logits = self.head.logits(states)
        if self.guided:
            with_sources, without = logits.chunk(2)
            logits = without + self.sampling.guidance * (with_sources - without)
        return logits

    def _both(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.guided else x

    def _positions(self, cache: KVCache, length: int) -> Tensor:
        """Positions ``[B, length, 3]`` of target tokens."""
        return to_axes(self.modality.code_positions(length)).to(cache.first.device) + cache.first[:, None, None]

    def _longest(self) -> int:
        return self.modality.max_length if self.sampling.length is None else self.sampling.length

    @torch.no_grad()
    def _left_to_right(self) -> list[Generated]:
        end, longest = self.modality.vocab_size, self._longest()
        cache = self._prefill(longest)
        positions = self._positions(cache, longest)
        states, count = cache.states, len(self.requests)
        ids = torch.zeros(count, 0, self.modality.num_codebooks, dtype=torch.long, device=states.device)
        total = torch.zeros(count, device=states.device)
        lengths = torch.full((count,), longest, device=states.device)
        for place in range(longest):
            logits = self._logits(states)
            if self._never_ends(place):
                logits[..., end] = float("-inf")
            chosen, log_p = choose(logits, self.sampling, self.temperature, self.random)
            running = lengths == longest
            total += log_p.sum(dim=-1) * running
            ended = running & (chosen == end).any(dim=-1)
            lengths = torch.where(ended, place, lengths)
            chosen = chosen.clamp_max(end - 1)  # a row that has ended goes on unread
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            if place + 1 == longest or not (lengths == longest).any():
                break
            sees = torch.ones(len(states), 1, place + 1, dtype=torch.bool, device=states.device)
            x = self._both(self.head.embed(ids[:, -1:]))
            states = advance(self.model, cache, x, positions[:, place : place + 1], place, sees)[:, 0]
        return [Generated(row[:n].cpu(), float(p)) for row, n, p in zip(ids, lengths.tolist(), total)]

    def _never_ends(self, place: int) -> bool:
        """An answer has at least one token, and all of them where the number is fixed."""
        return place == 0 or self.modality.fixed_length or self.sampling.length is not None

    @torch.no_grad()
    def _beams(self) -> list[Generated]:
        """Beam search: the likeliest whole sequences by log-probability / length ** length_penalty."""
        return [self._beam_search(number) for number in range(len(self.requests))]

    def _beam_search(self, number: int) -> Generated:
        beams, end, longest = self.sampling.num_beams, self.modality.vocab_size, self._longest()
        cache = prefill(self.model, [_prefix(self.requests[number], self.modality, self.requests[number].sources)], longest)
        states, positions = cache.states, self._positions(cache, longest)
        ids = torch.zeros(1, 0, dtype=torch.long, device=states.device)
        scores = torch.zeros(1, device=states.device)
        finished: list[tuple[float, float, Tensor]] = []

        def finish(sequence: Tensor, score: float, length: int) -> None:
            finished.append((score / max(1, length) ** self.sampling.length_penalty, score, sequence))

        for place in range(longest):
            logits = self.head.logits(states)[:, 0]
            if self._never_ends(place):
                logits[:, end] = float("-inf")
            options = (scores[:, None] + logits.log_softmax(dim=-1)).flatten()
            best, flat = options.topk(min(2 * beams, len(options)))
            parents, chosen = flat // (end + 1), flat % (end + 1)
            for score, parent, code in zip(best[:beams].tolist(), parents.tolist(), chosen.tolist()):
                if code == end and score > float("-inf"):
                    finish(ids[parent], score, place + 1)
            alive = (chosen != end).nonzero().flatten()[:beams]
            ids = torch.cat([ids[parents[alive]], chosen[alive, None]], dim=1)
            scores = best[alive]
            enough = sorted((f[0] for f in finished), reverse=True)[:beams]
            if place + 1 == longest or (len(enough) == beams and self._settled(enough[-1], scores, place + 1, longest)):
                break
            cache = cache.rows(parents[alive])
            positions = positions[:1].expand(len(alive), -1, -1)
            sees = torch.ones(len(alive), 1, place + 1, dtype=torch.bool, device=ids.device)
            x = self.head.embed(ids[:, -1:, None])
            states = advance(self.model, cache, x, positions[:, place : place + 1], place, sees)[:, 0]
        if ids.shape[1] == longest:  # only those that had no room for an end; shorter live beams are not answers
            for sequence, score in zip(ids, scores.tolist()):
                finish(sequence, score, longest)
        _, score, sequence = max(finished, key=lambda f: f[0])
        return Generated(sequence[:, None].cpu(), score)

    def _settled(self, worst: float, scores: Tensor, length: int, longest: int) -> bool:
        """Whether no live beam can still become better than the worst of enough finished ones."""
        best = float(scores.max()) if len(scores) else float("-inf")
        penalty = self.sampling.length_penalty
        return worst >= best / (longest if penalty > 0 else length + 1) ** penalty

    @torch.no_grad()
    def _masked(self) -> list[Generated]:
        """MaskGIT: predict all, keep the most certain, hide the rest again, fewer each step (arXiv 2202.04200)."""
        mask_id, steps = self.modality.vocab_size, self.sampling.steps
        cache = self._prefill(room=0)
        lengths = self._lengths(cache)
        longest = int(lengths.max())
        cache.keys, cache.values = _grown(cache.keys, longest), _grown(cache.values, longest)
        ids, known = self._start(lengths, longest)
        total = torch.zeros(ids.shape[:2], device=ids.device)
        valid = torch.arange(longest, device=ids.device) < lengths[:, None]
        sees = self._both(valid)[:, None, :].expand(-1, longest, -1)
        positions = self._positions(cache, longest)
        hidden_first = (valid & ~known).sum(dim=1)
        for step in range(1, steps + 1):
            x = self._both(self.head.embed(ids))
            logits = self._logits(advance(self.model, cache, x, positions, 0, sees))[..., :mask_id]
            chosen, log_p = choose(logits, self.sampling, self.temperature, self.random)
            open_ = valid & ~known
            ids = torch.where(open_[..., None], chosen, ids)
            certainty = log_p.mean(dim=-1)
            total = torch.where(open_, log_p.sum(dim=-1), total)
            if step == steps:
                break
            remain = (hidden_first * math.cos(0.5 * math.pi * step / steps)).floor().long()
            hide = self._least_certain(certainty, open_, remain, 1 - step / steps)
            ids = ids.masked_fill(hide[..., None], mask_id)
            known = known | (open_ & ~hide)
        return [Generated(row[:n].cpu(), float(p[:n].sum())) for row, n, p in zip(ids, lengths.tolist(), total)]

    def _lengths(self, cache: KVCache) -> Tensor:
        """The number of tokens of each target ``[B]``: known, fixed, asked for, or predicted from the marker's state."""
        if self.modality.fixed_length:
            wanted = torch.full((len(self.requests),), self.modality.max_length)
        elif self.sampling.length is not None:
            wanted = torch.full((len(self.requests),), self.sampling.length)
        else:
            logits = self.head.length(cache.states[: len(self.requests)]).float()
            wanted = logits[:, 1:].argmax(dim=-1).cpu() + 1
        given = [len(r.known) if r.known is not None else int(n) for r, n in zip(self.requests, wanted)]
        return torch.tensor(given, device=cache.states.device)

    def _start(self, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Ids ``[B, T, K]`` all masked but for what requests keep, and which tokens ``[B, T]`` those are."""
        shape = (len(lengths), longest)
        ids = torch.full((*shape, self.modality.num_codebooks), self.modality.vocab_size, device=lengths.device)
        known = torch.zeros(shape, dtype=torch.bool, device=lengths.device)
        for row, request in enumerate(self.requests):
            if request.known is not None and request.keep is not None:
                place = request.keep.nonzero().flatten().to(lengths.device)
                ids[row, place] = request.known.to(lengths.device)[place]
                known[row, place] = True
        return ids, known

    def _least_certain(self, certainty: Tensor, open_: Tensor, remain: Tensor, heat: float) -> Tensor:
        """Which `remain` open tokens of each row are hidden again: those of the least certainty, with cooling noise."""
        noise = torch.stack([torch.rand(certainty.shape[1], generator=source) for source in self.random])
        gumbel = -(-noise.clamp_min(1e-20).log()).log().to(certainty.device)
        score = certainty + self.sampling.choice_temperature * heat * gumbel
        rank = score.masked_fill(~open_, float("inf")).argsort(dim=1).argsort(dim=1)
        return open_ & (rank < remain[:, None])


def _prefix(request: Request, modality: Modality, sources: tuple[Source, ...]) -> Example:
    """An example whose target is still empty."""
    empty = torch.zeros(0, modality.num_codebooks, dtype=torch.long)
    target = Target(modality.name, empty, modality.code_positions(0), modality.vocab_size, modality.fixed_length)
    asked = (*request.target.attributes, marker(modality.name))
    return Example("request", f">{request.target}", sources, asked, target)


def _grown(tensors: Sequence[Tensor], room: int) -> list[Tensor]:
    """Caches with `room` more slots."""
    return [torch.cat([t, t.new_zeros(len(t), room, *t.shape[2:])], dim=1) for t in tensors]
