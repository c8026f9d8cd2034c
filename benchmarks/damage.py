"""Kinds of damage to a shard, each done at a place that chance chooses.

A kind changes the bytes of a written shard, and returns the keys of the samples that are not whole any more; or it
changes the samples before they are written, and returns such keys and those that a report can name. Everything else a
reader should still find.
"""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

BLOCK = 512
Members = list[tuple[str, str, bytes]]
"""(key, ending, bytes) in the order in which they are written."""
Touched = tuple[set[str], set[str]]
"""Keys of samples that are not whole, and keys that can be named."""


@dataclass(frozen=True)
class Place:
    """Where a member of a written shard is."""

    key: str
    ending: str
    header: int
    size: int

    @property
    def data(self) -> int:
        return self.header + BLOCK

    @property
    def end(self) -> int:
        return self.data + -(-self.size // BLOCK) * BLOCK


def written(members: Members) -> tuple[bytearray, list[Place]]:
    """A shard's bytes, and where its members are."""
    buffer, places = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, ending, data in members:
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size, info.mode = len(data), 0o644
            places.append(Place(key, ending, tar.offset, len(data)))
            tar.addfile(info, io.BytesIO(data))
    return bytearray(buffer.getvalue()), places


def _middle(places: list[Place], chance: Random, ending: str = "") -> int:
    """The number of a member that is neither among the first nor the last ones."""
    fitting = [n for n, it in enumerate(places) if it.ending.endswith(ending)]
    return chance.choice(fitting[len(fitting) // 4 : -len(fitting) // 4])


# Of the tar


def broken_header(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance)]
    data[it.header + 100 : it.header + 164] = chance.randbytes(64)
    return {it.key}


def broken_first_header(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    data[:BLOCK] = chance.randbytes(BLOCK)
    return {places[0].key}


def zeroed_header(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance)]
    data[it.header : it.data] = bytes(BLOCK)
    return {it.key}


def _rewritten(data: bytearray, it: Place, **changes: object) -> None:
    info = tarfile.TarInfo.frombuf(data[it.header : it.data], "utf-8", "strict")
    for name, value in changes.items():
        setattr(info, name, value)
    data[it.header : it.data] = info.tobuf(tarfile.USTAR_FORMAT)


def wrong_size(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance, "webp")]
    _rewritten(data, it, size=it.size // 3)
    return {it.key}


def wrong_name(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance, "ogg")]
    _rewritten(data, it, name=f"other.{it.ending}")
    return {it.key}


def cut_inside(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    number = _middle(places, chance, "webp")
    del data[places[number].data + places[number].size // 2 :]
    return {it.key for it in places[number:]}


def cut_between(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    number = _middle(places, chance, "json")  # a sample's first member
    del data[places[number].header :]
    return {it.key for it in places[number:]}


def zeros_at_end(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    """As a download leaves that was cut off in a file made at its full size."""
    number = _middle(places, chance, "json")
    data[places[number].header :] = bytes(len(data) - places[number].header)
    return {it.key for it in places[number:]}


def hole(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    """Two samples are zeros, as after a crash."""
    number = _middle(places, chance, "json")
    end = places[number + 6].header
    data[places[number].header : end] = bytes(end - places[number].header)
    return {it.key for it in places[number : number + 6]}


def bytes_lost(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance, "webp")]
    del data[it.data + 10 : it.data + 110]
    return {it.key}


def bytes_inserted(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance, "webp")]
    data[it.data + 10 : it.data + 10] = chance.randbytes(100)
    return {it.key}


def bytes_between(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    it = places[_middle(places, chance, "json")]
    data[it.header : it.header] = chance.randbytes(3 * BLOCK)
    return set()


def error_page(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    data[:] = b"<!doctype html><title>503</title><h1>Service Unavailable</h1>" * 20
    return {it.key for it in places}


def emptied(data: bytearray, places: list[Place], chance: Random) -> set[str]:
    data.clear()
    return {it.key for it in places}


# Of samples


def key_twice(members: Members, chance: Random) -> Touched:
    keys = list(dict.fromkeys(key for key, _, _ in members))
    one, other = keys[len(keys) // 3], keys[2 * len(keys) // 3]
    members[:] = [(one if key == other else key, ending, data) for key, ending, data in members]
    return {other}, {one}


def interleaved(members: Members, chance: Random) -> Touched:
    start = 3 * chance.randrange(len(members) // 12, len(members) // 6)
    first, second = members[start : start + 3], members[start + 3 : start + 6]
    members[start : start + 6] = [it for pair in zip(first, second) for it in pair]
    keys = {first[0][0], second[0][0]}
    return keys, keys


def member_twice(members: Members, chance: Random) -> Touched:
    number = _of(members, chance, "webp")
    members.insert(number, (members[number][0], "webp", members[number - 3][2]))
    return _one(members[number][0])


def member_missing(members: Members, chance: Random) -> Touched:
    return _one(members.pop(_of(members, chance, "webp"))[0])


def _one(key: str) -> Touched:
    return {key}, {key}


def _of(members: Members, chance: Random, ending: str) -> int:
    fitting = [number for number, it in enumerate(members) if it[1] == ending]
    return chance.choice(fitting[len(fitting) // 4 : -len(fitting) // 4])


def _replaced(ending: str, change: Callable[[bytes, Random], bytes]) -> Callable[[Members, Random], Touched]:
    def kind(members: Members, chance: Random) -> Touched:
        number = _of(members, chance, ending)
        key, _, data = members[number]
        members[number] = (key, ending, change(data, chance))
        return _one(key)

    return kind


def _turned(data: bytes, chance: Random) -> bytes:
    place = chance.randrange(len(data) // 2, len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


OF_SHARDS: dict[str, Callable[[bytearray, list[Place], Random], set[str]]] = {
    "a header is broken": broken_header,
    "the first header is broken": broken_first_header,
    "a header is zeros": zeroed_header,
    "a header has a wrong size": wrong_size,
    "a header has a wrong name": wrong_name,
    "cut off inside a member": cut_inside,
    "cut off between samples": cut_between,
    "the rest is zeros": zeros_at_end,
    "two samples are zeros": hole,
    "100 bytes are lost": bytes_lost,
    "100 bytes too many in a member": bytes_inserted,
    "garbage between samples": bytes_between,
    "an error page in place of the shard": error_page,
    "an empty file": emptied,
}
OF_SAMPLES: dict[str, Callable[[Members, Random], Touched]] = {
    "a key is used twice": key_twice,
    "members of two samples are mixed": interleaved,
    "a member is there twice": member_twice,
    "a member is missing": member_missing,
    "a member is empty": _replaced("ogg", lambda data, chance: b""),
    "a picture is noise": _replaced("webp", lambda data, chance: chance.randbytes(len(data))),
    "a picture is cut off": _replaced("webp", lambda data, chance: data[: len(data) // 2]),
    "a recording is noise": _replaced("ogg", lambda data, chance: chance.randbytes(len(data))),
    "a JSON is cut off": _replaced("json", lambda data, chance: data[: len(data) // 2]),
}
OF_BITS: dict[str, Callable[[Members, Random], Touched]] = {
    "a bit of a picture turned": _replaced("webp", _turned),
    "a bit of a recording turned": _replaced("ogg", _turned),
    "a letter of a text changed": _replaced("json", lambda data, chance: data[:-4] + b"x" + data[-3:]),
}
"""Only who has checksums can know."""
