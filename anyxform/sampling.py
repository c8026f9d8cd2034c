"""How tokens are chosen: the options of a generation, and drawing from logits with one generator a request."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from anyxform.modality import Decoding


@dataclass(frozen=True)
class Sampling:
    """Options of a generation. ValueError if one makes no sense.

    `temperature`: 0 takes the likeliest; None: 0 left to right, 1 masked. `top_k`, `top_p`: draw only among the k
    likeliest, or the likeliest that together have probability p; 0 and 1 for all. `num_beams`: beam search, left to right
    only, with `length_penalty` as the exponent of the length that scores are divided by. `steps`, `choice_temperature`:
    of masked refinement, the second for the noise in choosing which tokens stay. `guidance`: how far to go from the
    logits without sources to those with them; 1: no further (arXiv 2207.12598). `seed`: of the first request; the next
    ones count on. `decoding`: the other way than the modality's own. `length`: of a target in tokens, if its length is free.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    steps: int = 12
    choice_temperature: float = 2.0
    guidance: float = 1.0
    seed: int = 0
    decoding: Decoding | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            "temperature": self.temperature is not None and self.temperature < 0,
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "num_beams": self.num_beams < 1,
            "steps": self.steps < 1,
            "choice_temperature": self.choice_temperature < 0,
            "guidance": self.guidance < 0,
            "decoding": self.decoding not in (None, "autoregressive", "masked"),
            "length": self.length is not None and self.length < 1,
        }
        for field in fields(self):
            if wrong.get(field.name):
                raise ValueError(f"{field.name}={getattr(self, field.name)!r} makes no sense: see anyxform run --help")


def generators(sampling: Sampling, numbers: Sequence[int]) -> list[torch.Generator]:
    """One generator a request, by its number, so that what is drawn does not depend on the rest of a batch."""
    return [torch.Generator().manual_seed(sampling.seed + number) for number in numbers]


def choose(logits: Tensor, sampling: Sampling, temperature: float, sources: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Ids ``[B, …]`` drawn from logits ``[B, …, V]``, and their log-probabilities under the untempered distribution."""
    log_p = logits.log_softmax(dim=-1)
    if temperature == 0:
        ids = logits.argmax(dim=-1)
    else:
        allowed = _truncated(logits / temperature, sampling)
        noise = torch.stack([torch.rand(logits.shape[1:], generator=source) for source in sources]).to(logits.device)
        ids = (allowed - (-noise.clamp_min(1e-20).log()).log()).argmax(dim=-1)  # Gumbel's maximum is a draw
    return ids, log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """Minus infinity where `top_k` or `top_p` forbid. The likeliest always stays."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        forbidden = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(forbidden, float("-inf"))
    return logits
