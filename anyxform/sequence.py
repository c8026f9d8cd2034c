"""Examples packed into one flat row of tokens, and the one definition of who may look at whom.

A segment of the row is one example in one direction:

    [source tokens … ][attributes of the target … ][to: modality] | [target tokens … ]
     └────────── prefix: sees itself, both ways ────────────────┘   └ sees the prefix and, causally or fully, itself

Nothing is seen across segments. Letters: N tokens of the row, T tokens of a value, K codebooks, A position axes.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

AXES = 3
"""Every token has a position on three axes; a modality with fewer repeats its last one (see `to_axes`)."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """One source of an example: a preprocessed tensor ``[n, ...]`` and its tokens' positions ``[T, A]``."""

    modality: str
    values: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Target:
    """What an example asks for. `hidden` are the positions to be predicted of a masked target; None: left to right."""

    modality: str
    codes: Tensor  # [T, K]
    positions: Tensor  # [T, A]
    special_id: int  # one past the last code: the end when read left to right, the mask when masked
    fixed_length: bool
    hidden: Tensor | None = None  # [T] bool


@dataclass(frozen=True)
class Example:
    """One sample in one direction, ready to be packed. `conditions`: the target's attributes, then its marker.

    `aligned`: the target's codes, one a token, come in the order of what they stand for in the first source, as the
    words of a transcript do.
    """

    key: str
    direction: str
    sources: tuple[Source, ...]
    conditions: tuple[str, ...]
    target: Target
    aligned: bool = False

    @property
    def prefix_length(self) -> int:
        return sum(len(source.positions) for source in self.sources) + len(self.conditions)

    def __len__(self) -> int:
        return self.prefix_length + len(self.target.codes)


def marker(modality: str) -> str:
    """The condition that says which modality is wanted. It is the last token of a prefix."""
    return f"to:{modality}"


@dataclass(frozen=True)
class Segments:
    """The packed row's segments: where each starts, how long its prefix and its target are, how the target looks."""

    starts: list[int]
    prefixes: list[int]
    targets: list[int]
    causal: list[bool]

    @property
    def lengths(self) -> list[int]:
        return [prefix + target for prefix, target in zip(self.prefixes, self.targets)]


def may_attend(segments: Segments, size: int) -> Tensor:
    """The definition ``[size, size]`` (bool; row looks at column) that every attention backend must equal.

    Padding behind the last segment looks at itself alone, so that no row of a softmax is empty.
    """
    mask = torch.eye(size, dtype=torch.bool)
    for start, prefix, target, causal in zip(segments.starts, segments.prefixes, segments.targets, segments.causal):
        middle, end = start + prefix, start + prefix + target
        mask[start:end, start:middle] = True
        own = torch.ones(target, target, dtype=torch.bool)
        mask[middle:end, middle:end] = own.tril() if causal else own
    return mask


@dataclass(frozen=True)
class PackedSources:
    """All sources of one modality: tensors joined on their first axis, and where their N tokens stand in the row."""

    values: Tensor
    lengths: list[int]
    index: Tensor


@dataclass(frozen=True)
class PackedTargets:
    """All targets of one modality. Inputs ``[n, K]`` stand at `index`; logits at `label_index` predict `labels`."""

    inputs: Tensor
    index: Tensor
    labels: Tensor  # [m, K]
    label_index: Tensor  # [m]
    label_directions: Tensor  # [m], into Batch.directions
    length_index: Tensor  # [s], the markers of masked targets whose length must be predicted
    length_labels: Tensor  # [s]


@dataclass(frozen=True)
class PackedAlignments:
    """All aligned examples of one target modality: where the tokens of their sources stand, and all of their codes."""

    index: Tensor
    lengths: list[int]
    labels: Tensor  # [l]
    label_lengths: list[int]


@dataclass(frozen=True)
class Batch:
    """One packed row of `size` tokens, of which `num_tokens` are not padding."""

    size: int
    num_tokens: int
    segments: Segments
    positions: Tensor  # [size, 3]
    leads: Tensor  # [size, 1], where its target begins, of a target's token; 0 of others
    sources: dict[str, PackedSources]
    condition_ids: Tensor
    condition_index: Tensor
    targets: dict[str, PackedTargets]
    keys: list[str] = field(default_factory=list)
    directions: list[str] = field(default_factory=list)  # unique; labels point into it
    direction_labels: list[int] = field(default_factory=list)  # how many labels each direction has
    alignments: dict[str, PackedAlignments] = field(default_factory=dict)

    def along(self, modalities: Collection[str]) -> Tensor:
        """Positions ``[size, 3]`` of which those of targets of these modalities begin at 0, as their first source's."""
        chosen = [target.index for name, target in self.targets.items() if name in modalities]
        if not chosen:
            return self.positions
        index = torch.cat(chosen)
        return self.positions.index_add(0, index, -self.leads[index].expand(-1, AXES).to(self.positions.dtype))

    @property
    def num_labels(self) -> int:
        """Target tokens that the loss is averaged over."""
        return sum(len(target.label_index) for target in self.targets.values())

    def to(self, device: torch.device | str) -> "Batch":
        return mapped(self, lambda tensor: tensor.to(device, non_blocking=True))


