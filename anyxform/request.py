"""What a model is asked, what it answers, and which requests no modality can serve."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyxform.field import Field
from anyxform.modality import Decoding, Modality
from anyxform.sampling import Sampling
from anyxform.sequence import Example, Source, Target, marker
from anyxform.speculative import draft_blocks


@dataclass(frozen=True)
class Request:
    """What is given and what is wanted. `known` codes ``[T, K]`` stay where `keep` ``[T]`` is true.

    Left to right, the target goes on behind `known`, as far as the model likes, unless the last of it is kept; masked,
    it has exactly T tokens. `first` ``[V]`` (bool): left to right, the codes that may come first where `keep` is false.
    `seed`: of what is drawn; None: `Sampling.seed` plus the request's place in the call.
    """

    sources: tuple[Source, ...]
    target: Field
    known: Tensor | None = None
    keep: Tensor | None = None
    first: Tensor | None = None
    seed: int | None = None

    @property
    def closed(self) -> bool:
        """Whether the last of its known tokens is kept: left to right, the target ends there."""
        return self.keep is not None and bool(self.keep[-1:].any())


def seeded(requests: Sequence[Request], seed: int) -> list[Request]:
    """The requests, each with the seed that it has by its place if it has none of its own."""
    return [replace(it, seed=seed + n) if it.seed is None else it for n, it in enumerate(requests)]


@dataclass(frozen=True)
class Generated:
    """Codes ``[T, K]``, and the sum of their log-probabilities when they were chosen.

    `layers`: blocks ``[T]`` behind which each token was read, of a masked one the mean over its steps; None: all.
    `drafted` and `accepted`: tokens that the first blocks guessed, and how many of them stayed.
    """

    codes: Tensor
    logprob: float
    layers: Tensor | None = None
    drafted: int = 0
    accepted: int = 0

    def at(self, places: Sequence[int]) -> "Generated":
        """The tokens of these places alone; the rest is that of the whole."""
        return replace(self, codes=self.codes[places], layers=None if self.layers is None else self.layers[places])


def check(
    requests: Sequence[Request], modality: Modality, options: Sampling, decoding: Decoding, *, depth: int
) -> None:
    """ValueError: an option that this target modality, decoded so by a model of `depth` blocks, cannot serve."""
    name = modality.name
    if options.length is not None:
        _check_length(modality, options.length, f"length={options.length}")
    if options.searches and (decoding == "masked" or modality.num_codebooks > 1):
        raise ValueError(f"{options.searches} is not possible: {name} is not decoded one code at a time")
    if options.searches and any(request.known is not None for request in requests):
        raise ValueError(f"{options.searches} is not possible where a part of {name} is kept")
    if options.align_weight and not all(request.sources for request in requests):
        raise ValueError(f"align_weight={options.align_weight:g} is not possible without a source, which spells {name}")
    if options.draft and decoding == "masked":
        raise ValueError(f"draft={options.draft} is not possible: {name} is not decoded from left to right")
    if options.draft and (drafting := draft_blocks(options, depth)) >= depth:
        raise ValueError(
            f"draft_layers={drafting} is not possible: the model has {depth} layers, and fewer have to draft"
        )
    for request in requests:
        if request.known is not None or request.keep is not None:
            _check_known(request, modality, options, decoding)


def _check_length(modality: Modality, length: int, what: str) -> None:
    name, longest = modality.name, modality.max_length
    if not (length == longest if modality.fixed_length else 1 <= length <= longest):
        bound = "always" if modality.fixed_length else "1 to"
        raise ValueError(f"{what} is not possible: {name} has {bound} {longest} tokens")


def _check_known(request: Request, modality: Modality, options: Sampling, decoding: Decoding) -> None:
    name, codebooks, wanted = modality.name, modality.num_codebooks, options.length
    known, keep = request.known, request.keep
    if known is None or keep is None or known.shape != (len(keep), codebooks) or keep.ndim != 1:
        shapes = [None if it is None else tuple(it.shape) for it in (known, keep)]
        raise ValueError(f"known and keep of {name} are [T, {codebooks}] and [T], not {shapes[0]} and {shapes[1]}")
    _check_length(modality, len(known), f"known of {len(known)} tokens")
    goes_on = decoding == "autoregressive" and not keep[-1] and (wanted or 0) > len(known)
    if wanted not in (None, len(known)) and not goes_on:
        raise ValueError(f"length={wanted} is not possible: known has {len(known)} tokens")
    if bool(((known < 0) | (known >= modality.vocab_size))[keep].any()):
        raise ValueError(f"known of {name} has codes outside of [0, {modality.vocab_size})")


def prefix(request: Request, modality: Modality, sources: tuple[Source, ...]) -> Example:
    """An example of these sources whose target is still empty."""
    empty = torch.zeros(0, modality.num_codebooks, dtype=torch.long)
    target = Target(modality.name, empty, modality.code_positions(0), modality.vocab_size, modality.fixed_length)
    asked = (*request.target.attributes, marker(modality.name))
    return Example("request", f">{request.target}", sources, asked, target)
