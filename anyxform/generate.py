"""Generation: requests in any mixture of directions, answered left to right or by masked refinement.

Letters: B requests of a group, P tokens of a prefix, T target tokens, K codebooks, V codes, D width.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from anyxform.beams import search
from anyxform.cache import KVCache, advance, prefill
from anyxform.continuous import Row, RowCache, Steps, decode
from anyxform.effort import Refiner, prefix_depth
from anyxform.effort import decode as decode_by_effort
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer
from anyxform.request import Generated, Request, check, prefix
from anyxform.sampling import SCHEDULES, Sampling, chance, draw, log_probability, permitted, uniforms
from anyxform.sequence import Example, to_axes
from anyxform.speculative import draft_blocks, speculate
from anyxform.spelling import Prefixes, likeliest, spelt
from anyxform.stream import Stream, Task

_Read = Callable[[Tensor, Tensor], Tensor]
"""Codes ``[B, T, K]`` and which tokens ``[B, T]`` are hidden to logits ``[B, T, K, V + 1]``."""
_Identity = tuple[tuple[int, ...], tuple[str, ...]]
"""What makes two prefixes of one target modality the same: their very sources, and what is asked for."""


def generate(
    model: Transformer,
    modalities: Mapping[str, Modality],
    requests: Sequence[Request],
    options: Sampling | None = None,
    *,
    batch_size: int = 64,
) -> list[Generated]:
    """Answer requests, in their order.

    They are decoded in batches of one target modality and of about equal length; left to right, a request that waits
    begins as soon as another one ends (`anyxform.continuous`). What a request draws depends on its number and
    `options.seed`, never on its batch; with `draft` or `effort` each is decoded alone. ValueError: an option that the
    target's modality cannot serve, or an attribute that the model has not been trained with.
    """
    options = options or Sampling()
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not possible: give 1 or more")
    batch_size = 1 if options.alone else batch_size
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.target.modality, []).append(number)
    answers: dict[int, Generated] = {}
    training = model.training
    model.eval()
    try:
        for name, numbers in groups.items():
            numbers.sort(key=lambda number: sum(len(source.positions) for source in requests[number].sources))
            together = len(numbers) if continuous(modalities[name], options) else batch_size
            for start in range(0, len(numbers), together):
                chunk = numbers[start : start + together]
                group = _Group(model, modalities[name], [requests[n] for n in chunk], chunk, options)
                answers |= dict(zip(chunk, group.decode(batch_size)))
    finally:
        model.train(training)
    return [answers[number] for number in range(len(requests))]


def continuous(modality: Modality, options: Sampling) -> bool:
    """Whether requests begin and end one by one: left to right, all blocks for each token, and without beams."""
    left_to_right = (options.decoding or modality.decoding) == "autoregressive"
    return left_to_right and not options.searches and not options.alone


def _identity(example: Example) -> _Identity:
    return tuple(map(id, example.sources)), example.conditions


class _Group:
    """Requests of one target modality, decoded together."""

    def __init__(
        self,
        model: Transformer,
        modality: Modality,
        requests: Sequence[Request],
        numbers: Sequence[int],
        options: Sampling,
    ) -> None:
        self.model, self.modality, self.requests, self.options = model, modality, requests, options
        self.head: Any = model.targets[modality.name]
        self.decoding: Decoding = options.decoding or modality.decoding
        self.temperature = options.temperature_for(self.decoding)
        self.guidance = options.guidance_for(self.decoding)
        if not any(request.sources for request in requests):
            self.guidance = 1.0  # there is nothing to be guided by
        self.seeds = [options.seed + n if it.seed is None else it.seed for it, n in zip(requests, numbers)]
        check(requests, modality, options, self.decoding, depth=len(model.blocks))

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One for each request, made where something is drawn."""
        return [chance(seed) for seed in self.seeds]

    @cached_property
    def keeps(self) -> bool:
        """Whether any request keeps a part."""
        return any(request.keep is not None for request in self.requests)

    @torch.no_grad()
    def decode(self, batch_size: int) -> list[Generated]:
        if self.decoding == "masked":
            return self._masked()
        if self.options.alone:
            return [self._alone()]
        if self.options.align_weight == 1:
            most = self.modality.max_length
            return [Generated(codes[:most, None], log_p) for codes, log_p in map(likeliest, self._spelt())]
        return self._beams(batch_size) if self.options.searches else self._left_to_right(batch_size)

    # What both ways share

    @property
    def guided(self) -> bool:
        return self.guidance != 1

    def _prefill(self, room: int) -> KVCache:
        """The prefixes, each distinct one computed once; with guidance those without sources behind the others."""
        prefixes = self._prefixes()
        keys = [_identity(it) for it in prefixes]
        distinct = dict(zip(keys, prefixes))
        cache = prefill(self.model, list(distinct.values()), room)
        if len(distinct) == len(keys):
            return cache
        rows = {key: row for row, key in enumerate(distinct)}
        return cache.rows(torch.tensor([rows[key] for key in keys], device=cache.first.device))

    def _prefixes(self) -> list[Example]:
        examples = [prefix(request, self.modality, request.sources) for request in self.requests]
        if self.guided:
            examples += [prefix(request, self.modality, ()) for request in self.requests]
        return examples

    def _logits(self, states: Tensor) -> Tensor:
        """Fp32 logits ``[B, …, K, V + 1]`` of states; with guidance from those of twice as many rows."""
        logits = self.head.logits(states)
        if self.guided:
            with_sources, without = logits.chunk(2)
            logits = without + self.guidance * (with_sources - without)
        return logits

    def _both(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.guided else x

    def _embed(self, codes: Tensor) -> Tensor:
        return self._both(self.head.embed(codes))

    def _offsets(self, length: int) -> Tensor:
        """Positions ``[length, 3]`` of target tokens, counted from the first."""
        return to_axes(self.modality.code_positions(length)).to(self.model.norm.weight.device)

    def _longest(self) -> int:
        return self.modality.max_length if self.options.length is None else self.options.length

    def _never_ends(self, place: int) -> bool:
        """An answer has at least one token, and all of them where the number is fixed."""
        return place == 0 or self.modality.fixed_length or self.options.length is not None

    # Left to right

    def _left_to_right(self, batch_size: int) -> list[Generated]:
        """A few at a time, each at a place of its own: one that waits begins where another has ended."""
        longest, count = self._longest(), len(self.requests)
        offsets, width = self._offsets(longest), 2 if self.guided else 1
        kept, least, most = self._kept(longest)
        lengths = [max(map(len, self._prefixes_of(number))) for number in range(count)]
        size = min(batch_size, count)
        found = decode(
            RowCache(self.model, size * width, max(lengths) + longest),
            Steps(
                begin=partial(self._begin, {}),
                choose=partial(self._choose, kept.to(offsets.device), least.tolist()),
                embed=lambda codes: self.head.embed(codes).repeat_interleave(width, 0),
                most=most.tolist(),
                width=width,
            ),
            sorted(range(count), key=lambda number: -lengths[number]),  # as much room as the first one needs
            offsets,
            num_codebooks=self.modality.num_codebooks,
            batch_size=size,
        )
        return [Generated(*found[number]) for number in range(count)]

    def _prefixes_of(self, number: int) -> list[Example]:
        """Of one request; with guidance the one without sources behind it."""
        request = self.requests[number]
        given = [request.sources, ()] if self.guided else [request.sources]
        return [prefix(request, self.modality, sources) for sources in given]

    def _begin(
        self, computed: dict[_Identity, tuple[KVCache, int]], numbers: Sequence[int]
    ) -> list[tuple[KVCache, int]]:
        """The prefixes of requests; those of the same sources, such as several samples', are computed once."""
        wanted = [prefix for n in numbers for prefix in self._prefixes_of(n)]
        keys = [_identity(it) for it in wanted]
        new = {key: it for key, it in zip(keys, wanted) if key not in computed}
        for key in computed.keys() - set(keys):
            del computed[key]
        if new:
            cache = prefill(self.model, list(new.values()), 0)
            computed.update((key, (cache, row)) for row, key in enumerate(new))
        return [computed[key] for key in keys]

    def _choose(
        self, kept: Tensor, least: Sequence[int], states: Tensor, rows: Sequence[Row], codes: Tensor
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """See `Steps.choose`. `kept` ``[B, T, K]`` and `least` ``[B]`` as `_kept` says."""
        end = self.modality.vocab_size
        if self.guided:  # from pairs of rows to those with sources, then those without
            states = states.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        logits = self._logits(states) + self._barred({row.number: row.place for row in rows}).to(states.device)
        chosen, logprob = self._next(logits, codes, rows, least)
        if self.keeps:
            own = kept[[row.number for row in rows], [row.place for row in rows]]
            given = own[:, :1] != end
            chosen, logprob = torch.where(given, own, chosen), logprob.masked_fill(given[:, 0], 0)
        return chosen.clamp_max(end - 1), logprob, (chosen == end).any(dim=-1).tolist()

    def _kept(self, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each target the codes that are kept ``[B, longest, K]``, V where none is; its least and most tokens."""
        known = [1 if request.known is None else len(request.known) for request in self.requests]
        most = torch.tensor([n if request.closed else longest for request, n in zip(self.requests, known)])
        return self._start(most, longest), torch.tensor(known), most

    def _barred(self, places: Mapping[int, int]) -> Tensor:
        """Minus infinity ``[R, 1, V + 1]`` where the `first` of R requests forbids a code at its place; else 0."""
        requests = [(self.requests[number], place) for number, place in places.items()]
        if all(request.first is None for request, _ in requests):
            return torch.zeros(())
        barred = torch.zeros(len(requests), 1, self.modality.vocab_size + 1)
        for row, (request, place) in enumerate(requests):
            if request.first is not None and request.keep is not None and place == int(request.keep.int().argmin()):
                barred[row, 0, :-1].masked_fill_(~request.first, -math.inf)
        return barred

    def _next(self, logits: Tensor, codes: Tensor, rows: Sequence[Row], least: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next codes ``[R, K]`` of R requests, and their log-probabilities ``[R]``."""
        ends = [row.place < least[row.number] or self._never_ends(row.place) for row in rows]
        never_ends = torch.tensor(ends, device=logits.device)
        if self.options.no_repeat:
            each = zip(logits.split(1), codes, rows, never_ends)
            logits = torch.cat(
                [permitted(own, it[None, : row.place], self.options.no_repeat, ends) for own, it, row, ends in each]
            )
        elif any(ends):
            logits = permitted(logits, codes, 0, never_ends)
        uniform = torch.zeros(())
        if self.temperature:
            drawing = [self.generators[row.number] for row in rows]
            uniform = torch.stack([torch.rand(logits.shape[1], generator=it) for it in drawing])
        chosen = draw(logits, self.temperature, self.options, uniform)
        return chosen, log_probability(logits, chosen).sum(dim=-1)

    def _alone(self) -> Generated:
        """The only request's answer, by drafts or by early exits."""
        longest = self._longest()
        given, least, length = (it[0] for it in self._kept(longest))

        def permit(logits: Tensor, codes: Tensor) -> Tensor:
            place = len(codes)
            never_ends = place < int(least) or self._never_ends(place)
            logits = logits + self._barred({0: place}).to(logits.device)
            return permitted(logits.view(1, *logits.shape[-2:]), codes[None], self.options.no_repeat, never_ends)[0]

        offsets = self._offsets(longest)
        depth = prefix_depth(len(self.model.blocks), self.options.effort)
        stream = Stream(self.model, self._prefixes(), causal=True, prefix_depth=depth)
        stream.grow(offsets)
        task = Task(
            embed=lambda codes: self._embed(codes[None]),
            logits=lambda states: self._logits(states)[0],
            permit=permit,
            given=given.to(offsets.device),
            length=int(length),
            end=self.modality.vocab_size,
            temperature=self.temperature,
            options=self.options,
            generator=self.generators[0],
        )
        if self.options.draft:
            found = speculate(
                stream, task, draft=self.options.draft, blocks=draft_blocks(self.options, len(self.model.blocks))
            )
            return Generated(found.codes.cpu(), found.logprob, drafted=found.drafted, accepted=found.accepted)
        spent = decode_by_effort(stream, task, self.options.effort)
        return Generated(spent.codes.cpu(), spent.logprob, spent.blocks)

    def _beams(self, batch_size: int) -> list[Generated]:
        """As many at once as their beams fit into a batch."""
        longest, weight, count = self._longest(), self.options.align_weight, len(self.requests)
        cache, offsets = self._prefill(longest), self._offsets(longest)
        spelt = [Prefixes(it, weight) for it in self._spelt()] if weight else []
        size, found = max(1, batch_size // self.options.num_beams), list[tuple[Tensor, float]]()
        for some in torch.arange(count, device=cache.first.device).split(size):
            found += search(
                self.model,
                self.head,
                cache.rows(some),
                offsets,
                end=self.modality.vocab_size,
                never_ends=self._never_ends,
                options=self.options,
                spelt=spelt[len(found) : len(found) + len(some)],
            )
        return [Generated(*it) for it in found]

    def _spelt(self) -> Iterator[Tensor]:
        return spelt(self.model, {self.modality.name: self.modality}, self.requests)

    # Masked refinement

    def _masked(self) -> list[Generated]:
        """Predict all, keep the most certain, hide the rest again, fewer each step (MaskGIT, arXiv 2202.04200)."""
        hidden_id, steps = self.modality.vocab_size, self.options.steps
        lengths, read = self._by_exits() if self.options.alone else self._by_cache()
        longest = int(lengths.max())
        codes = self._start(lengths, longest)
        valid = torch.arange(longest, device=codes.device) < lengths[:, None]
        hidden = valid & (codes == hidden_id).any(dim=-1)
        hidden_first = hidden.sum(dim=1)
        total = torch.zeros(codes.shape[:2], device=codes.device)
        for step in range(1, steps + 1):
            logits = read(codes, hidden)[..., :hidden_id]
            uniform = uniforms(self.generators, lengths.tolist(), longest, codes.shape[2])
            chosen = draw(logits, self.temperature, self.options, uniform)
            certainty = log_probability(logits, chosen)
            codes = torch.where(hidden[..., None], chosen, codes)
            total = torch.where(hidden, certainty.sum(dim=-1), total)
            remain = (hidden_first * SCHEDULES[self.options.schedule](step / steps)).floor().long()
            remain = remain.minimum(hidden.sum(dim=1) - 1)  # every step settles at least one token
            if step == steps or not (remain > 0).any():
                break
            hidden = self._least_certain(certainty.mean(dim=-1), hidden, lengths, remain, 1 - step / steps)
            codes = codes.masked_fill(hidden[..., None], hidden_id)
        layers = read.layers if isinstance(read, Refiner) else None
        return [
            Generated(row[:n].cpu(), float(p), layers) for row, n, p in zip(codes, lengths.tolist(), total.sum(dim=1))
        ]

    def _by_cache(self) -> tuple[Tensor, _Read]:
        """The lengths ``[B]`` of masked targets, and how they are read: all tokens, from all blocks."""
        cache = self._prefill(0)
        lengths = self._lengths(cache.marker[: len(self.requests)])
        longest = int(lengths.max())
        cache, offsets = cache.grown(longest), self._offsets(longest)
        valid = torch.arange(longest, device=lengths.device) < lengths[:, None]
        sees = self._both(valid)[:, None, :].expand(-1, longest, -1)

        def read(codes: Tensor, hidden: Tensor) -> Tensor:
            return self._logits(advance(self.model, cache, self._embed(codes), offsets, 0, sees))

        return lengths, read

    def _by_exits(self) -> tuple[Tensor, _Read]:
        """The same of the only request: its hidden tokens, each from as many blocks as it needs."""
        stream = Stream(self.model, self._prefixes(), causal=False)
        known = self.modality.fixed_length or self.options.length is not None or self.requests[0].known is not None
        needed = range(0 if known else len(self.model.blocks))  # lengths are learnt behind the last block alone
        lengths = self._lengths(stream.marker(needed)[:1, 0])
        stream.grow(self._offsets(int(lengths)))

        def logits(states: Tensor) -> Tensor:
            return self._logits(states)[..., : self.modality.vocab_size]

        return lengths, Refiner(stream, self._embed, logits, self.options.effort)

    def _lengths(self, markers: Tensor) -> Tensor:
        """The number of tokens of each target ``[B]``: known, fixed, asked for, or read from the marker's state."""
        if self.modality.fixed_length:
            wanted = [self.modality.max_length] * len(markers)
        elif self.options.length is not None:
            wanted = [self.options.length] * len(markers)
        else:
            wanted = (self.head.length(markers).float()[:, 1:].argmax(dim=-1) + 1).tolist()
        given = [n if request.known is None else len(request.known) for request, n in zip(self.requests, wanted)]
        return torch.tensor(given, device=markers.device)

    def _start(self, lengths: Tensor, longest: int) -> Tensor:
        """Codes ``[B, T, K]``, all hidden but for what requests keep."""
        shape = (len(lengths), longest, self.modality.num_codebooks)
        codes = torch.full(shape, self.modality.vocab_size, device=lengths.device)
        for row, request in enumerate(self.requests):
            if request.known is not None and request.keep is not None:
                place = request.keep.nonzero().flatten().to(lengths.device)
                codes[row, place] = request.known.to(lengths.device)[place]
        return codes

    def _least_certain(self, certainty: Tensor, hidden: Tensor, lengths: Tensor, remain: Tensor, heat: float) -> Tensor:
        """Which `remain` of the `hidden` tokens ``[B, T]`` to hide again: the least certain, with cooling noise."""
        uniform = uniforms(self.generators, lengths.tolist(), certainty.shape[1])[..., 0].to(certainty.device)
        gumbel = -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
        score = certainty + self.options.choice_temperature * heat * gumbel
        rank = score.masked_fill(~hidden, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
        return rank < remain[:, None]
