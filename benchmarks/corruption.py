"""What readers make of damaged shards: ours, with and without an index from before the damage, and webdataset.

    python -m benchmarks.corruption [samples] [repeats]

Three shards of the starter's samples; one of them is damaged in each of some twenty ways, at several places. A damage
is named if a report names the shard, and where it is of one sample, the key too. Recovered is the share of the samples
that were not touched which are read whole. Of webdataset every exception counts, of the stream and of decoding alike.
The last line is one JSON document.
"""

import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import soundfile
import torch
import webdataset
from PIL import Image

from anyxform.check import check
from anyxform.dataset import Dataset, extensions_of
from anyxform.directions import Directions
from anyxform.field import Field
from anyxform.modality import Modality
from anyxform.shard_index import write_beside
from anyxform.shards import index
from anyxform.storage import stat
from benchmarks import damage, starter

SOURCES = ("stamps/train-000000.tar", "emoji/train-*.tar")
INDEXED = "ours, indexed before"
Sample = dict[str, bytes]
Read = tuple[list[str], dict[str, list[Sample]]]
"""What was reported, and what was read of each key."""


@dataclass
class Score:
    """Of one reader and one kind, over all repeats."""

    detected: int = 0
    named: int = 0
    recovered: float = 0.0
    repeats: int = 0

    def add(self, detected: bool, named: bool, recovered: float) -> None:
        self.detected, self.named, self.repeats = self.detected + detected, self.named + named, self.repeats + 1
        self.recovered += recovered


def originals(count: int, modalities: Mapping[str, Modality]) -> dict[str, Sample]:
    """Samples of the starter with a picture, a recording and texts, each with nothing to be said against."""
    found: dict[str, Sample] = {}
    seen = set[bytes]()
    for source in SOURCES:
        for shard in sorted(Path("data/starter").glob(source)):
            for sample in index(shard).samples:
                first = {e: next((m for m in sample.members if m.endswith(e)), "") for e in ("json", "webp", "ogg")}
                if all(first.values()) and len(found) < count:
                    values = {ending: sample.read(member) for ending, member in first.items()}
                    if sample.key not in found and not seen & set(values.values()) and _sound(values, modalities):
                        seen |= set(values.values())
                        found[sample.key] = values
    return found


def _sound(values: Sample, modalities: Mapping[str, Modality]) -> bool:
    try:
        for ending, name in (("webp", "image"), ("ogg", "audio")):
            modalities[name].preprocess(modalities[name].load(values[ending]))
        for text in json.loads(values["json"])["text"].values():
            modalities["text"].preprocess(text)
    except ValueError:
        return False
    return True


def ours(shards: list[Path], modalities: Mapping[str, Modality]) -> Read:
    """What `anyxform data check` reports, and every sample that can be read."""
    try:
        found = Dataset("data", shards, extensions=extensions_of(modalities), fields={"text:*": "json.text.*"})
    except (ValueError, OSError) as error:
        return [str(error)], {}
    checked = check(found, modalities, Directions({"*>*": 1.0}), required=[Field("image"), Field("audio")])
    read: dict[str, list[Sample]] = {}
    for sample in found.samples:
        try:
            read.setdefault(sample.key, []).append({ending: sample.read(ending) for ending in sample.members})
        except ValueError:
            continue
    return [f"{it.where}: {it.what}" for it in checked.findings], read


def theirs(shards: list[Path], modalities: Mapping[str, Modality]) -> Read:
    """webdataset's stream with a handler that goes on, and every member decoded."""
    told: list[str] = []
    read: dict[str, list[Sample]] = {}

    def handler(error: Exception) -> bool:
        told.append(repr(error))
        return True

    names = [str(shard) for shard in shards]
    try:
        for sample in webdataset.WebDataset(names, shardshuffle=False, handler=handler, empty_check=False):
            members = {ending: data for ending, data in sample.items() if not ending.startswith("__")}
            read.setdefault(sample["__key__"], []).append(members)
            for ending, data in members.items():
                try:
                    decode(ending, data)
                except Exception as error:
                    told.append(f"{sample['__url__']}: {sample['__key__']}.{ending}: {error!r}")
    except Exception as error:  # what no handler sees ends the stream
        told.append(repr(error))
    return told, read


