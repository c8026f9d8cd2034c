"""The demo's slice of the starter: some thirty things in many drawing styles, and numbers as telephones speak them.

Small enough to be learnt from nothing in minutes, and still scored on what was never seen: of every thing the style
`openmoji`, and one of three other styles by turns; and number strings that are not in training. Their digits are real
recordings, joined one after another as telephone systems do it.
"""

import io
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import soundfile
from webdataset import TarWriter

from anyxform.shards import Sample, index

LANGUAGES = ("en", "fr")
HELD_OUT, BY_TURNS = "openmoji", ("twemoji", "noto", "emojione")
DIGITS = tuple(f"digits_{digit}" for digit in range(10))
LENGTHS = (3,)
COUNTS = {"train": 240, "val": 16, "instance": 40}
GAP = 0.06
"""Seconds between two digits."""

THINGS = frozenset(
    """
    airplane; banana; birthday cake; bus; butterfly; cherries; crab; elephant; fire; fish; frog; ghost; grapes; guitar;
    hamburger; jack-o-lantern; lemon; light bulb; octopus; owl; panda; penguin; pizza; rainbow; red heart; sailboat;
    snowman; spider; strawberry; sunflower; tulip; umbrella; watermelon
    """.replace("\n    ", " ")
    .strip()
    .split("; ")
)


def write_slice(root: Path, out: Path, seed: int = 0) -> dict[str, int]:
    """Write ``OUT/{pictures,numbers}/SPLIT-000000.tar`` from the starter in `root`; how many samples each has."""
    counts = {}
    for name, splits in (("pictures", _pictures(root)), ("numbers", _numbers(root, Random(seed)))):
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, samples in splits.items():
            with TarWriter(str(out / name / f"{split}-000000.tar"), mtime=0) as writer:
                for sample in samples:
                    writer.write(sample)
            counts[f"{name}/{split}"] = len(samples)
    return counts


def _samples(root: Path, dataset: str, splits: Iterable[str]) -> Iterator[Sample]:
    for split in splits:
        for shard in sorted((root / dataset).glob(f"{split}-*.tar")):
            yield from index(shard).samples


def _texts(sample: Sample) -> dict[str, str]:
    return json.loads(sample.read("json"))["text"]


def _pictures(root: Path) -> dict[str, list[dict[str, object]]]:
    """Things of the training split with their names in two languages, their drawings split in two."""
    drawings: dict[str, dict[str, bytes]] = {}
    names: dict[str, dict[str, str]] = {}
    for sample in _samples(root, "emoji", ("train", "instance")):
        text = _texts(sample)
        if text["en"] in THINGS and set(LANGUAGES) <= text.keys():
            names[sample.key] = {language: text[language] for language in LANGUAGES}
            found = {ending: sample.read(ending) for ending in sample.members if ending.endswith(".webp")}
            drawings.setdefault(sample.key, {}).update(found)
    splits: dict[str, list[dict[str, object]]] = {"train": [], "instance": []}
    for number, key in enumerate(sorted(names)):
        held = {f"{HELD_OUT}.webp", f"{BY_TURNS[number % len(BY_TURNS)]}.webp"}
        for split, wanted in (("train", drawings[key].keys() - held), ("instance", drawings[key].keys() & held)):
            media = {ending: drawings[key][ending] for ending in sorted(wanted)}
            splits[split].append({"__key__": key, "json": _document(names[key]), **media})
    return splits


def _numbers(root: Path, chance: Random) -> dict[str, list[dict[str, object]]]:
    """Number strings, each spoken and written in two languages; no string is in two splits."""
    digits = {sample.key: sample for sample in _all(root) if sample.key in DIGITS}
    _check_complete(root, digits.keys(), "any language")
    words = [_texts(digits[key]) for key in DIGITS]
    recordings = {language: _recordings(root, language) for language in LANGUAGES}
    strings = [string for length in LENGTHS for string in product(range(10), repeat=length)]
    chance.shuffle(strings)
    splits: dict[str, list[dict[str, object]]] = {}
    for split, count in COUNTS.items():
        splits[split], taken = [], _mixed(strings, count)
        strings = [string for string in strings if string not in set(taken)]
        for string in taken:
            text = {language: " ".join(words[digit][language] for digit in string) for language in LANGUAGES}
            spoken = {
                f"{language}-phone.flac": _spoken([recordings[language][digit] for digit in string])
                for language in LANGUAGES
            }
            key = "-".join(map(str, string))
            splits[split].append({"__key__": f"number_{key}", "json": _document(text), **spoken})
    return splits


def _mixed(strings: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """The first `count` strings, as many of each length."""
    each = -(-count // len(LENGTHS))
    chosen = [[s for s in strings if len(s) == length][:each] for length in LENGTHS]
    return [string for group in zip(*chosen) for string in group][:count]


def _all(root: Path) -> Iterator[Sample]:
    yield from _samples(root, "prompts", ("train", "val", "test", "instance"))


def _recordings(root: Path, language: str) -> list[np.ndarray]:
    """The ten digits of a language: samples at 16 kHz."""
    ending, found = f"{language}-phone.ogg", dict[str, np.ndarray]()
    for sample in _all(root):
        if sample.key in DIGITS and ending in sample.members:
            found[sample.key] = soundfile.read(io.BytesIO(sample.read(ending)), dtype="float32")[0]
    _check_complete(root, found.keys(), language)
    return [found[key] for key in DIGITS]


def _check_complete(root: Path, found: Container[str], language: str) -> None:
    missing = [key for key in DIGITS if key not in found]
    if missing:
        raise ValueError(f"{root}: the prompts lack {missing} in {language}: build the starter again")


def _spoken(recordings: Sequence[np.ndarray], rate: int = 16_000) -> bytes:
    """Recordings one after another, as FLAC."""
    gap = np.zeros(int(GAP * rate), dtype=np.float32)
    samples = np.concatenate([part for recording in recordings for part in (recording, gap)][:-1])
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _document(text: Mapping[str, str]) -> bytes:
    return json.dumps({"text": dict(text)}, ensure_ascii=False).encode()
