"""What is exported: one direction of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyxform.data import conditions
from anyxform.field import Direction
from anyxform.modality import Decoding, Modality
from anyxform.model import Transformer


@dataclass(frozen=True)
class Task:
    """A direction, and the model and modalities that serve it."""

    model: Transformer
    modalities: Mapping[str, Modality]
    direction: Direction

    @property
    def sources(self) -> list[Modality]:
        wanted = self.direction.target.modality
        return [self.modalities[field.modality].as_source_of(wanted) for field in self.direction.sources]

    @property
    def target(self) -> Modality:
        return self.modalities[self.direction.target.modality]

    @property
    def decoding(self) -> Decoding:
        return self.target.decoding

    @property
    def asked(self) -> dict[str, int]:
        """The conditions that ask for the target, in their order, and their ids."""
        return {name: self.model.condition_ids[name] for name in conditions(self.direction.target)}

    @property
    def inputs(self) -> list[str]:
        """A name for each source: its modality's, numbered where there are several of it."""
        names = [source.name for source in self.sources]
        return [it if names.count(it) == 1 else f"{it}{names[:place].count(it)}" for place, it in enumerate(names)]

    @property
    def varies(self) -> bool:
        """Whether targets that are made at once differ in their number of tokens."""
        return self.decoding == "masked" and not self.target.fixed_length

    def preprocessed(self, item: Sequence[Any]) -> list[Tensor]:
        """The sources' values as tensors."""
        return [source.preprocess(value) for source, value in zip(self.sources, item, strict=True)]

    def slots(self, item: Sequence[Tensor]) -> int:
        """What a cache needs for the longest sources of the kind of `item` and, left to right, the longest target."""
        count = len(self.asked) + (self.target.max_length if self.decoding == "autoregressive" else 0)
        for source, tensor in zip(self.sources, item, strict=True):
            longest = tensor.new_empty(source.source_sizes[-1], *tensor.shape[1:])
            count += len(source.source_positions(longest))
        return count
