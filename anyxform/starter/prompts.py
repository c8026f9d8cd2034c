"""Telephone prompts: the same sentence spoken in five languages."""

import gzip
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anyxform.starter.archives import files
from anyxform.starter.download import PROMPTS, fetch
from anyxform.starter.draft import LONGEST, SAMPLE_RATE, Draft, opus, outliers, safe_key, trim


def prompts(cache: Path) -> Iterator[Draft]:
    """One draft a prompt, with its English text: transcripts and recordings in as many languages as have both."""
    drafts: dict[str, Draft] = {}
    for language, (recordings, transcripts) in PROMPTS.items():
        text = _transcripts(fetch(transcripts, cache))
        entries = []
        for path, data in files(fetch(recordings, cache)):
            name = path.partition("sounds/")[2].partition("/")[2].removesuffix(".g722")  # behind the voice's folder
            if path.endswith(".g722") and name in text:
                draft = drafts.setdefault(name, Draft("prompts", safe_key(name), {}, about=name))
                draft.text[language] = text[name]
                draft.origins.add(hashlib.sha256(data).hexdigest())
                entries.append((draft, trim(_decode(data))))
        strange = outliers([len(d.text[language]) for d, _ in entries], [len(s) / SAMPLE_RATE for _, s in entries])
        for (draft, samples), is_strange in zip(entries, strange):
            if not is_strange and 0.2 * SAMPLE_RATE < len(samples) <= LONGEST * SAMPLE_RATE:
                draft.media[f"{language}-phone.ogg"] = opus(samples)
    yield from (draft for _, draft in sorted(drafts.items()) if "en" in draft.text)


def _transcripts(package: Path) -> dict[str, str]:
    """Lines ``key: text``; a text in brackets describes a sound and is nothing that is spoken."""
    text = {}
    for path, data in files(package):
        if "core-sounds" in path and path.endswith(".txt.gz"):
            for line in gzip.decompress(data).decode("utf-8", "replace").splitlines():
                key, colon, words = line.partition(":")
                words = words.strip()
                if colon and words and not line.startswith(";") and "[" not in words and "(" not in words:
                    text[key.strip()] = words
    return text


def _decode(data: bytes) -> np.ndarray:
    import av

    with av.open(io.BytesIO(data), mode="r", format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 32768
