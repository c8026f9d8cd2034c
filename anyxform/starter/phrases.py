"""English phrases of three words and more, for a synthesizer to say: WordNet's examples of how words are used."""

import re
from collections.abc import Iterator
from pathlib import Path

from anyxform.starter.archives import files
from anyxform.starter.download import WORDS, fetch
from anyxform.starter.draft import Draft
from anyxform.starter.splits import normalised, share

KINDS = ("adj", "adv", "noun", "verb")
SHORTEST, LONGEST = 12, 60
"""Characters; few longer ones are said within four seconds."""


def phrases(cache: Path) -> Iterator[Draft]:
    """Some 37,000 texts without recordings."""
    content = dict(files(fetch(WORDS, cache)))
    found: dict[str, str] = {}
    for kind in KINDS:
        for text in examples(content[f"usr/share/wordnet/data.{kind}"].decode()):
            found.setdefault(normalised(text), text)
    for text, phrase in sorted(found.items()):
        yield Draft("phrases", f"{share(text, 2**48):012x}", {"en": phrase}, about="examples of WordNet")


def examples(data: str) -> Iterator[str]:
    """What stands between quotation marks in the entries of a file of WordNet, where it is words alone, and three."""
    for line in data.splitlines():
        for text in re.findall(r'"([^"]+)"', line.partition("|")[2]):
            text = text.strip(" .;")
            if SHORTEST <= len(text) <= LONGEST and re.fullmatch(r"[A-Za-z ,'?!-]+", text) and len(text.split()) >= 3:
                yield text
