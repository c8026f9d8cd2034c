"""How the loss falls with the size of the model and the number of tokens: a power law, fitted to runs.

The form and the way of fitting are those of Chinchilla (arXiv 2203.15556, approach 3): loss = E + A/N^α + B/D^β, by the
Huber loss of the logarithm's error, from a grid of starts. Letters: N parameters, D tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

DELTA = 1e-3
"""Errors of the logarithm beyond this count linearly: a single odd point must not turn the law."""
MOST_STEPS = 500
TRAINING = 6.0
"""Floating-point operations for each parameter and token: forward 2, backward 4."""


@dataclass(frozen=True)
class Point:
    """A held-out loss, measured once."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """loss = `floor` + `a` / N^`alpha` + `b` / D^`beta`. `error`: of the points, relative, root mean square."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    error: float

    def loss(self, parameters: float, tokens: float) -> float:
        return float(self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best_size(self, operations: float) -> tuple[float, float]:
        """The parameters and tokens that give the lowest loss for so many floating-point operations of training."""
        both = operations / TRAINING  # parameters × tokens
        parameters = self._ratio * both ** (self.beta / (self.alpha + self.beta))
        return parameters, both / parameters

    def best_tokens(self, parameters: float) -> float:
        """The tokens after which a model of this size is the best for the operations it has taken."""
        both = (parameters / self._ratio) ** ((self.alpha + self.beta) / self.beta)
        return both / parameters

    @property
    def _ratio(self) -> float:
        return (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))


def fit_law(points: Sequence[Point]) -> Law:
    """The law that fits best. ValueError: fewer than three sizes, or fewer than three points of one."""
    sizes = {point.parameters for point in points}
    fewest = min((sum(p.parameters == size for p in points) for size in sizes), default=0)
    if len(sizes) < 3 or fewest < 3:
        raise ValueError(
            f"{len(sizes)} sizes of model with at least {fewest} losses each are too few for a law of size and data: "
            "give runs of three sizes, validated three times or more each"
        )
    parameters, tokens, losses = (
        torch.tensor([getattr(point, name) for point in points], dtype=torch.float64).log()
        for name in ("parameters", "tokens", "loss")
    )
    # in units of their means, so that a start says something whatever the sizes are
    centre = parameters.mean(), tokens.mean()
    lowest = float(losses.min())
    starts = product((0.1, 0.4, 0.8), (0.1, 0.4, 0.8), (0.3, 0.7, 0.95))
    fits = [_descend(parameters - centre[0], tokens - centre[1], losses, lowest, *start) for start in starts]
    error, (alpha, beta, floor, a, b) = min(fits, key=lambda fit: fit[0])
    return Law(
        floor=math.exp(floor),
        a=math.exp(a + alpha * float(centre[0])),
        alpha=alpha,
        b=math.exp(b + beta * float(centre[1])),
        beta=beta,
        error=error,
    )


def _descend(
    parameters: Tensor, tokens: Tensor, losses: Tensor, lowest: float, alpha: float, beta: float, share: float
) -> tuple[float, list[float]]:
    """The error and the values α, β, log E, log A, log B at which a descent from one start ends."""
    rest = lowest + math.log(max(1e-3, (1 - share) / 2))
    values = torch.tensor(
        [math.log(alpha), math.log(beta), lowest + math.log(share), rest, rest], dtype=torch.float64, requires_grad=True
    )
    optimizer = torch.optim.LBFGS([values], max_iter=MOST_STEPS, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def errors() -> Tensor:
        falls = values[:2].exp()  # both exponents above 0
        terms = torch.stack(
            [values[2].expand_as(losses), values[3] - falls[0] * parameters, values[4] - falls[1] * tokens]
        )
        return terms.logsumexp(0) - losses

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.huber_loss(errors(), torch.zeros_like(losses), reduction="sum", delta=DELTA)
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        error = float(errors().square().mean().sqrt())
    exponents = values.detach()[:2].exp().tolist()
    return (error if math.isfinite(error) else math.inf), [*exponents, *values.detach()[2:].tolist()]
