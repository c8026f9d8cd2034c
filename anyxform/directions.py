"""Which direction a sample is used in: patterns with weights, and patterns that are held out."""

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate, product

from anyxform.field import Direction, Field, matches


class Directions:
    """Draws a direction for the fields of a sample.

    A pattern is drawn by its weight among those that fit the sample, then one of the directions that fit it: so a
    weight says how often a *kind* of direction is trained, however many languages or styles a sample has of it.
    """

    def __init__(self, weights: Mapping[str, float], hold_out: Sequence[str] = ()) -> None:
        if not any(weight > 0 for weight in weights.values()):
            raise ValueError(
                "data.directions names no direction to train: give patterns with weights, such as image>text: 1"
            )
        for pattern in (*weights, *hold_out):
            if pattern.count(">") != 1:
                raise ValueError(f"{pattern!r} is not a pattern of directions: write source>target, like image>text:*")
        for pattern, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"data.directions: the weight of {pattern} must be 0 or more, not {weight}")
        self.weights = {pattern: weight for pattern, weight in weights.items() if weight > 0}
        self.hold_out = list(hold_out)
        self._fitting: dict[tuple[Field, ...], list[tuple[float, list[Direction]]]] = {}

    def fitting(self, fields: Iterable[Field]) -> list[tuple[float, list[Direction]]]:
        """For each pattern that fits: its weight, and the directions among these fields; kept for each set of them."""
        key = tuple(sorted(fields))
        if key not in self._fitting:
            groups = [(weight, self._among(key, pattern)) for pattern, weight in self.weights.items()]
            self._fitting[key] = [(weight, directions) for weight, directions in groups if directions]
        return self._fitting[key]

    def _among(self, fields: Sequence[Field], pattern: str) -> list[Direction]:
        sources = pattern.partition(">")[0].count("+") + 1
        modalities = [part.partition(":")[0].strip() for part in pattern.replace(">", "+").split("+")]
        choices = [[f for f in fields if fnmatchcase(f.modality, wanted)] for wanted in modalities]
        candidates = (Direction(tuple(chosen[:sources]), chosen[sources]) for chosen in product(*choices))
        return [
            direction
            for direction in candidates
            if len({*direction.sources, direction.target}) == sources + 1
            and matches(direction, pattern)
            and not any(matches(direction, held) for held in self.hold_out)
        ]

    def draw(self, fields: Iterable[Field], first: float, second: float) -> Direction | None:
        """The direction that two numbers in [0, 1) choose; None if no pattern fits."""
        groups = self.fitting(fields)
        if not groups:
            return None
        edges = list(accumulate(weight for weight, _ in groups))
        _, directions = groups[bisect(edges, first * edges[-1])]
        return directions[int(second * len(directions))]
