"""Names of countries, languages, currencies and scripts in many languages."""

import gettext
import io
import json
from collections.abc import Iterator
from pathlib import Path

from anyxform.starter.archives import files
from anyxform.starter.download import NAMES, fetch
from anyxform.starter.draft import LANGUAGES, Draft, safe_key

LISTS = ("3166-1", "639-2", "4217", "15924")


def names(cache: Path) -> Iterator[Draft]:
    """One draft a name that is translated into at least three languages."""
    content = dict(files(fetch(NAMES, cache)))
    for standard in LISTS:
        translations = {
            language: gettext.GNUTranslations(io.BytesIO(data))
            for language in LANGUAGES
            if (data := content.get(f"usr/share/locale/{language}/LC_MESSAGES/iso_{standard}.mo"))
        }
        for entry in json.loads(content[f"usr/share/iso-codes/json/iso_{standard}.json"])[standard]:
            english = entry.get("common_name", entry["name"])
            text = {"en": english}
            for language, catalogue in translations.items():
                translated = catalogue.gettext(english)
                if translated != english:  # gettext gives back what it does not know
                    text[language] = translated
            code = entry.get("alpha_3") or entry.get("alpha_4") or entry["name"]
            if len(text) >= 4 and ";" not in english:
                yield Draft("names", safe_key(f"{standard}-{code}"), text, about=f"ISO {standard}")
