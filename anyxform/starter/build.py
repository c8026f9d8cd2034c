"""``anyxform data starter OUT``: downloads, converts, splits and writes the starter dataset as webdataset shards."""

import hashlib
import importlib.util
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile
from webdataset import TarWriter

from anyxform.starter.download import PACKAGES, fetch
from anyxform.starter.draft import Draft
from anyxform.starter.splits import groups, hold_out, split_of

SPLITS = ("train", "val", "test", "instance")
SHARD_BYTES = 8_000_000


def build(out: Path, cache: Path, log: Callable[[str], None] = print) -> None:
    """Write ``OUT/DATASET/SPLIT-NNNNNN.tar``, ``stats.json`` and ``ATTRIBUTION.md``.

    ValueError: a client or library that is needed is missing, or a package is not what it was.
    """
    for library, package in {"resvg_py": "resvg_py", "av": "av"}.items():
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"building the starter needs {package}: pip install 'anyxform[starter]'")
    from anyxform.starter.emoji import emoji, styles
    from anyxform.starter.gazetteer import gazetteer
    from anyxform.starter.names import names
    from anyxform.starter.phrases import phrases
    from anyxform.starter.prompts import prompts
    from anyxform.starter.stamps import stamps

    for wanted in PACKAGES:  # all of them first: whatever is missing shows at once
        fetch(wanted, cache)
    drafts: list[Draft] = []
    sources = (emoji, styles, stamps, prompts, names, gazetteer)
    with ProcessPoolExecutor() as pool:  # drawing and encoding take minutes
        for source, found in zip(sources, pool.map(_read, sources, [cache] * len(sources))):
            log(f"read {source.__name__}: {len(found)} samples")
            drafts += found
        if importlib.util.find_spec("ttspico") is None:
            log("without spoken texts: they need a synthesizer, pip install 'anyxform[spoken]'")
        else:
            texts = [draft for draft in drafts if draft.dataset != "styles"]  # whose texts are those of emoji
            texts += phrases(cache)
            chunks = [texts[start : start + 500] for start in range(0, len(texts), 500)]
            said = [draft for found in pool.map(_speak, chunks) for draft in found]
            log(f"said the texts of {len(said)} samples")
            drafts += said
    splits = _split(drafts)
    stats: dict[str, dict[str, Any]] = {
        "datasets": {dataset: {split: _count(parts) for split, parts in by.items()} for dataset, by in splits.items()},
        "shards": {},
    }
    for dataset, by_split in splits.items():
        for split, parts in by_split.items():
            log(f"writing {dataset}/{split}: {len(parts)} samples")
            for path in _write(parts, out / dataset, split):
                stats["shards"][str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "stats.json").write_text(json.dumps(stats, indent=1, sort_keys=True) + "\n")
    (out / "ATTRIBUTION.md").write_text(_attribution())


def _speak(drafts: Iterable[Draft]) -> list[Draft]:
    from anyxform.starter.spoken import spoken

    return list(spoken(drafts))


def _read(source: Callable[[Path], Iterable[Draft]], cache: Path) -> list[Draft]:
    return list(source(cache))


def _split(drafts: Iterable[Draft]) -> dict[str, dict[str, list[Draft]]]:
    """Drafts by dataset and split; of equal pictures or recordings in several splits, only one split keeps its own."""
    drafts = sorted(drafts, key=lambda draft: (draft.dataset, draft.key))
    group_of = groups(drafts)
    splits: dict[str, dict[str, list[Draft]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    for draft in drafts:
        split = split_of(group_of[draft.dataset, draft.key])
        held = hold_out(draft) if split == "train" else set()
        if held:
            instance = {ending: data for ending, data in draft.media.items() if ending in held}
            splits[draft.dataset]["instance"].append(
                Draft(draft.dataset, draft.key, draft.text, instance, about=draft.about)
            )
        kept = {ending: data for ending, data in draft.media.items() if ending not in held}
        splits[draft.dataset][split].append(Draft(draft.dataset, draft.key, draft.text, kept, about=draft.about))
    taken: set[bytes] = set()
    for split in ("test", "val", "instance", "train"):
        parts = [draft for by in splits.values() for draft in by[split]]
        for draft in parts:
            draft.media = {ending: data for ending, data in draft.media.items() if data not in taken}
        taken |= {data for draft in parts for data in draft.media.values()}
    for by in splits.values():
        by["instance"] = [draft for draft in by["instance"] if draft.media]
    return splits


def _count(drafts: list[Draft]) -> dict[str, float]:
    """Samples, samples a field, and minutes of each kind of recording."""
    counts: Counter[str] = Counter(samples=len(drafts))
    minutes: dict[str, float] = defaultdict(float)
    for draft in drafts:
        counts.update(f"text:{language}" for language in draft.text)
        counts.update(draft.media.keys())
        for ending, data in draft.media.items():
            if ending.endswith(".ogg"):
                minutes[f"minutes {ending}"] += soundfile.info(BytesIO(data)).duration / 60
    return {**counts, **{name: round(value, 1) for name, value in minutes.items()}}


def _write(drafts: list[Draft], folder: Path, split: str) -> list[Path]:
    """Shards of at most about 8 MB, the same bytes for the same samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{split}-*.tar"):
        old.unlink()
    paths: list[Path] = []
    writer, size = None, SHARD_BYTES
    for draft in drafts:
        if size >= SHARD_BYTES:
            if writer:
                writer.close()
            paths.append(folder / f"{split}-{len(paths):06d}.tar")
            writer, size = TarWriter(str(paths[-1]), mtime=0, user="anyxform", group="anyxform", mode=0o644), 0
        content = {"text": dict(sorted(draft.text.items())), "source": draft.about}
        document = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        sample = {"__key__": draft.key, "json": document, **dict(sorted(draft.media.items()))}
        assert writer is not None
        size += writer.write(sample)
    if writer:
        writer.close()
    for path in paths:
        with tarfile.open(path) as tar:
            assert tar.getnames(), path
    return paths


def _attribution() -> str:
    lines = [
        "# Attribution",
        "",
        "The starter dataset is made of parts of these packages. Pictures were drawn at 64 × 64 on white; recordings",
        "were resampled to 16 kHz, trimmed of silence and encoded as Opus; texts are unchanged. Each part keeps its",
        "licence: the shards of `emoji`, `styles`, `prompts`, `stamps`, `names`, `gazetteer` are under the licences of",
        "their sources, not under that of the program.",
        "",
        "| package | version | licence | what it is |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {p.name} | {p.version} | {p.licence} | {p.about} |" for p in PACKAGES]
    said = "The recordings of `spoken` and `phrases` are these texts, said by SVOX Pico (PyPI's `ttspico`, Apache-2.0)."
    lines += ["", said]
    return "\n".join(lines) + "\n"
