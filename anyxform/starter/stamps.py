"""Tux Paint stamps: a picture, its caption in many languages, people who read the caption, sometimes its sound."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from PIL import Image

from anyxform.starter.archives import files
from anyxform.starter.download import STAMPS, fetch
from anyxform.starter.draft import LANGUAGES, LONGEST, SAMPLE_RATE, Draft, opus, outliers, safe_key, trim, webp

SPOKEN = ("fr", "ru", "ro", "bg", "es")
"""The languages in which the duration of a recording goes with the length of its caption."""


def stamps(cache: Path) -> Iterator[Draft]:
    """One draft a stamp; a recording that several stamps share stays with the first of them."""
    root = "usr/share/tuxpaint/stamps/"
    content = {path.removeprefix(root): data for path, data in files(fetch(STAMPS, cache)) if path.startswith(root)}
    drafts, seen = [], set[str]()
    recordings: dict[str, list[tuple[Draft, np.ndarray]]] = {language: [] for language in SPOKEN}
    for path in sorted(content):
        stem, _, ending = path.rpartition(".")
        if (
            ending not in ("png", "svg")
            or (ending == "svg" and f"{stem}.png" in content)
            or f"{stem}.txt" not in content
        ):
            continue
        text = _captions(content[f"{stem}.txt"])
        if "en" not in text:
            continue
        picture = _picture(content[path], ending)
        draft = Draft("stamps", safe_key(stem), text, {"stamp.webp": webp(picture)} if picture else {}, about=stem)
        drafts.append(draft)
        for language in SPOKEN:
            data = content.get(f"{stem}_desc_{language}.ogg")
            if data is not None and language in text and _first(data, draft, seen):
                recordings[language].append((draft, _samples(data)))
        effect = content.get(f"{stem}.ogg")
        if effect is not None and _first(effect, draft, seen):
            _add(draft, "effect.ogg", _samples(effect))
    for language, entries in recordings.items():
        lengths = [len(draft.text[language]) for draft, _ in entries]
        strange = outliers(lengths, [len(samples) / SAMPLE_RATE for _, samples in entries])
        for (draft, samples), is_strange in zip(entries, strange):
            if not is_strange:
                _add(draft, f"{language}-tux.ogg", samples)
    yield from drafts


def _captions(data: bytes) -> dict[str, str]:
    first, *lines = data.decode("utf-8", "replace").splitlines() or [""]
    text = {"en": first.strip()}
    for line in lines:
        language, _, caption = line.partition(".utf8=")
        if language in LANGUAGES and caption.strip():
            text[language] = caption.strip()
    return {language: caption for language, caption in text.items() if caption}


def _picture(data: bytes, ending: str) -> Image.Image | None:
    """The stamp's picture; None for the few SVGs that state no size and so cannot be drawn."""
    if ending == "svg":
        import resvg_py

        try:
            data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=256, height=256))
        except ValueError:
            return None
    return Image.open(io.BytesIO(data))


def _first(data: bytes, draft: Draft, seen: set[str]) -> bool:
    """Whether these bytes are met for the first time; either way they bind the draft to all that share them."""
    digest = hashlib.sha256(data).hexdigest()
    draft.origins.add(digest)
    new = digest not in seen
    seen.add(digest)
    return new


def _samples(data: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = AF.resample(torch.from_numpy(samples.mean(axis=1)), rate, SAMPLE_RATE)
    return trim(mono.numpy())


def _add(draft: Draft, ending: str, samples: np.ndarray) -> None:
    if 0.2 * SAMPLE_RATE < len(samples) <= LONGEST * SAMPLE_RATE:
        draft.media[ending] = opus(samples)
