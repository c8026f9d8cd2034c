"""Editing: a part of a value is made anew, the rest stays exactly what it was; round after round, and back.

session = Session(ax, "fish.png")
session.edit(keep="0,0,64,32", source="a blue fish", seed=3)
session.undo()
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from numbers import Real
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyxform.candidates import Answered, Candidate, Rank, draw, rank
from anyxform.field import Direction, Field
from anyxform.infill import DRAWS, infill
from anyxform.modality import Modality
from anyxform.sampling import Sampling, sampling_of

if TYPE_CHECKING:
    from anyxform.pipeline import Pipeline


@dataclass(frozen=True)
class Round:
    """One round of editing.

    Args:
        redo: parts to be made anew, as the modality names them: ``0,0,64,32``, ``0:1.5``, ``6:10``, a word.
        keep: parts to be kept; all else is made anew, or all else of `redo`.
        extend: how much larger the value gets, in place of both: ``0,0,32,0``, ``1.5``, ``end``.
        source: what the new part is to be made of, such as a text, as `anyxform.pipeline.Pipeline` takes it.
        to: the field, ``image:noto``, where the value's modality alone does not say enough.
        n: candidates, of which the best by `rank` is taken.
        options: those of generation; `seed` among them.
    """

    redo: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    extend: str = ""
    source: tuple[Any, ...] = ()
    to: str = ""
    n: int = 1
    rank: Rank = "back"
    options: Sampling = field(default_factory=Sampling)

    @classmethod
    def of(cls, **given: Any) -> "Round":
        """From plain names and values: lists for several, options of generation among the rest; ValueError: unknown."""
        own = {name: given[name] for name in cls.__dataclass_fields__ if name in given and name != "options"}
        for name in {"redo", "keep"} & own.keys():
            own[name] = _parts(own[name])
        if "source" in own:
            given_ones = own["source"] if isinstance(own["source"], list) else [own["source"]]
            own["source"] = tuple(tuple(it) if isinstance(it, list) else it for it in given_ones)  # JSON has no tuples
        if not isinstance(own.get("extend", ""), str):
            numbers = own["extend"] if isinstance(own["extend"], tuple | list) else (own["extend"],)
            own["extend"] = ",".join(map(_number, numbers))
        return cls(**own, options=sampling_of({name: value for name, value in given.items() if name not in own}))


def _parts(given: Any) -> tuple[str, ...]:
    """Parts as modalities name them; numbers together are one, ``(0, 0, 64, 32)`` a rectangle, ``(0, 1.5)`` a range."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, tuple | list):
        raise ValueError(f"{given!r:.80} names no part: give numbers, a text, or the path of a mask")
    if any(isinstance(it, str | tuple | list) for it in given):
        return tuple(part for it in given for part in _parts(it))
    return ((":" if len(given) == 2 else ",").join(map(_number, given)),) if given else ()


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{value!r:.80} is no number of a part")
    number = float(value)
    return str(int(number) if number.is_integer() else number)


def edit(pipeline: "Pipeline", name: str, value: Any, round: Round) -> list[Candidate]:
    """Candidates for a value of the modality `name` after a round, the best first.

    ValueError: a part that the value has not, nothing to be made anew, a modality without parts.
    """
    modality = pipeline.modalities[name]
    target = pipeline.field(round.to or name)
    if target.modality != name:
        raise ValueError(f"what is edited is {name}, and stays it: to={round.to} is not possible")
    options = round.options
    if round.n < 1:
        raise ValueError(f"n={round.n} is not possible: give 1 candidate or more")
    if options.refine or options.length is not None:
        raise ValueError(f"refine and length are of whole answers: leave them out to make a part of {name} anew")
    value, mask = _marked(modality, value, round)
    read = [pipeline.read(it) for it in round.source]
    direction, sources = Direction(tuple(Field(it) for it, _ in read), target), [it for _, it in read]
    with torch.no_grad():
        codes, keep = modality.divided(value, mask)
    known, first = codes.reshape(len(codes), -1), modality.first_codes(value, mask)
    request = replace(pipeline.request(direction, sources), known=known, keep=keep, first=first)
    options = pipeline.learnt(options, [request])
    if not modality.elastic or (options.decoding or modality.decoding) == "masked":
        options = replace(options, length=len(keep))
        (found,) = draw(pipeline.model, pipeline.modalities, [request], round.n, options)
    else:
        found = infill(pipeline.model, pipeline.modalities, request, options, draws=max(DRAWS, round.n))
    found, values = _pasted(modality, value, found, mask, round.n)
    answered = Answered(direction, sources, found, values)
    return rank(pipeline.model, pipeline.modalities, [answered], round.rank)[0]


def _pasted(
    modality: Modality, value: Any, found: Iterable[Tensor], mask: Tensor, n: int
) -> tuple[list[Tensor], list[Any]]:
    """The first `n` of what was found that can be pasted, as codes and as values; ValueError: none can."""
    fitting, values, reason = list[Tensor](), list[Any](), ""
    for codes in found:
        try:
            values.append(modality.paste(value, modality.from_codes(codes), mask))
            fitting.append(codes)
        except ValueError as error:
            reason = str(error)
        if len(values) == n:
            break
    if not values:
        raise ValueError(f"nothing that was drawn fits ({reason}): try another seed, or a higher temperature")
    return fitting, values


def _marked(modality: Modality, value: Any, round: Round) -> tuple[Any, Tensor]:
    """The value, larger if that is asked for, and the mask of what is to be made anew."""
    if round.extend and (round.redo or round.keep):
        raise ValueError("extend keeps all that there is: give redo or keep in a round of its own")
    if round.extend:
        return modality.extended(round.extend, value)
    if not (round.redo or round.keep):
        raise ValueError("there is nothing to edit: say what to make anew (redo), what to keep, or how to extend")
    kept = _together(modality, round.keep, value)
    mask = _together(modality, round.redo, value) if round.redo else torch.ones_like(kept)
    mask = mask & ~kept if round.keep else mask
    if not mask.any():
        raise ValueError("all of it is kept: there is nothing left to make anew")
    return value, mask


def _together(modality: Modality, specs: Iterable[str], value: Any) -> Tensor:
    """The mask of several parts."""
    masks = [modality.region(spec, value) for spec in specs]
    return reduce(or_, masks) if masks else torch.zeros(1, dtype=torch.bool)


class Session:
    """Rounds of editing one value.

    `rounds` is plain data where sources are texts and paths: it can be saved as JSON, and a session that is begun
    with it does the same again.
    """

    def __init__(self, pipeline: "Pipeline", value: Any, rounds: Iterable[Mapping[str, Any]] = ()) -> None:
        """`value`: as `Pipeline` takes sources. `rounds`: what is done to it at once."""
        self.pipeline = pipeline
        self.name, original = pipeline.read(value)
        self.values = [original]
        self.rounds: list[dict[str, Any]] = []
        for given in rounds:
            self.edit(**given)

    @property
    def value(self) -> Any:
        """What it is now."""
        return self.values[-1]

    def edit(self, **given: Any) -> Any:
        """Do a round, whose arguments are those of `Pipeline.edit`; returns the value behind it."""
        self.values.append(edit(self.pipeline, self.name, self.value, Round.of(**given))[0].value)
        self.rounds.append(given)
        return self.value

    def undo(self) -> Any:
        """Take the last round back; returns the value before it. ValueError: there is none."""
        if not self.rounds:
            raise ValueError("there is nothing to undo: no round has been done")
        self.rounds.pop()
        self.values.pop()
        return self.value
