"""Looking through data before they are trained on: every value is read as training would read it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from anyxform.dataset import Dataset
from anyxform.directions import Directions
from anyxform.field import Field
from anyxform.modality import Modality

PROBLEMS = {
    "damaged": "of a shard: samples may be lost",
    "broken": "a sample whose fields cannot be told",
    "undecodable": "a value that cannot be read",
    "refused": "a value that training leaves out: too long, or empty",
    "missing": "a field that every sample was to have",
    "leaked": "a value that another split has as well, byte for byte",
}
REMARKS = {
    "duplicate": "a value that another sample has as well, byte for byte",
    "unused": "a sample that no direction fits",
}
"""What may well be meant."""
KINDS = PROBLEMS | REMARKS
"""Of findings, and what each is."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    kind: str
    where: str
    what: str


@dataclass
class Checked:
    """What a dataset holds, and what was found in it."""

    samples: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        fields = dict(sorted(self.fields.items()))
        return {"samples": self.samples, "fields": fields, "findings": [asdict(it) for it in self.findings]}

    @property
    def problems(self) -> list[Finding]:
        return [it for it in self.findings if it.kind in PROBLEMS]


def check(
    dataset: Dataset,
    modalities: Mapping[str, Modality],
    directions: Directions,
    *,
    required: Sequence[Field] = (),
    others: Mapping[bytes, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Checked:
    """Read every value of a dataset as training does, without augmentation.

    `required` are fields that each sample must have; `others` say by digest what must not be here (see `digests`).
    `progress` is told the number of samples done.
    """
    found = Checked(samples=len(dataset), findings=[Finding("damaged", dataset.name, it) for it in dataset.damage])
    seen: dict[bytes, str] = {}
    for number, sample in enumerate(dataset.samples):
        where = f"{sample.shard}: {sample.key}"
        try:
            fields = {f: read for f, read in dataset.fields(number).items() if f.modality in modalities}
        except ValueError as error:
            found.findings.append(Finding("broken", where, str(error).removeprefix(f"{where}: ")))
            continue
        found.fields.update(map(str, fields))
        found.findings += _missing(fields, required, where)
        if not directions.fitting(fields):
            found.findings.append(Finding("unused", where, f"its fields are {', '.join(map(str, fields)) or 'none'}"))
        stored = dataset.stored(number)
        for name, read in fields.items():
            try:
                data = read()
                if name in stored and not modalities[name.modality].literal:  # texts may repeat
                    found.findings += _again(name, data, where, seen, others or {})
                value = modalities[name.modality].load(data)
            except (ValueError, OSError) as error:
                found.findings.append(Finding("undecodable", where, f"{name}: {error}"))
            else:
                found.findings += _refused(modalities[name.modality], name, value, where)
        progress(number + 1)
    return found


def digests(dataset: Dataset, modalities: Mapping[str, Modality], split: str) -> dict[bytes, str]:
    """Where each stored value, but texts, is, by the digest of its bytes; what cannot be read is left out."""
    found: dict[bytes, str] = {}
    for number, sample in enumerate(dataset.samples):
        with suppress(ValueError):
            for name, read in dataset.stored(number).items():
                with suppress(ValueError, OSError):
                    if name.modality in modalities and not modalities[name.modality].literal:
                        found.setdefault(_digest(read()), f"{sample.key} ({name}) of the split {split}")
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _missing(fields: Mapping[Field, Any], required: Sequence[Field], where: str) -> Iterator[Finding]:
    for wanted in required:
        if not any(it == wanted or (not wanted.variant and it.modality == wanted.modality) for it in fields):
            yield Finding("missing", where, f"it has no {wanted}")


def _refused(modality: Modality, name: Field, value: Any, where: str) -> Iterator[Finding]:
    try:
        modality.preprocess(value)
    except ValueError as error:
        yield Finding("refused", where, f"{name}: {error}")


def _again(
    name: Field, data: bytes, where: str, seen: dict[bytes, str], others: Mapping[bytes, str]
) -> Iterator[Finding]:
    """Whether a value was there before, in this split or in another."""
    digest, here = _digest(data), f"{where} ({name})"
    if digest in others:
        yield Finding("leaked", where, f"{name}: the same as {others[digest]}")
    if seen.setdefault(digest, here) != here:
        yield Finding("duplicate", where, f"{name}: the same as {seen[digest]}")
