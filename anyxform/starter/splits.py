"""Which split a sample belongs to, so that a concept is in one split everywhere, and what is held out of training.

Splits: train, val and test hold different concepts (*unseen concept*). From the samples of train, some pictures and
recordings are taken out into `instance` (*seen concept, unseen instance*).
"""

import hashlib
import re
from collections.abc import Iterable

from anyxform.starter.draft import Draft

HELD_OUT_STYLE = "openmoji.webp"
"""Held out of training altogether."""
CLOSER_STYLE = "twemoji.webp"
"""Held out for one concept in ten, where at least three other drawings stay."""


def share(text: str, parts: int) -> int:
    """A number below `parts` that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % parts


def normalised(caption: str) -> str:
    """A caption without what does not change its meaning: case, punctuation, a leading article."""
    words = re.sub(r"[^\w\s]", " ", caption.lower()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the", "some") else words)


class UnionFind:
    """Disjoint sets of strings; the name of a set is its smallest member, whatever the order of joining."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, item: str) -> str:
        root = item
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        while self.parent[item] != root:
            self.parent[item], item = root, self.parent[item]
        return root

    def join(self, a: str, b: str) -> None:
        first, second = sorted((self.find(a), self.find(b)))
        self.parent[second] = first


def groups(drafts: Iterable[Draft]) -> dict[tuple[str, str], str]:
    """The group of each (dataset, key): joined by normalised English caption and by recording."""
    sets = UnionFind()
    captions = {}
    for draft in drafts:
        caption = normalised(draft.text["en"])
        captions[draft.dataset, draft.key] = caption
        sets.find(caption)
        for origin in draft.origins:
            sets.join(caption, f"~{origin}")  # sorts behind every caption, so that a set is named by a caption
    return {sample: sets.find(caption) for sample, caption in captions.items()}


def split_of(group: str) -> str:
    """80 % train, 10 % val, 10 % test."""
    return {0: "val", 1: "test"}.get(share(group, 10), "train")


def hold_out(draft: Draft) -> set[str]:
    """Endings of the media of a training sample that are taken out of training."""
    held = {HELD_OUT_STYLE} & draft.media.keys()
    drawings = [ending for ending in draft.media if ending.endswith(".webp")]
    if CLOSER_STYLE in drawings and len(set(drawings) - held) > 3 and share(f"style {draft.key}", 10) == 0:
        held.add(CLOSER_STYLE)
    spoken = sorted(ending for ending in draft.media if ending.endswith(".ogg") and ending != "effect.ogg")
    if len(spoken) >= 2 and share(f"recording {draft.key}", 10) == 0:
        held.add(spoken[share(f"which {draft.key}", len(spoken))])
    return held
