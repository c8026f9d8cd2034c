"""Names of some 16,000 cities, regions and small languages: so many that what they teach is how names are written."""

import gettext
import io
import re
from collections.abc import Iterator
from pathlib import Path

from anyxform.starter.archives import files
from anyxform.starter.download import CITIES, NAMES, fetch
from anyxform.starter.draft import LANGUAGES, Draft, safe_key
from anyxform.starter.names import names
from anyxform.starter.splits import normalised

CATALOGUES = {
    "cities": (CITIES, "libgweather-4.0-locations.mo"),
    "regions": (NAMES, "iso_3166-2.mo"),
    "languages": (NAMES, "iso_639-3.mo"),
}
CYRILLIC = ("ru", "bg")
LONGEST = 60
"""Characters; the few longer names are lists of names."""


def gazetteer(cache: Path) -> Iterator[Draft]:
    """One draft a name that is written in at least three languages beside English, alike or not.

    What `names` has already, by two of its texts, is left out: the splits know equal English names only.
    """
    known = {(language, normalised(text)) for draft in names(cache) for language, text in draft.text.items()}
    seen = set()
    for kind, (package, catalogue) in CATALOGUES.items():
        for text in _texts(dict(files(fetch(package, cache))), catalogue):
            shared = sum((language, normalised(name)) in known for language, name in text.items())
            key = safe_key(f"{kind}-{text['en']}")
            if len(text) >= 4 and shared < 2 and key not in seen:
                seen.add(key)
                yield Draft("gazetteer", key, text, about=f"names of {kind}")


def _texts(content: dict[str, bytes], catalogue: str) -> Iterator[dict[str, str]]:
    """The English name and its translations, of every entry of a catalogue, in the order of the names."""
    translated: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        data = content.get(f"usr/share/locale/{language}/LC_MESSAGES/{catalogue}")
        if data is None:
            continue
        for name, text in gettext.GNUTranslations(io.BytesIO(data))._catalog.items():  # type: ignore[attr-defined]
            if isinstance(name, str) and name:
                translated.setdefault(name, {})[language] = text
    for name, by_language in sorted(translated.items()):
        english = name.split("\x04")[-1]  # before it, which of the places of this name is meant
        written = {"en": english} | {
            language: text
            for language, text in by_language.items()
            if bool(re.search("[а-яА-Я]", text)) == (language in CYRILLIC)
        }
        if max(map(len, written.values())) <= LONGEST and not any(";" in text for text in written.values()):
            yield written
