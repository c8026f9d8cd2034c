"""Fields and directions: what a sample holds, and which of it is turned into what.

A *field* is ``modality[:variant]``: ``image``, ``text:fr``, ``audio:fr-phone``. The variant is what a user can ask
for; its attributes are joined by ``-`` (language ``fr``, voice ``phone``) and each becomes one learned condition token,
which modalities share: the ``fr`` of ``text:fr`` is the ``fr`` of ``audio:fr``.
A *direction* is ``field[+field…]>field``: ``image+text:en>audio:fr``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import permutations

_FIELD = re.compile(r"([a-z][a-z0-9_]*)(?::([A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*))?")


@dataclass(frozen=True, order=True)
class Field:
    """One part of a sample: a modality, and the variant of it."""

    modality: str
    variant: str = ""

    @staticmethod
    @lru_cache(maxsize=4096)  # a sample has ten and more, the data a few in all
    def parse(text: str) -> "Field":
        """Read ``modality[:variant]``; a ValueError says what is wrong with anything else."""
        match = _FIELD.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is not a field: write modality or modality:variant, such as image or text:fr")
        return Field(match[1], match[2] or "")

    @property
    def attributes(self) -> tuple[str, ...]:
        """The variant's parts: ``audio:fr-phone`` has ``("fr", "phone")``."""
        return tuple(self.variant.split("-")) if self.variant else ()

    def __str__(self) -> str:
        return f"{self.modality}:{self.variant}" if self.variant else self.modality


@dataclass(frozen=True, order=True)
class Direction:
    """One or several source fields, and the target field that is made of them."""

    sources: tuple[Field, ...]
    target: Field

    @classmethod
    def parse(cls, text: str) -> "Direction":
        """Read ``field[+field…]>field``."""
        left, arrow, right = text.partition(">")
        if not arrow:
            raise ValueError(f"{text!r} is not a direction: write source>target, such as image>text:fr")
        return cls(tuple(Field.parse(part) for part in left.split("+")), Field.parse(right))

    def __str__(self) -> str:
        return "+".join(map(str, self.sources)) + f">{self.target}"


def matches(direction: Direction, pattern: str) -> bool:
    """Whether a direction fits a pattern such as ``image>text:fr``, ``audio:*>text:*`` or ``*>*``.

    A pattern's field without a variant stands for every variant of its modality. Sources may stand in any order.
    """
    left, arrow, right = pattern.partition(">")
    if not arrow:
        raise ValueError(f"{pattern!r} is not a pattern of directions: write source>target, such as image>text:*")
    sources = left.split("+")
    if len(sources) != len(direction.sources) or not _field_matches(direction.target, right):
        return False
    return any(
        all(_field_matches(*pair) for pair in zip(direction.sources, order, strict=True))
        for order in permutations(sources)
    )


def _field_matches(field: Field, pattern: str) -> bool:
    pattern = pattern.strip()
    return fnmatchcase(str(field), pattern) or (":" not in pattern and fnmatchcase(field.modality, pattern))


def pairs(fields: Iterable[Field]) -> list[Direction]:
    """Every one-to-one direction among the fields of a sample, in a fixed order."""
    ordered = sorted(fields)
    return [Direction((source,), target) for source in ordered for target in ordered if source != target]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
