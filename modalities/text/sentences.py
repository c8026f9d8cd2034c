"""Where a text is cut to be read: behind sentences and lines; a sentence that is too long, behind clauses or words."""

import re
from collections.abc import Callable, Iterator

# what stands before a match is no part of it, so that long rows of signs or spaces are read but once
_SENTENCE = re.compile(r"(?<![.!?…])[.!?…]++[\"'»”’)\]]*+\s+|[。！？]+[」』）]*|(?<!\s)\s*\n\s*")
_CLAUSE = re.compile(r"[,;:–—]\s+|[，、；：]")
_WORD = re.compile(r"\s+")

Span = tuple[int, int]
"""Characters from, and up to but without."""


def spans(text: str, longest: Callable[[str], int]) -> Iterator[Span]:
    """Spans of a text that say everything but the white space between them.

    `longest`: how many characters of the beginning of a text the model reads, at least one.
    """
    for start, end in sentences(text):
        while start < end:
            cut = start + longest(text[start:end])
            if cut < end:
                cut = _cut(text, start, cut)
            yield _stripped(text, start, cut)
            start = _stripped(text, cut, end)[0]


def sentences(text: str) -> Iterator[Span]:
    """Sentences and lines. After an abbreviation nothing is cut only if a small letter follows: ``e.g. this``."""
    start = 0
    for match in _SENTENCE.finditer(text):
        if "\n" not in match[0] and text[match.end() : match.end() + 1].islower():
            continue
        if text[start : match.end()].strip():
            yield _stripped(text, start, match.end())
            start = match.end()
    if text[start:].strip():
        yield _stripped(text, start, len(text))


def _cut(text: str, start: int, limit: int) -> int:
    """The best place up to `limit`: behind the last clause, if it is not too short, else the last word, else there."""
    clauses = [match.end() for match in _CLAUSE.finditer(text, start, limit)]
    if clauses and clauses[-1] - start > (limit - start) // 3:
        return clauses[-1]
    words = [match.end() for match in _WORD.finditer(text, start, limit + 1)]
    return min(words[-1], limit) if words and words[-1] > start else limit


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
