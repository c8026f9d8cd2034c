"""The samples of shards as compact tables: some thirty bytes a member, whatever the number of samples."""

import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Self, overload

import numpy as np

from anyxform import shard_files
from anyxform.storage import Shard

BLOCK = 512
"""Bytes of a header of a tar, which stands right before its member."""
LONGEST_OUTLINE = 4000
UNREAD = -1
"""In place of the checksum of a member that was not read when its shard was indexed."""


class Member(NamedTuple):
    """Where a member's bytes are, and the CRC-32 of its header and of the bytes themselves (or UNREAD)."""

    offset: int
    size: int
    header: int
    content: int = UNREAD


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its members by their endings (``fr.flac`` of ``KEY.fr.flac``).

    `outline` is "" unless the shard was read: then it says what its JSON members hold (see `outline_of`).
    """

    shard: Shard
    key: str
    members: dict[str, Member]
    outline: str = ""

    def read(self, ending: str) -> bytes:
        """A member's bytes. ValueError: they are not those that were indexed; OSError: the shard cannot be fetched."""
        offset, size, header, content = self.members[ending]
        both = shard_files.read(self.shard, offset - BLOCK, BLOCK + size)
        if zlib.crc32(both[:BLOCK]) != header:
            raise ValueError(
                f"{self.shard}: {self.key}.{ending} is not where the index has it: the shard is damaged or was written "
                "again (for a new index: anyxform data index)"
            )
        data = both[BLOCK:]
        if len(data) != size:
            raise ValueError(f"{self.shard}: {self.key}.{ending} is truncated ({len(data)} of {size} bytes)")
        if content != UNREAD and zlib.crc32(data) != content:
            raise ValueError(f"{self.shard}: {self.key}.{ending} is damaged: its bytes are not those that were indexed")
        return data


def outline_of(documents: dict[str, bytes]) -> str:
    """What JSON members hold, as JSON by ending: dictionaries of 1, or of "" for what is empty; null for broken ones.

    It is "", not known, where it would be long: where names in dictionaries are data.
    """

    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: outline(inner) for name, inner in value.items()}
        return "" if value in (None, "", []) else 1

    found = {}
    for ending, data in documents.items():
        try:
            found[ending] = outline(json.loads(data))
        except (ValueError, RecursionError):
            found[ending] = None
    made = json.dumps(found, sort_keys=True)
    return made if len(made) <= LONGEST_OUTLINE else ""


class Kind(NamedTuple):
    """What many samples of a shard have in common: their endings, in order, and their outline."""

    endings: tuple[str, ...]
    outline: str


class Samples(Sequence[Sample]):
    """The samples of one shard. n samples with m members in all are arrays of these lengths."""

    def __init__(self, shard: Shard, kinds: Sequence[Kind], keys: bytes, arrays: dict[str, np.ndarray]) -> None:
        """`arrays`: `kind` and `key_end` [n]; `offset`, `size`, `header` and `content` [m]."""
        self.shard, self.kinds, self.keys, self.arrays = shard, list(kinds), keys, arrays
        counts = np.array([len(kind.endings) for kind in self.kinds], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts[arrays["kind"]] if len(kinds) else [])]).astype(np.int64)

    @classmethod
    def pack(cls, shard: Shard, samples: Iterable[Sample]) -> Self:
        """A table of samples in memory."""
        kinds: dict[Kind, int] = {}
        kind: list[int] = []
        keys: list[bytes] = []
        members: list[Member] = []
        for sample in samples:
            kind.append(kinds.setdefault(Kind(tuple(sample.members), sample.outline), len(kinds)))
            keys.append(sample.key.encode("utf-8", "surrogateescape"))
            members += sample.members.values()
        table = np.array(members, dtype=np.int64).reshape(-1, 4)
        arrays: dict[str, np.ndarray] = {
            "kind": np.array(kind, dtype=np.uint32),
            "key_end": np.array(list(accumulate(map(len, keys))), dtype=np.int64),
            "offset": table[:, 0].copy(),
            "size": table[:, 1].copy(),
            "header": table[:, 2].astype(np.uint32),
            "content": table[:, 3].astype(np.uint32) if (table[:, 3] >= 0).all() else np.zeros(0, np.uint32),
        }
        return cls(shard, list(kinds), b"".join(keys), arrays)

    def __len__(self) -> int:
        return len(self.arrays["kind"])

    @property
    def num_members(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        kind = self.kinds[int(self.arrays["kind"][number])]
        part = slice(int(self._first[number]), int(self._first[number + 1]))
        offset, size, header = (self.arrays[name][part].tolist() for name in ("offset", "size", "header"))
        content = self.arrays["content"][part].tolist() or [UNREAD] * len(offset)
        members = dict(zip(kind.endings, map(Member, offset, size, header, content)))
        return Sample(self.shard, self.key(number), members, kind.outline)

    def key(self, number: int) -> str:
        """A sample's key, which takes less than the sample."""
        ends = self.arrays["key_end"]
        return self.keys[int(ends[number - 1]) if number else 0 : int(ends[number])].decode("utf-8", "surrogateescape")


class Joined(Sequence[Sample]):
    """The samples of several shards, or those of their numbers that are `chosen` (a sorted array for each shard)."""

    def __init__(self, shards: Sequence[Samples], chosen: Sequence[np.ndarray] | None = None) -> None:
        self.shards, self.chosen = list(shards), chosen
        self.runs = [len(part) for part in (shards if chosen is None else chosen)]
        """How many samples of each shard."""
        self._ends = list(accumulate(self.runs))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        shard, place = self._place(number)
        return self.shards[shard][place]

    def key(self, number: int) -> str:
        """A sample's key."""
        shard, place = self._place(number)
        return self.shards[shard].key(place)

    def of_each_kind(self, outlined: bool) -> list[int]:
        """The number of one sample of each kind and shard; if `outlined`, all those of kinds without an outline."""
        found, start = [], 0
        for shard, samples in enumerate(self.shards):
            places = np.arange(len(samples)) if self.chosen is None else self.chosen[shard]
            kinds = samples.arrays["kind"][places]
            _, firsts = np.unique(kinds, return_index=True)
            known = np.array([not outlined or bool(kind.outline) for kind in samples.kinds], dtype=bool)
            found += (start + np.union1d(firsts, np.flatnonzero(~known[kinds]))).tolist()
            start += len(places)
        return found

    def _place(self, number: int) -> tuple[int, int]:
        number = range(len(self))[number]
        shard = bisect_right(self._ends, number)
        place = number - (self._ends[shard - 1] if shard else 0)
        return shard, place if self.chosen is None else int(self.chosen[shard][place])
