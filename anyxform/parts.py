"""The parts of a model that can be trained differently: the stack, the conditions, and what serves each modality."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from anyxform.field import did_you_mean

_T = TypeVar("_T")


def part_of(name: str) -> str:
    """The part to which a parameter belongs, by its name: ``stack``, ``conditions``, or the modality that it serves."""
    module, _, rest = name.partition(".")
    if module in ("blocks", "norm"):
        return "stack"
    return "conditions" if module == "condition_embedding" else rest.partition(".")[0]


def parts_of(model: nn.Module) -> list[str]:
    """The parts that a model has."""
    return list(dict.fromkeys(part_of(name) for name, _ in model.named_parameters()))


def checked(model: nn.Module, parts: Sequence[str] | Mapping[str, _T], key: str) -> None:
    """ValueError, which names the config's `key`, if the model lacks one of these parts."""
    known = parts_of(model)
    for part in parts:
        if part not in known:
            raise ValueError(f"{key} names the part {part!r}, which the model lacks: {did_you_mean(str(part), known)}")


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Have these parts keep their weights as they are. ValueError: there is no such part, or nothing left to train."""
    checked(model, parts, "train.freeze")
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"train.freeze=[{','.join(parts)}] leaves nothing to train: freeze less")
