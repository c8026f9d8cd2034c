"""Parameter groups, the optimizer, the learning rate's schedule, and the average of the weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anyxform.checkpoint import model_tensors
from anyxform.field import did_you_mean
from anyxform.model import Transformer
from anyxform.parts import checked, part_of
from anyxform.sharding import is_parted, own, whole

Schedule = Literal["cosine", "wsd", "constant"]


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and embeddings of single vectors do not.

    `scales`: factors on the learning rate of parts of the model (see `set_rate`), 1 for those that it does not name.
    """
    scales = scales or {}
    trained = [(scales.get(part_of(n), 1.0), p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {
            "params": [p for its, p in trained if its == scale and (p.ndim >= 2) == decays],
            "weight_decay": weight_decay if decays else 0.0,
            "scale": scale,
        }
        for scale in sorted({1.0} | {its for its, _ in trained})
        for decays in (True, False)
    ]


def set_rate(optimizer: Any, rate: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def _scales(model: nn.Module, lr: float, part_lr: Mapping[str, float] | None) -> dict[str, float]:
    """The parts' learning rates as factors on that of all others."""
    checked(model, part_lr or {}, "optim.part_lr")
    for part, rate in (part_lr or {}).items():
        if not isinstance(rate, int | float) or not (lr > 0 and rate > 0):
            raise ValueError(f"optim.part_lr.{part}={rate} beside optim.lr={lr} is not possible: give rates above 0")
    return {part: rate / lr for part, rate in (part_lr or {}).items()}


def adamw(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    part_lr: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused. `part_lr`: learning rates of parts of the model that are not `lr`."""
    groups = parameter_groups(model, weight_decay, _scales(model, lr, part_lr))
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=1e-8, fused=True)


class Together:
    """Several optimizers used as one: their groups, steps and states one after another."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """As that of one optimizer: parameters are numbered through all parts."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for part in self.parts:
            saved = part.state_dict()
            state |= {number + first: it for number, it in saved["state"].items()}
            groups += [{**group, "params": [n + first for n in group["params"]]} for group in saved["param_groups"]]
            first += sum(len(group["params"]) for group in part.param_groups)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        first = 0
        for part in self.parts:
            count = sum(len(group["params"]) for group in part.param_groups)
            own = {number - first: it for number, it in saved["state"].items() if first <= number < first + count}
            part.load_state_dict({**part.state_dict(), "state": own})
            first += count


MOST_AT_ONCE = 2**22
"""Elements of the matrices that Muon takes together: more would be memory, and large ones need no company."""


class Muon(torch.optim.Muon):
    """torch's (with Nesterov's momentum, at the rate of AdamW), but small matrices of one shape are orthogonalised at
    once: of a small model's step on a GPU more than a quarter was the launching of its many products.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; those of matrices that are divided among processes are torch's own."""
        if any(is_parted(p) for group in self.param_groups for p in group["params"]):
            super().step(closure)
            return
        for group in self.param_groups:
            shapes = defaultdict[torch.Size, list[Tensor]](list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, found in shapes.items():
                size = max(1, MOST_AT_ONCE // shape.numel())
                for parameters in (found[start : start + size] for start in range(0, len(found), size)):
                    self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        """Change matrices of one shape."""
        change = orthogonal(torch.stack(self._updates(parameters, group)), group).to(parameters[0].dtype)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rate = 0.2 * max(parameters[0].shape) ** 0.5 * group["lr"]
        torch._foreach_add_(parameters, change.unbind(), alpha=-rate)

    def _updates(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """What the gradients and those before them add up to."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # those of all of them
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, averages, group["momentum"]))  # Nesterov's


def orthogonal(matrices: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Matrices ``[B, rows, columns]`` with about the same singular vectors, and values near 1, in bf16.

    By the Newton-Schulz iteration of Muon, with a group's `ns_coefficients`, `ns_steps` and `eps`.
    """
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon(
    model: Transformer,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    part_lr: Mapping[str, float] | None = None,
) -> Together:
    """Muon (arXiv 2502.16982) for the matrices of the blocks, AdamW for all else, with learning rates that match.

    `part_lr` as for `adamw`.
    """
    scales = _scales(model, lr, part_lr)
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2 and parameter.requires_grad]
    chosen = set(map(id, matrices))
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in chosen]}
        for group in parameter_groups(model, weight_decay, scales)
    ]
    of_blocks = [{"params": matrices, "scale": scales.get("stack", 1.0)}]  # a group, as there may be none
    return Together(
        Muon(of_blocks, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), eps=1e-8, fused=True),
    )


def optimizer_named(name: str) -> Callable[..., Any]:
    """What makes an optimizer. ValueError: there is none of that name."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optim.name={name!r} is unknown: {did_you_mean(str(name), list(OPTIMIZERS))}")
    return OPTIMIZERS[name]


def state_names(optimizer: Any) -> list[frozenset[str] | None]:
    """What an optimizer keeps of each parameter, in the order in which it numbers them; None: not known."""
    kept = {
        torch.optim.Muon: frozenset({"momentum_buffer"}),
        torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    }
    return [
        next((names for kind, names in kept.items() if isinstance(part, kind)), None)
        for part in getattr(optimizer, "parts", [optimizer])
        for group in part.param_groups
        for _ in group["params"]
    ]


OPTIMIZERS: dict[str, Callable[..., Any]] = {"adamw": adamw, "muon": muon}


def learning_rate(
    step: int, *, steps: int, warmup: int = 100, schedule: Schedule = "cosine", final: float = 0.1, decay: float = 0.2
) -> float:
    """The factor on the peak learning rate at `step` of `steps`.

    Linear warm-up, then: `cosine` down to `final`; `wsd` constant until the last share `decay` of the steps, then
    linear down to `final` (arXiv 2405.18392); `constant`.
    """
    if schedule not in ("cosine", "wsd", "constant"):
        raise ValueError(f"schedule={schedule!r} is unknown: use cosine, wsd or constant")
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = warmup if schedule == "cosine" else max(warmup, int(steps * (1 - decay)))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final + (1 - final) * falling


class EMA:
    """An exponential moving average of a model's weights, warmed up so that early steps do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        floating = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([own(self.weights[n]) for n in floating], [own(current[n]) for n in floating], weight)


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale gradients to a norm of at most `limit`; the norm before, which may be non-finite."""
    return whole(nn.utils.clip_grad_norm_(parameters, limit))
