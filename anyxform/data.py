"""From shards to examples: order → sample → direction → example. Every step depends on (seed, index) alone."""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anyxform.dataset import Dataset, Reader
from anyxform.directions import Directions
from anyxform.field import Direction, Field, did_you_mean, matches
from anyxform.modality import Modality
from anyxform.order import Draw, Near, Order, rng
from anyxform.sequence import Example, Source, Target, marker
from anyxform.shard_samples import Sample
from anyxform.stored_codes import check_codes, digest_of, ending_of, from_bytes, is_codes

CODES_KEPT = 2**25
"""Codes that a process keeps, as they never change: 256 MiB, what they are kept in included."""
OVERHEAD = 64
"""Codes that would take as much memory as what a target's own are kept in."""


def condition_names(datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality]) -> list[str]:
    """Every attribute of a field in these datasets, and every modality's marker: what a target can be asked by."""
    attributes = {
        attribute
        for dataset in datasets.values()
        for fields in dataset.kinds()
        for found in fields
        for attribute in found.attributes
    }
    return [*sorted(attributes), *(marker(name) for name in sorted(modalities))]


def near_shards(datasets: Mapping[str, Dataset]) -> dict[str, Near]:
    """Of the datasets that are read from shard to shard, how."""
    return {n: Near(it.samples.runs, it.shards_at_once) for n, it in datasets.items() if it.shards_at_once}


class Codes:
    """Targets as codes, the last ones kept; those that are stored beside a sample are not made."""

    def __init__(self, modalities: Mapping[str, Modality], keep: int = CODES_KEPT) -> None:
        self.modalities, self.keep = modalities, keep
        self._kept: OrderedDict[tuple[str, int, Field], Tensor] = OrderedDict()
        self._size = 0
        self._digests: dict[str, str] = {}

    def __call__(self, place: tuple[str, int, Field], read: Reader, sample: Sample | None = None) -> Tensor:
        """Codes ``[T, K]`` of the field at a place (dataset, sample, field)."""
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        codes = self._stored(place[2], sample)
        if codes is None:
            modality = self.modalities[place[2].modality]
            with torch.no_grad():
                codes = modality.codes(modality.preprocess(modality.load(read())))
        codes = codes.reshape(len(codes), -1)
        self._kept[place] = codes
        self._size += codes.numel() + OVERHEAD
        while self._size > self.keep:
            self._size -= self._kept.popitem(last=False)[1].numel() + OVERHEAD
        return codes

    def _stored(self, field: Field, sample: Sample | None) -> Tensor | None:
        """The codes beside the sample, if there are any of this field by this tokenizer."""
        if sample is None or not any(map(is_codes, sample.members)):
            return None
        modality = self.modalities[field.modality]
        if field.modality not in self._digests:
            self._digests[field.modality] = digest_of(modality)
        ending = ending_of(field, self._digests[field.modality])
        return from_bytes(sample.read(ending), modality) if ending in sample.members else None


def source(
    modality: Modality, value: Any, wanted: str, train: bool = False, generator: torch.Generator | None = None
) -> Source:
    """A value as a source of an example whose target is of the modality `wanted`; augmented if `train`."""
    modality = modality.as_source_of(wanted)
    tensor = modality.preprocess(value, train=train, generator=generator)
    return Source(modality.name, tensor, modality.source_positions(tensor))


def target(
    modality: Modality, codes: Tensor, generator: torch.Generator | None = None, masked: bool | None = None
) -> Target:
    """Codes ``[T, K]`` as a target. Masked: a share cos(πu/2) of the tokens is hidden, u uniform (arXiv 2202.04200)."""
    hidden = None
    if modality.decoding == "masked" if masked is None else masked:
        share = math.cos(0.5 * math.pi * float(torch.rand((), generator=generator)))
        order = torch.rand(len(codes), generator=generator).argsort()
        hidden = torch.zeros(len(codes), dtype=torch.bool)
        hidden[order[: max(1, math.ceil(share * len(codes)))]] = True
    positions = modality.code_positions(len(codes))
    return Target(modality.name, codes, positions, modality.vocab_size, modality.fixed_length, hidden)


def conditions(wanted: Field) -> tuple[str, ...]:
    """What asks for a field: its attributes, then its modality's marker."""
    return (*wanted.attributes, marker(wanted.modality))


@dataclass
class Counts:
    """What happened to the samples of a pool: how many were used, what was left out, and why."""

    samples: int = 0
    without_direction: int = 0
    broken: int = 0
    reasons: list[str] = field(default_factory=list)
    fetched: Counter[str] = field(default_factory=Counter)
    """See `anyxform.storage.counts`."""

    def add(self, other: "Counts") -> None:
        self.samples += other.samples
        self.without_direction += other.without_direction
        self.broken += other.broken
        self.reasons = (self.reasons + other.reasons)[:100]
        self.fetched += other.fetched


