"""`model.init_from=PATH`: what it decides, and what nobody may say otherwise."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyxform.checkpoint import read_config
from anyxform.field import Direction
from anyxform.init_from import Origin, open_origin
from anyxform.pipeline import located

KEY = "init_from"
DEPTH = "depth"
POSITIONS = "target_positions"
NEEDED = ("dim", DEPTH, "num_heads")
"""Sizes that have no other to follow from."""


def origin_of(model: Mapping[str, Any], start: Path | None = None) -> Origin | None:
    """Where a config's model begins, if it does so with weights that exist.

    A run that goes on from the checkpoint `start` has them, their sizes and their tokenizers: nothing else is read.
    """
    if model.get(KEY) is None:
        return None
    if start is not None:
        return open_origin(start, verify=False)  # it was, when it was chosen
    return open_origin(located(str(model[KEY])))


def began_with(origin: Origin | None, start: Path | None = None) -> list[dict[str, Any]]:
    """The runs whose weights a run began with; one that goes on from the checkpoint `start` finds them noted there."""
    if start is not None:
        return list(read_config(start).get("facts", {}).get("began_with", []))
    return [] if origin is None else origin.history


def directions_before(origin: Origin | None, start: Path | None, modalities: Container[str]) -> list[str]:
    """The directions between these modalities that the weights which a run began with had been trained on."""
    if start is not None:
        known = read_config(start).get("directions", [])
    else:
        known = [] if origin is None else origin.directions
    fields = {it: (*Direction.parse(it).sources, Direction.parse(it).target) for it in known}
    return [it for it, some in fields.items() if all(field.modality in modalities for field in some)]


def sized(model: Mapping[str, Any], origin: Origin | None, overrides: Sequence[str]) -> dict[str, Any]:
    """A config's model with the sizes of its origin, or deeper, or with targets along their sources.

    ValueError: an override says otherwise, or null.
    """
    if origin is None:
        for name in NEEDED:
            if model.get(name) is None:
                raise ValueError(f"model.{name}=null is not possible: give a number")
        return dict(model)
    words = {word.lstrip("+").partition("=")[0] for word in overrides}
    depth = model.get(DEPTH) if f"model.{DEPTH}" in words else None
    deeper = {DEPTH: depth} if depth is not None and depth > origin.sizes[DEPTH] else {}
    along = f"model.{POSITIONS}" in words or model.get(POSITIONS) not in (None, "after")
    free = deeper | ({POSITIONS: model[POSITIONS]} if along else {})
    for name, size in origin.sizes.items():
        said = "model" if "model" in words and name in model else f"model.{name}"
        if said in words and model.get(name) != size and name not in free:
            raise ValueError(
                f"{said}= says {name}={model.get(name)}, but {origin.folder} has {name}={size}: leave {said}= out"
            )
    return {**model, **origin.sizes, **free}


def arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """A config's model as the arguments of `Transformer`."""
    return {name: value for name, value in model.items() if name != KEY}