def decode(ending: str, data: bytes) -> object:
    if ending == "webp":
        return Image.open(io.BytesIO(data)).convert("RGB")
    return soundfile.read(io.BytesIO(data), dtype="float32")[0] if ending == "ogg" else json.loads(data)


def damaged(name: str, samples: Mapping[str, Sample], number: int, chance: Random) -> tuple[bytes, set[str], set[str]]:
    """One of the three shards, damaged; the keys that are not whole any more, and those that can be named."""
    members, of_samples = _members(samples, number), damage.OF_SAMPLES | damage.OF_BITS
    touched, named = of_samples[name](members, chance) if name in of_samples else (set(), {""})
    data, places = damage.written(members)
    if name in damage.OF_SHARDS:
        touched = damage.OF_SHARDS[name](data, places, chance)
    return bytes(data), touched, named


def _members(samples: Mapping[str, Sample], number: int) -> damage.Members:
    keys = sorted(samples)[number::3]
    return [(key, ending, data) for key in keys for ending, data in samples[key].items()]


def main(samples: int = 120, repeats: int = 3) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    modalities = starter.modalities()
    whole = originals(samples, modalities)
    print(f"{len(whole)} samples in 3 shards; each kind at {repeats} places: detected, named, recovered")
    folder = Path(tempfile.mkdtemp())
    scores: dict[str, dict[str, Score]] = {}

    readers = {"ours": ours, INDEXED: ours, "webdataset": theirs}
    try:
        for name in ("nothing", *damage.OF_SHARDS, *damage.OF_SAMPLES, *damage.OF_BITS):
            scores[name] = {reader: Score() for reader in readers}
            for seed in range(repeats):
                number = seed % 3
                data, touched, keys = damaged(name, whole, number, Random(seed))
                for reader, reads in readers.items():
                    shards = [folder / f"data-{n}.tar" for n in range(3)]
                    for n, path in enumerate(shards):
                        path.write_bytes(damage.written(_members(whole, n))[0])
                        Path(f"{path}.index").unlink(missing_ok=True)
                        if reader == INDEXED:
                            write_beside(stat(path), index(path, contents=True))
                    shards[number].write_bytes(data)
                    told, read = reads(shards, modalities)
                    named = any(str(shards[number]) in line and any(key in line for key in keys) for line in told)
                    intact = whole.keys() - touched
                    share = sum(whole[key] in read.get(key, []) for key in intact) / len(intact)
                    scores[name][reader].add(bool(told), named, share)
            _print(name, scores[name])
    finally:
        shutil.rmtree(folder)
    _summary(scores, list(readers))


def _print(name: str, scores: Mapping[str, Score]) -> None:
    cells = [
        f"{it.detected}/{it.repeats} {it.named}/{it.repeats} {it.recovered / it.repeats:.1%}" for it in scores.values()
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _summary(scores: Mapping[str, Mapping[str, Score]], readers: list[str]) -> None:
    groups = {"shards and samples": [*damage.OF_SHARDS, *damage.OF_SAMPLES], "bits": list(damage.OF_BITS)}
    for group, names in groups.items():
        for reader in readers:
            some = [scores[name][reader] for name in names]
            total = sum(it.repeats for it in some)
            shares = [it.recovered / it.repeats for it in some]
            print(
                f"{group}, {len(names)} kinds, {reader}: detected {sum(it.detected for it in some) / total:.1%}, "
                f"named {sum(it.named for it in some) / total:.1%}, recovered {sum(shares) / len(shares):.2%}, "
                f"at least {min(shares):.1%}"
            )
    print(json.dumps({name: {reader: vars(it) for reader, it in each.items()} for name, each in scores.items()}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
