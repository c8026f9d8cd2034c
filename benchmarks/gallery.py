"""A picture of what the starter makes of held-out items that a seed chooses, the bad with the good.

    python -m benchmarks.gallery [CHECKPOINT] [SEED] [OUT]

Needs the extra `eval`. A name's drawing in a style is one picture: in noto it was trained on, in twemoji never seen.
"""

import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from anyxform.evaluate import Item
from anyxform.pipeline import Pipeline, load
from anyxform.selection import choose_items
from benchmarks import starter

COLUMNS = 8
ROWS = (  # what it shows, split, direction, which dataset
    ("drawings of an unseen style → English", "instance", "image:openmoji>text:en", "emoji"),
    ("the same → French", "instance", "image:openmoji>text:fr", "emoji"),
    ("English → drawing that was trained on", "train", "text:en>image:noto", "emoji"),
    ("English → drawing in a style it never saw it in", "instance", "text:en>image:twemoji", "emoji"),
    ("recordings of seen sentences → text", "instance", "audio:*>text:*", "prompts"),
)


def main(checkpoint: str = "starter", seed: str = "0", out: str = "docs/images/starter.png") -> None:
    ax = load(checkpoint)
    figure, axes = plt.subplots(6, COLUMNS, figsize=(13, 11))
    figure.subplots_adjust(left=0.09, right=0.99, top=0.94, bottom=0.02, wspace=0.1, hspace=0.5)
    captions(ax, int(seed), ROWS[0], axes[0])
    captions(ax, int(seed) + 1, ROWS[1], axes[1])
    drawings(ax, int(seed), ROWS[2], axes[2])
    drawings(ax, int(seed), ROWS[3], axes[3])
    transcripts(ax, int(seed), ROWS[4], axes[4:6])
    figure.savefig(out, dpi=80)
    print(out)


def chosen(ax: Pipeline, seed: int, row: tuple[str, ...], count: int) -> list[Item]:
    _, split, direction, name = row
    dataset = {name: starter.datasets(dict(ax.modalities), split)[name]}
    items = choose_items(dataset, ax.modalities, patterns=[direction], limit=1500, seed=seed).items
    items = [it for it in items if it.direction.sources[0].modality != "audio" or same_language(it)]
    return [items[number] for number in np.random.default_rng(seed).permutation(len(items))[:count]]


def same_language(item: Item) -> bool:
    return item.direction.sources[0].attributes[:1] == item.direction.target.attributes[:1]


def answers(ax: Pipeline, items: Sequence[Item], **options: Any) -> list[Any]:
    return ax.answer([it.direction for it in items], [it.sources for it in items], **options)


def captions(ax: Pipeline, seed: int, row: tuple[str, ...], axes: Sequence[Axes]) -> None:
    items = chosen(ax, seed, row, COLUMNS)
    for place, item, answer in zip(axes, items, answers(ax, items)):
        right = answer in (item.reference, *item.alternatives)
        show(place, item.sources[0], f"{'✓' if right else '✗'} {answer}", "" if right else f"({item.reference})")
    name(axes[0], row)


def drawings(ax: Pipeline, seed: int, row: tuple[str, ...], axes: Sequence[Axes]) -> None:
    """Of two names the drawing that there is, and three that are made."""
    for number, item in enumerate(chosen(ax, seed, row, 2)):
        places = axes[4 * number : 4 * number + 4]
        show(places[0], item.reference, f"“{item.sources[0]}”", "the original")
        for place, value in zip(places[1:], answers(ax, [item] * 3, seed=seed)):
            show(place, value, "drawn")
    name(axes[0], row)


def transcripts(ax: Pipeline, seed: int, row: tuple[str, ...], axes: Sequence[Sequence[Axes]]) -> None:
    """Four a row, each over two columns."""
    items = chosen(ax, seed, row, 4)
    audio = ax.modalities["audio"]
    joint = {"align_weight": 0.5, "num_beams": 4} if ax.facts["facts"].get("aligned") else {}
    for number, (item, answer) in enumerate(zip(items, answers(ax, items, **joint))):
        first = 4 * (number % 2)
        picture, text = axes[number // 2][first], axes[number // 2][first + 1]
        picture.imshow(audio.preprocess(item.sources[0]).T, origin="lower", aspect="auto", cmap="magma")
        lines = (f"{item.direction}", f"said: {item.reference}", f"heard: {answer}")
        text.text(0, 0.9, "\n\n".join("\n".join(wrap(line, 60)) for line in lines), va="top", fontsize=8)
        for place in axes[number // 2][first : first + 4]:
            bare(place)
    name(axes[0][0], row)


def show(place: Axes, value: Any, *lines: str) -> None:
    place.imshow(value.resize((128, 128)))
    place.set_title("\n".join("\n".join(wrap(line, 21)) for line in lines if line), fontsize=7)
    bare(place)


def name(place: Axes, row: tuple[str, ...]) -> None:
    place.set_ylabel("\n".join(wrap(row[0], 18)), fontsize=8, rotation=0, ha="right", va="center")


def bare(place: Axes) -> None:
    place.set_facecolor("none")  # so that the text of a neighbour shows
    place.set_xticks([])
    place.set_yticks([])
    for side in place.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
