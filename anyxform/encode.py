"""Shards with codes: the samples of a shard as they are, and beside them the codes of chosen modalities."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch

from anyxform.build.sources import Entry
from anyxform.dataset import Dataset, extensions_of
from anyxform.modality import Modality
from anyxform.stored_codes import digest_of, ending_of, is_codes, to_bytes


@dataclass(frozen=True)
class Encoded:
    """A shard as a source of `anyxform.build`, with the codes of the fields of some modalities.

    Args:
        shard: its path or URL.
        modalities: whose codes are made, with their tokenizers.
        fields: further fields, in JSON members: see `anyxform.dataset.Dataset`.
    """

    shard: str
    modalities: Mapping[str, Modality]
    fields: Mapping[str, str]

    @cached_property
    def dataset(self) -> Dataset:
        extensions = extensions_of(self.modalities)
        return Dataset(self.shard, [self.shard], extensions=extensions, fields=self.fields)

    @cached_property
    def digests(self) -> dict[str, str]:
        return {name: digest_of(modality) for name, modality in self.modalities.items()}

    def entries(self, left_out: list[str]) -> Iterator[Entry]:
        """Its samples, in their order: on which the order of training depends."""
        left_out += self.dataset.damage
        digests = sorted(self.digests.items())
        for number, sample in enumerate(self.dataset.samples):
            size = sum(member.size for member in sample.members.values())
            yield Entry(sample.key, sample.key, (number, digests), size)

    def read(self, place: tuple[int, object]) -> dict[str, bytes]:
        """A sample's members and its codes; without those of what cannot be read, which training will name."""
        sample = self.dataset.samples[place[0]]
        members = {ending: sample.read(ending) for ending in sample.members if not is_codes(ending)}
        with suppress(ValueError):
            for field, read in self.dataset.fields(place[0]).items():
                if field.modality in self.modalities:
                    with suppress(ValueError):
                        members[ending_of(field, self.digests[field.modality])] = self._codes(field.modality, read())
        return members

    @torch.no_grad()
    def _codes(self, name: str, data: bytes) -> bytes:
        modality = self.modalities[name]
        return to_bytes(modality.codes(modality.preprocess(modality.load(data))), modality)
