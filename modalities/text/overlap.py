"""Transcripts of overlapping windows: which words both have, and where to go over from one to the other."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_UNSPACED = "\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff9f"
"""Scripts that put no space between words: Chinese and Japanese."""
WORDS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ENDS, _STARTS = re.compile(rf"[{_UNSPACED}]$"), re.compile(rf"^[{_UNSPACED}]")
ALIKE = 0.75
"""From this share of common letters on, two words are one that was heard in two ways."""
APART = 0.5
"""What a word without its like in the other text takes from an alignment, to which a pair of like ones gives 1."""

Pairs = tuple[tuple[int, int], ...]


def touches(before: str, after: str) -> bool:
    """Whether no space belongs between the two, by their scripts."""
    return bool(_ENDS.search(before) and _STARTS.search(after))


def seam(before: str, after: str, expected: float) -> tuple[int, int]:
    """Up to which character of `before`, and from which of `after`, a text is to be made of the two.

    `expected`: how many words of `after` they are thought to share. The end of the one is aligned with the beginning
    of the other, and the seam put behind the middle one of the words that are alike: those at the edges of windows,
    where half of one may be missing, are then those of the other window. Where no alignment is better than none,
    everything is kept, as a word said twice is easier to mend than a lost one.
    """
    ends = [match.end() for match in WORDS.finditer(before)]
    starts = [match.start() for match in WORDS.finditer(after)]
    most = int(2 * expected) + 4
    tail, head = _plain(before)[-most:], _plain(after)[:most]
    alike = _aligned(tail, head, expected)
    if not alike:
        return len(before), 0
    n, m = alike[len(alike) // 2]
    return ends[len(ends) - len(tail) + n], starts[m + 1] if m + 1 < len(starts) else len(after)


def _aligned(tail: Sequence[str], head: Sequence[str], expected: float) -> Pairs:
    """Which words are alike in the best alignment of all of a tail's end with all of a head's beginning.

    Needleman and Wunsch's algorithm, in which the words before that end and behind that beginning cost nothing.
    """
    row: list[tuple[float, Pairs]] = [(-APART * m, ()) for m in range(len(head) + 1)]
    for n, one in enumerate(tail):
        last, row = row, [(0.0, ())]
        for m, other in enumerate(head):
            (score, pairs), like = last[m], _alike(one, other)
            both = (score + 1, (*pairs, (n, m))) if like else (score - APART, pairs)
            skips = [(score - APART, pairs) for score, pairs in (last[m + 1], row[m])]
            row.append(max(both, *skips, key=lambda it: it[0]))
    unlikely = [abs(m - expected) / (1 + expected) for m in range(len(row))]
    score, pairs = max(((score - less, pairs) for (score, pairs), less in zip(row, unlikely)), key=lambda it: it[0])
    return pairs if score > 0 else ()


def _plain(text: str) -> list[str]:
    """Its words without case and punctuation."""
    return [re.sub(r"\W", "", word).casefold() or word for word in WORDS.findall(text)]


def _alike(one: str, other: str) -> bool:
    return one == other or SequenceMatcher(None, one, other, autojunk=False).ratio() >= ALIKE