Share = float | Mapping[str, float]
"""One for all target modalities, or one for each of some, 0 for the others."""


def share_of(shares: Share, modality: str) -> float:
    """That of a target modality. ValueError: it is no share."""
    share = shares.get(modality, 0.0) if isinstance(shares, Mapping) else shares
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"data.other_decoding={share} is no share: give 0 to 1, or one for each modality")
    return float(share)


def aligned_pattern(pattern: str, modalities: Mapping[str, Modality]) -> str:
    """The pattern itself. ValueError: it names no single source, or a target without one code a token."""
    source, _, target = pattern.partition(">")
    if not source or not target or "+" in source:
        raise ValueError(f"data.aligned: {pattern!r} is not possible: write source>target, like audio:en*>text:en")
    name = target.partition(":")[0]
    if name not in modalities:
        raise ValueError(f"data.aligned: {pattern!r} is not possible: {did_you_mean(name, list(modalities))}")
    modality = modalities[name]
    if modality.num_codebooks > 1 or modality.fixed_length:
        raise ValueError(
            f"data.aligned: {pattern!r} is not possible: {modality.name} is not a sequence of one code a token"
        )
    return pattern


class Examples:
    """The example that stands at a global index."""

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        modalities: Mapping[str, Modality],
        directions: Directions,
        order: Order,
        *,
        train: bool = True,
        condition_dropout: float = 0.1,
        attribute_dropout: float = 0.1,
        other_decoding: Share = 0.0,
        aligned: Sequence[str] = (),
    ) -> None:
        """`other_decoding`: the share of training targets that are to be decoded in the way that is not their own.
        `aligned`: patterns of directions whose targets come in the order of their source (see `sequence.Example`).

        ValueError: the datasets hold codes by other tokenizers; a pattern of `aligned` is none, or no target of it has
        one code a token.
        """
        self.aligned = [aligned_pattern(pattern, modalities) for pattern in aligned]
        self.other_decoding = {name: share_of(other_decoding, name) for name in modalities}
        for name in other_decoding if isinstance(other_decoding, Mapping) else ():
            if name not in modalities:
                raise ValueError(f"data.other_decoding names {name!r}: {did_you_mean(name, list(modalities))}")
        self.datasets, self.modalities, self.directions, self.order = datasets, modalities, directions, order
        self.train, self.condition_dropout, self.attribute_dropout = train, condition_dropout, attribute_dropout
        check_codes(datasets, modalities)
        self.codes = Codes(modalities)

    def __call__(self, index: int, counts: Counts) -> Example | None:
        """None, counted with its reason, where the sample is broken or has no direction that is trained."""
        draw = self.order[index]
        dataset = self.datasets[draw.dataset]
        sample = dataset.samples[draw.number]
        counts.samples += 1
        where = ""
        try:
            fields = {f: read for f, read in dataset.fields(draw.number).items() if f.modality in self.modalities}
            first, second, *drops = rng(draw.seed).random(8).tolist()
            direction = self.directions.draw(fields, first, second)
            if direction is None:
                counts.without_direction += 1
                return None
            where = f"{sample.shard}: {sample.key} ({direction}): "
            return self._make(draw, sample, fields, direction, drops)
        except ValueError as error:
            counts.broken += 1
            counts.reasons.append(f"{where}{error}")
            return None

    def _make(
        self,
        draw: Draw,
        sample: Sample,
        fields: Mapping[Field, Reader],
        direction: Direction,
        drops: list[float],
    ) -> Example:
        generator = torch.Generator().manual_seed(draw.seed)
        wanted = direction.target
        codes = self.codes((draw.dataset, draw.number, wanted), fields[wanted], sample)
        asked = conditions(wanted)
        sources: list[Source] = []
        if self.train and drops[0] < self.attribute_dropout:
            # so that audio:fr and audio can be asked for where the data say audio:fr-phone
            asked = (*wanted.attributes[: int(drops[2] * len(wanted.attributes))], asked[-1])
        if not (self.train and drops[1] < self.condition_dropout):  # else without sources, for guidance
            for found in direction.sources:
                modality = self.modalities[found.modality]
                sources.append(source(modality, modality.load(fields[found]()), wanted.modality, self.train, generator))
        modality = self.modalities[wanted.modality]
        masked = (modality.decoding == "masked") != (self.train and drops[3] < self.other_decoding[modality.name])
        made = target(modality, codes, generator, masked)
        aligned = bool(sources) and any(matches(direction, pattern) for pattern in self.aligned)
        return Example(sample.key, str(direction), tuple(sources), asked, made, aligned)
