"""How codes are chosen: the options of a generation, and drawing from logits with a generator of each request's own.

Letters: B requests, T tokens, K codebooks, V codes; logits have V + 1 outputs, the last of which is the end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from anyxform.field import did_you_mean
from anyxform.modality import Decoding
from anyxform.order import rng

TEMPERATURE: dict[Decoding, float] = {"autoregressive": 0.0, "masked": 0.5}
GUIDANCE: dict[Decoding, float] = {"autoregressive": 1.0, "masked": 1.5}
"""What None stands for in `Sampling`."""
Schedule = Literal["cosine", "linear", "square"]
SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: math.cos(0.5 * math.pi * done),
    "linear": lambda done: 1 - done,
    "square": lambda done: 1 - done**2,
}
"""What share of a masked target is still hidden when a share of the steps is done (arXiv 2202.04200, section 3.3)."""
DRAWN = 0.7
"""The temperature of candidates."""


class Options(TypedDict, total=False):
    """The fields of `Sampling`, as keywords."""

    temperature: float | None
    top_k: int
    top_p: float
    no_repeat: int
    num_beams: int
    length_penalty: float
    align_weight: float
    steps: int
    schedule: Schedule
    choice_temperature: float
    guidance: float | None
    seed: int
    refine: int
    draft: int
    draft_layers: int | None
    effort: float
    decoding: Decoding | None
    length: int | None


@dataclass(frozen=True)
class Sampling:
    """The options of a generation; a ValueError names one that makes no sense.

    Args:
        temperature: divides the logits; 0 takes the likeliest. None: `TEMPERATURE` of the way of decoding.
        top_k: draw among the k likeliest codes only; 0: among all.
        top_p: draw among the likeliest codes that together have this probability (arXiv 1904.09751).
        no_repeat: left to right, no run of so many codes comes twice; 0: anything may.
        num_beams: left to right, search for the likeliest sequence with so many beams.
        length_penalty: of beams, whose log-probability is divided by their length to this power.
        align_weight: left to right, of beams, how much of their score is what the source's own tokens spell, for models
            that were trained with `train.align_weight` (joint decoding, Watanabe et al. 2017); 1: that alone, at once.
        steps: of masked refinement.
        schedule: masked, how many tokens are settled in which step, see `SCHEDULES`: ``linear`` as many in each,
            ``cosine`` and ``square`` few at first and more towards the end.
        choice_temperature: masked, noise in which codes are kept, falling to 0 with the steps (arXiv 2202.04200).
        guidance: how far to go from the logits without sources to those with them; 1: no further (arXiv 2207.12598).
            None: `GUIDANCE` of the way of decoding.
        seed: of a call's first request; each further one has the next.
        refine: left to right, so often the least certain tokens of the answer are redone, seen from both sides: see
            `anyxform.refine`.
        draft: left to right, so many tokens are drafted ahead by the first blocks and verified by all: the same answer,
            see `anyxform.speculative`; 0: none.
        draft_layers: blocks that draft. None: a third of the model's.
        effort: the confidence at which a token leaves the stack half way, see `anyxform.effort`; 1: none does, 0: all.
            Left to right, below 0.9 the sources leave there too.
        decoding: ``autoregressive`` or ``masked``. None: the target modality's own.
        length: tokens of the target. None: as the model decides.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    no_repeat: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    align_weight: float = 0.0
    steps: int = 12
    schedule: Schedule = "cosine"
    choice_temperature: float = 0.5
    guidance: float | None = None
    seed: int = 0
    refine: int = 0
    draft: int = 0
    draft_layers: int | None = None
    effort: float = 1.0
    decoding: Decoding | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (self.temperature is None or 0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all codes) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "no_repeat": (self.no_repeat >= 0, "0 (off) or more"),
            "num_beams": (self.num_beams >= 1, "1 or more"),
            "length_penalty": (0 <= self.length_penalty < math.inf, "0 or more"),
            "align_weight": (0 <= self.align_weight <= 1, "a number from 0 to 1 (the source's spelling alone)"),
            "steps": (self.steps >= 1, "1 or more"),
            "schedule": (self.schedule in (*SCHEDULES,), "cosine, linear or square"),
            "choice_temperature": (0 <= self.choice_temperature < math.inf, "0 or more"),
            "guidance": (self.guidance is None or 0 <= self.guidance < math.inf, "0 or more (1 is none)"),
            "seed": (0 <= self.seed < 2**62, "0 or more, below 2**62"),
            "refine": (self.refine >= 0, "0 (off) or more"),
            "draft": (self.draft >= 0, "0 (off) or more"),
            "draft_layers": (self.draft_layers is None or self.draft_layers >= 1, "1 or more"),
            "effort": (0 <= self.effort <= 1, "a number from 0 to 1 (all layers, always)"),
            "decoding": (self.decoding in (None, "autoregressive", "masked"), "autoregressive or masked"),
            "length": (self.length is None or self.length >= 1, "1 or more"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible: give {rule}")
        if self.searches and (self.temperature or self.guidance not in (None, 1) or self.decoding == "masked"):
            raise ValueError(
                f"{self.searches} searches left to right for the likeliest: "
                "it goes with no temperature, guidance or masked decoding"
            )
        if self.draft and self.decoding == "masked":
            raise ValueError(f"draft={self.draft} is not possible: masked decoding goes not from left to right")
        if self.searches and self.alone:
            raise ValueError(f"{self.searches} goes with no {self.alone}: every beam takes all layers")
        if self.align_weight and self.length is not None:
            raise ValueError(
                f"align_weight={self.align_weight:g} goes with no length={self.length}: the source says how long it is"
            )
        if self.draft and self.effort < 1:
            raise ValueError(
                f"draft={self.draft} goes with no effort={self.effort}: what is drafted is verified by all layers"
            )

    @property
    def searches(self) -> str:
        """The option that asks for a search with beams, as it was given; empty: none does."""
        if self.num_beams > 1:
            return f"num_beams={self.num_beams}"
        return f"align_weight={self.align_weight:g}" if self.align_weight else ""

    @property
    def alone(self) -> str:
        """The option, as it was given, by which tokens go their own way through the blocks, so that each request is
        decoded by itself; empty: none does.
        """
        if self.draft:
            return f"draft={self.draft}"
        return f"effort={self.effort}" if self.effort < 1 else ""

    @property
    def uncompiled(self) -> str:
        """The option for which there is no compiled step (`anyxform.compiled`), as it was given; empty: none is."""
        return self.searches or self.alone

    def temperature_for(self, decoding: Decoding) -> float:
        return TEMPERATURE[decoding] if self.temperature is None else self.temperature

    def drawn(self, decoding: Decoding) -> "Sampling":
        """These options with chance in them, for answers beside the first; `DRAWN` where there is none by default."""
        if self.temperature is not None or TEMPERATURE[decoding]:
            return self
        return self.without_search(DRAWN)

    def without_search(self, temperature: float) -> "Sampling":
        """These options, left to right at this temperature."""
        return replace(self, num_beams=1, align_weight=0.0, temperature=temperature)

    def guidance_for(self, decoding: Decoding) -> float:
        return GUIDANCE[decoding] if self.guidance is None else self.guidance


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Options by name; a ValueError names one that does not exist."""
    known, plain = list(Sampling.__dataclass_fields__), dict(options)
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"no option is called {name!r}: {did_you_mean(name, known)}")
        if (value is None and Sampling.__dataclass_fields__[name].default is None) or name in ("decoding", "schedule"):
            continue
        kind = _kind(name)
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "a whole number" if kind is Integral else "a number"
            raise ValueError(f"{name}={value!r} is not possible: give {wanted}")
        plain[name] = int(value) if isinstance(value, Integral) else float(value)  # numpy's numbers too
    return Sampling(**plain)


def _kind(name: str) -> Any:
    """Of what type the numbers of an option are."""
    whole = name in ("draft_layers", "length") or type(Sampling.__dataclass_fields__[name].default) is int
    return Integral if whole else Real


def uniforms(generators: Sequence[torch.Generator], lengths: Sequence[int], size: int, columns: int = 1) -> Tensor:
    """Numbers in [0, 1) ``[B, size, columns]``: for each request those of its own length, then zeros.

    A request draws as many as it needs alone, so that what it draws does not depend on its batch-mates.
    """
    drawn = torch.zeros(len(generators), size, columns)
    for row, (generator, length) in enumerate(zip(generators, lengths)):
        drawn[row, :length] = torch.rand(length, columns, generator=generator)
    return drawn


def draw(logits: Tensor, temperature: float, options: Sampling, uniform: Tensor) -> Tensor:
    """Codes ``[…]`` from logits ``[…, V + 1]``, each by one uniform number ``[…]``; temperature 0: the likeliest."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulated = truncate(logits / temperature, options.top_k, options.top_p).softmax(dim=-1).cumsum(dim=-1)
    # below the total, as a number is below 1: the first code to exceed it has a probability above 0
    threshold = uniform.to(logits.device).unsqueeze(-1) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits ``[…, V]`` with minus infinity where `top_k` or `top_p` forbid; the likeliest always stays."""
    if 0 < top_k < logits.shape[-1]:
        likeliest = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, likeliest.indices, likeliest.values)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
    return logits


def permitted(logits: Tensor, codes: Tensor, no_repeat: int, never_ends: bool | Tensor) -> Tensor:
    """Logits ``[B, K, V + 1]`` of the token behind codes ``[B, T, K]``, with minus infinity for what may not follow.

    `never_ends`, of all or of each of B: the end may not follow.
    """
    if not no_repeat:
        ends = torch.as_tensor(never_ends, device=logits.device).reshape(-1, 1)
        logits = logits.clone()
        logits[..., -1].masked_fill_(ends, -math.inf)
        return logits
    forbidden = repeats(codes.transpose(1, 2), no_repeat, logits.shape[-1] - 1)
    end = torch.as_tensor(never_ends, device=logits.device).reshape(-1, 1, 1).expand(*forbidden.shape[:-1], 1)
    return logits.masked_fill(torch.cat([forbidden, end], dim=-1), -math.inf)


FAR = 48
"""Bits between the seeds of two draws for one request; pieces of a long input are 32 apart."""


def chance(seed: int) -> torch.Generator:
    """A generator that depends on all of a seed: torch's on the CPU heeds the last 32 bits alone."""
    return torch.Generator().manual_seed(seed if seed < 2**32 else int(rng(seed).integers(2**32)))


def log_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen codes ``[…]`` under logits ``[…, V + 1]``."""
    return logits.log_softmax(dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def repeats(codes: Tensor, size: int, vocab_size: int) -> Tensor:
    """Which codes ``[…, vocab_size]`` (bool) would end a run of `size` codes that ``[…, T]`` holds already.

    Where that is all of them, none is: something has to be chosen.
    """
    forbidden = torch.zeros(*codes.shape[:-1], vocab_size, dtype=torch.bool, device=codes.device)
    if size == 0 or codes.shape[-1] < size:
        return forbidden
    runs = codes.unfold(-1, size, 1)  # [..., T - size + 1, size]
    current = codes[..., codes.shape[-1] - size + 1 :].unsqueeze(-2)
    again = (runs[..., :-1] == current).all(dim=-1)
    forbidden = forbidden.long().scatter_reduce(-1, runs[..., -1], again.long(), "amax").bool()
    return forbidden & ~forbidden.all(dim=-1, keepdim=True)
