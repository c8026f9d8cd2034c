"""The starter's texts said by a synthesizer, SVOX Pico: one voice for each of five languages.

It says nothing twice in quite the same way: an engine goes on from what it has said.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np

from anyxform.starter.draft import LONGEST, SAMPLE_RATE, Draft, opus, trim
from anyxform.starter.splits import share

VOICES = {"de": "de-DE", "en": "en-US", "es": "es-ES", "fr": "fr-FR", "it": "it-IT"}
FEWER = "gazetteer"
"""The dataset of which each name is said in one language alone."""
ALONE = "phrases"
"""The dataset that is nothing but what is said of it, and keeps its name."""
MOST = 90
"""Characters; longer texts would take more than `LONGEST` seconds."""


def spoken(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """A draft for each whose texts can be said, with the same texts, so that it is in its split.

    Its dataset is `spoken`, but `phrases` for those of it.
    """
    for draft in drafts:
        languages = [it for it in VOICES if it in draft.text and len(draft.text[it]) <= MOST]
        if draft.dataset == FEWER and languages:
            languages = [languages[share(f"spoken {draft.key}", len(languages))]]
        media = {}
        for language in languages:
            samples = _said(language, draft.text[language])
            if 0.2 * SAMPLE_RATE < len(samples) <= LONGEST * SAMPLE_RATE:
                media[f"{language}-pico.ogg"] = opus(samples)
        if media:
            alone = draft.dataset == ALONE
            dataset, key = (ALONE, draft.key) if alone else ("spoken", f"{draft.dataset}-{draft.key}")
            yield Draft(dataset, key, draft.text, media, about=draft.about)


def _said(language: str, text: str) -> np.ndarray:
    """Mono samples at 16 kHz, without the silence around them."""
    data = _engine(language).speak(text.replace("<", " ").replace("&", " "))  # else it reads them as marks
    return trim(np.frombuffer(data or b"", dtype="<i2").astype(np.float32) / 32768)


@cache
def _engine(language: str):  # type: ignore[no-untyped-def]
    from ttspico import TtsEngine

    return TtsEngine(VOICES[language])