def mapped(value: _T, function: Callable[[Tensor], Tensor]) -> _T:
    """A tree of dataclasses and dicts with each tensor replaced."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, dict):
        result = {key: mapped(item, function) for key, item in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        result = type(value)(**{f.name: mapped(getattr(value, f.name), function) for f in fields(value)})
    return result


def to_axes(positions: Tensor) -> Tensor:
    """Positions ``[T, A]`` on three axes ``[T, 3]``: a sequence is (t, t, t), an image (0, row, column)."""
    axes = positions.shape[1]
    if axes == 1:
        return positions.expand(-1, AXES)
    if axes == AXES:
        return positions
    return torch.cat([positions.new_zeros(len(positions), AXES - axes), positions], dim=1)


def pack(examples: Sequence[Example], condition_ids: dict[str, int], size: int | None = None) -> Batch:
    """Lay examples side by side into one row, padded to `size` tokens if it is given.

    Positions run through a segment: every part starts one past the largest position of the part before it.
    """
    total = sum(map(len, examples))
    if size is not None and total > size:
        raise ValueError(f"{len(examples)} examples of together {total} tokens do not fit into a row of {size}")
    row = _Row(condition_ids)
    for example in examples:
        row.add(example)
    return row.batch(total if size is None else size)


class _Row:
    """Collects what `pack` needs, example by example."""

    def __init__(self, condition_ids: dict[str, int]) -> None:
        self.ids = condition_ids
        self.offset = 0
        self.segments = Segments([], [], [], [])
        self.positions: list[Tensor] = []
        self.leads: list[Tensor] = []
        self.sources: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.conditions: list[int] = []
        self.condition_index: list[int] = []
        self.targets: dict[str, list[tuple[Tensor, ...]]] = {}
        self.keys: list[str] = []
        self.directions: dict[str, int] = {}
        self.labels = Counter[int]()
        self.alignments: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, example: Example) -> None:
        start, position = self.offset, 0
        for source in example.sources:
            tokens = self._place(source.positions, position)
            self.sources.setdefault(source.modality, []).append((source.values, tokens))
            position = int(self.positions[-1].max()) + 1
        for name in example.conditions:
            if name not in self.ids:
                raise ValueError(f"the model knows no {name!r} (sample {example.key}): known are {sorted(self.ids)}")
            self.conditions.append(self.ids[name])
            self.condition_index.append(self.offset)
            self._place(torch.zeros(1, 1, dtype=torch.long), position)
            position += 1
        self._add_target(example, position)
        target = len(example.target.codes)
        if example.aligned:
            heard = torch.arange(start, start + len(example.sources[0].positions))
            self.alignments.setdefault(example.target.modality, []).append((heard, example.target.codes[:, 0]))
        self.segments.starts.append(start)
        self.segments.prefixes.append(self.offset - target - start)
        self.segments.targets.append(target)
        self.segments.causal.append(example.target.hidden is None)
        self.keys.append(example.key)

    def _place(self, positions: Tensor, first: int, lead: int = 0) -> Tensor:
        tokens = torch.arange(self.offset, self.offset + len(positions))
        self.positions.append(to_axes(positions) + first)
        self.leads.append(torch.full((len(positions), 1), lead))
        self.offset += len(positions)
        return tokens

    def _add_target(self, example: Example, position: int) -> None:
        target, before = example.target, self.offset - 1  # `before` is the marker, from which the first token is read
        tokens = self._place(target.positions, position, lead=position)
        none = torch.zeros(0, dtype=torch.long)
        if target.hidden is None:
            inputs, labels, at = _left_to_right(target, tokens, before, has_prefix=example.prefix_length > 0)
            marked, length = none, none
        else:
            inputs = target.codes.masked_fill(target.hidden[:, None], target.special_id)
            labels, at = target.codes[target.hidden], tokens[target.hidden]
            known = target.fixed_length
            marked, length = (none, none) if known else (torch.tensor([before]), torch.tensor([len(tokens)]))
        direction = self.directions.setdefault(example.direction, len(self.directions))
        which = torch.full((len(at),), direction)
        self.labels[direction] += len(at)
        self.targets.setdefault(target.modality, []).append((inputs, tokens, labels, at, which, marked, length))

    def batch(self, size: int) -> Batch:
        padding = torch.zeros(size - self.offset, AXES, dtype=torch.long)
        return Batch(
            size=size,
            num_tokens=self.offset,
            segments=self.segments,
            positions=torch.cat([*self.positions, padding]),
            leads=torch.cat([*self.leads, padding[:, :1]]),
            sources={
                name: PackedSources(
                    torch.cat([values for values, _ in parts]),
                    [len(values) for values, _ in parts],
                    torch.cat([index for _, index in parts]),
                )
                for name, parts in self.sources.items()
            },
            condition_ids=torch.tensor(self.conditions, dtype=torch.long),
            condition_index=torch.tensor(self.condition_index, dtype=torch.long),
            targets={name: PackedTargets(*map(torch.cat, zip(*parts))) for name, parts in self.targets.items()},
            keys=self.keys,
            directions=list(self.directions),
            direction_labels=[self.labels[number] for number in self.directions.values()],
            alignments={
                name: PackedAlignments(
                    torch.cat([heard for heard, _ in parts]),
                    [len(heard) for heard, _ in parts],
                    torch.cat([codes for _, codes in parts]),
                    [len(codes) for _, codes in parts],
                )
                for name, parts in self.alignments.items()
            },
        )


def _left_to_right(target: Target, tokens: Tensor, before: int, has_prefix: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and the tokens from which the labels are read: each from the token before it, and then the end."""
    labels, at = target.codes, torch.cat([torch.tensor([before]), tokens[:-1]])
    if not has_prefix:  # plain language modelling: nothing stands before the first token
        labels, at = labels[1:], at[1:]
    if not target.fixed_length:
        end = labels.new_full((1, labels.shape[1]), target.special_id)
        labels, at = torch.cat([labels, end]), torch.cat([at, tokens[-1:]])
    return target.codes, labels, at
