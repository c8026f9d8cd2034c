"""Answers without a model, which a model must beat: the most frequent, the nearest's, a shuffled, a copied one.

Nothing here knows a modality's name: likeness is measured on the tensors that `Modality.preprocess` gives. Letters: M
training values of a modality, F features, S training samples, Q queries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyxform.evaluate import Item, by_direction
from anyxform.field import Direction, Field
from anyxform.modality import Modality

SEQUENCE_BINS, BINS = 8, 16
"""A tensor of numbers is averaged to 8 bins along its sequence and to at most 16 along every other axis."""
BUCKETS, NGRAM = 2048, 3
"""A tensor of ids is a bag of its 1- to 3-grams, hashed into 2048 buckets."""


def features(tensor: Tensor) -> Tensor:
    """A preprocessed tensor ``[n, ...]`` as a vector ``[F]``, of equal size for all values of a modality."""
    return _pooled(tensor) if tensor.is_floating_point() else _bag(tensor)


def _pooled(tensor: Tensor) -> Tensor:
    for axis in range(tensor.ndim):
        bins = SEQUENCE_BINS if axis == 0 else min(BINS, tensor.shape[axis])
        last = tensor.movedim(axis, -1)
        rows = F.adaptive_avg_pool1d(last.reshape(1, -1, last.shape[-1]), bins)
        tensor = rows.reshape(*last.shape[:-1], bins).movedim(-1, axis)
    return tensor.flatten()


def _bag(tensor: Tensor) -> Tensor:
    ids = tensor.flatten().long()
    buckets = []
    for length in range(1, min(NGRAM, len(ids)) + 1):
        code = torch.full((len(ids) - length + 1,), length)
        for offset in range(length):
            code = (code * 1_000_003 + ids[offset : offset + len(code)]) % 2_147_483_647
        buckets.append(code % BUCKETS)
    return torch.bincount(torch.cat(buckets), minlength=BUCKETS).float()


_Value = tuple[Tensor, int, Field]
"""Features of a training value, the number of its sample, and its field there."""


class _Table:
    """All training values of one modality: features ``[M, F]``, centred and of length 1, and whose they are."""

    def __init__(self, values: Sequence[_Value]) -> None:
        self.features = torch.stack([vector for vector, _, _ in values])
        self.mean = self.features.mean(0)
        self.features -= self.mean  # in place, as there are many
        self.to_mean = self.features.norm(dim=1)
        self.features /= self.to_mean.clamp_min(1e-12)[:, None]
        self.samples = torch.tensor([sample for _, sample, _ in values])
        self.fields = [field for _, _, field in values]

    def likeness(self, queries: Tensor, num_samples: int) -> Tensor:
        """How like each training sample's nearest value of this modality is: ``[Q, F]`` to cosines ``[Q, S]``."""
        cosines = F.normalize(queries - self.mean, dim=1) @ self.features.T
        best = torch.full((len(queries), num_samples), -torch.inf)
        return best.scatter_reduce_(1, self.samples.expand_as(cosines), cosines, "amax")


class TrainingSet:
    """What the training samples would answer. They are read through once, and again one by one to answer.

    Where a target's field is in no training sample, its modality's other variants answer. Only values of `modalities`
    are looked at, and of those only what `directions` need; what cannot be read, or is refused by `preprocess`, is left
    out.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[Field, Any]],
        modalities: Mapping[str, Modality],
        directions: Sequence[Direction],
    ) -> None:
        self.samples, self.modalities = samples, modalities
        wanted = {field.modality for direction in directions for field in (*direction.sources, direction.target)}
        rows: dict[str, list[_Value]] = {}
        for number in range(len(samples)):
            try:
                sample = samples[number]
            except ValueError:  # it cannot be read: nothing has been trained on it either
                continue
            for field in sorted(field for field in sample if field.modality in wanted):
                vector = self._features(sample, field)
                if vector is not None:
                    rows.setdefault(field.modality, []).append((vector, number, field))
        self.tables = {name: _Table(rows.pop(name)) for name in list(rows)}
        self._frequent: dict[Field, Any] = {}

    def _features(self, sample: Mapping[Field, Any], field: Field) -> Tensor | None:
        try:
            return features(self.modalities[field.modality].preprocess(sample[field]))
        except ValueError:  # undecodable, too long or empty: not trained on either
            return None

    def most_frequent(self, items: Sequence[Item]) -> list[Any]:
        """The target that the training set holds most often, the same for all items of a field."""
        return [self._most_frequent(item.direction.target) for item in items]

    def _most_frequent(self, target: Field) -> Any:
        if target not in self._frequent:
            self._frequent[target] = self._find_most_frequent(target)
        return self._frequent[target]

    def _find_most_frequent(self, target: Field) -> Any:
        """Values are the same if their features are; among equally frequent ones, that nearest to the mean."""
        rows = self._target_rows(target)
        if not rows:
            return None
        table = self.tables[target.modality]
        digests = {row: table.features[row].numpy().tobytes() for row in rows}
        counts = Counter(digests.values())
        row = min(rows, key=lambda row: (-counts[digests[row]], float(table.to_mean[row]), row))
        return self._value(target.modality, row)

    def nearest(self, items: Sequence[Item]) -> list[Any]:
        """The target of the training sample whose source is most like the item's, by the sum over several sources.

        Every variant of a source's modality is looked at: another style or language may hold the nearest source.
        """
        answers: list[Any] = [None] * len(items)
        for direction, numbers in by_direction(items).items():
            rows = self._target_rows(direction.target)
            if not rows or any(source.modality not in self.tables for source in direction.sources):
                continue
            owners = self.tables[direction.target.modality].samples[rows]
            likeness = self._likeness(direction, [items[number] for number in numbers])[:, owners]
            for number, best in zip(numbers, likeness.argmax(1).tolist()):
                answers[number] = self._value(direction.target.modality, rows[best])
        return answers

    def _likeness(self, direction: Direction, items: Sequence[Item]) -> Tensor:
        """``[Q, S]``, summed over the sources."""
        total = torch.zeros(len(items), len(self.samples))
        for place, source in enumerate(direction.sources):
            modality = self.modalities[source.modality]
            queries = torch.stack([features(modality.preprocess(item.sources[place])) for item in items])
            total += self.tables[source.modality].likeness(queries, len(self.samples))
        return total

    def _target_rows(self, target: Field) -> list[int]:
        if target.modality not in self.tables:
            return []
        fields = self.tables[target.modality].fields
        return [row for row, field in enumerate(fields) if field == target] or list(range(len(fields)))

    def _value(self, modality: str, row: int) -> Any:
        table = self.tables[modality]
        return self.samples[int(table.samples[row])][table.fields[row]]


def shuffled(items: Sequence[Item], answers: Sequence[Any], seed: int = 0) -> list[Any]:
    """The same answers, each given to another item of the same direction; one that is alone in it keeps its own."""
    result = list(answers)
    generator = torch.Generator().manual_seed(seed)
    for numbers in by_direction(items).values():
        order = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
        for number, other in zip(order, [*order[1:], order[0]]):
            result[number] = answers[other]
    return result


def copied(items: Sequence[Item]) -> list[Any]:
    """The source itself as the answer, where it is of the target's modality; else None."""
    return [
        next((v for f, v in zip(i.direction.sources, i.sources) if f.modality == i.direction.target.modality), None)
        for i in items
    ]
