"""Pictures of what the starter makes of items that a seed chooses, the bad with the good.

    python -m benchmarks.gallery [CHECKPOINT] [SEED] [FOLDER]

Needs the extra `eval`. ``starter.png`` is of held-out items alone. A name's drawing in a style is one picture, so that
what it was trained to draw is known by heart: of that is ``starter-drawings.png``.
"""

import sys
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anyxform.evaluate import Item
from anyxform.pipeline import Pipeline, load
from anyxform.selection import choose_items
from benchmarks import starter
from modalities.audio.judge import transcribe

COLUMNS = 8
Row = tuple[str, str, str, str]
CAPTIONS: tuple[Row, ...] = (  # what it shows, split, direction, which dataset
    ("drawings of an unseen style → English", "instance", "image:openmoji>text:en", "emoji"),
    ("the same → French", "instance", "image:openmoji>text:fr", "emoji"),
)
DRAWINGS: Row = ("English → drawing in a style it never saw it in", "instance", "text:en>image:twemoji", "emoji")
TRAINED: Row = ("English → drawing that was trained on", "train", "text:en>image:noto", "emoji")
TRANSCRIPTS: Row = ("recordings of seen sentences → text", "instance", "audio:*>text:*", "prompts")
SPEECH: Row = ("English sentences, never seen → speech", "test", "text:en>audio:en-phone", "prompts")


def main(checkpoint: str = "starter", seed: str = "0", folder: str = "docs/images") -> None:
    ax, first = load(checkpoint), int(seed)
    figure, axes = plt.subplots(6, COLUMNS, figsize=(13, 11))
    figure.subplots_adjust(left=0.11, right=0.99, top=0.94, bottom=0.02, wspace=0.1, hspace=0.5)
    for number, row in enumerate(CAPTIONS):
        captions(ax, first + number, row, axes[number])
    drawings(ax, first, DRAWINGS, axes[2])
    recordings(ax, first, TRANSCRIPTS, axes[3:5], transcripts)
    recordings(ax, first, SPEECH, axes[5:6], spoken)
    saved(figure, f"{folder}/starter.png")
    figure, axes = plt.subplots(2, COLUMNS, figsize=(13, 3.8))
    figure.subplots_adjust(left=0.11, right=0.99, top=0.88, bottom=0.02, wspace=0.1, hspace=0.5)
    for number, places in enumerate(axes):
        drawings(ax, first + number, TRAINED, places)
    saved(figure, f"{folder}/starter-drawings.png")


def saved(figure: Figure, path: str) -> None:
    figure.savefig(path, dpi=80)
    print(path)


def chosen(ax: Pipeline, seed: int, row: Row, count: int) -> list[Item]:
    _, split, direction, name = row
    dataset = {name: starter.datasets(dict(ax.modalities), split)[name]}
    items = choose_items(dataset, ax.modalities, patterns=[direction], limit=1500, seed=seed).items
    items = [it for it in items if it.direction.sources[0].modality != "audio" or same_language(it)]
    return [items[number] for number in np.random.default_rng(seed).permutation(len(items))[:count]]


def same_language(item: Item) -> bool:
    return item.direction.sources[0].attributes[:1] == item.direction.target.attributes[:1]


def answers(ax: Pipeline, items: Sequence[Item], **options: Any) -> list[Any]:
    return ax.answer([it.direction for it in items], [it.sources for it in items], **options)


def captions(ax: Pipeline, seed: int, row: Row, axes: Sequence[Axes]) -> None:
    items = chosen(ax, seed, row, COLUMNS)
    for place, item, answer in zip(axes, items, answers(ax, items)):
        right = answer in (item.reference, *item.alternatives)
        show(place, item.sources[0], f"{'✓' if right else '✗'} {answer}", "" if right else f"({item.reference})")
    name(axes[0], row)


def drawings(ax: Pipeline, seed: int, row: Row, axes: Sequence[Axes]) -> None:
    """Of two names the drawing that there is, and three that are made."""
    for number, item in enumerate(chosen(ax, seed, row, 2)):
        places = axes[4 * number : 4 * number + 4]
        show(places[0], item.reference, f"“{item.sources[0]}”", "the original")
        for place, value in zip(places[1:], answers(ax, [item] * 3, seed=seed)):
            show(place, value, "drawn")
    name(axes[0], row)


def transcripts(ax: Pipeline, items: Sequence[Item]) -> list[tuple[Any, str, str]]:
    """The recordings, what is said in them, and what the model writes."""
    joint = {"align_weight": 0.5, "num_beams": 4} if ax.facts["facts"].get("aligned") else {}
    heard = answers(ax, items, **joint)
    return [(item.sources[0], f"said: {item.reference}", f"written: {answer}") for item, answer in zip(items, heard)]


def spoken(ax: Pipeline, items: Sequence[Item]) -> list[tuple[Any, str, str]]:
    """What the model says, what it was to say, and what an independent judge hears in it."""
    values = answers(ax, items)
    return [
        (value, f"asked for: {item.sources[0]}", f"Whisper hears: {heard}")
        for value, item, heard in zip(values, items, transcribe(values))
    ]


def recordings(
    ax: Pipeline,
    seed: int,
    row: Row,
    axes: Sequence[Sequence[Axes]],
    told: Callable[[Pipeline, Sequence[Item]], list[tuple[Any, str, str]]],
) -> None:
    """Two a line, each with its words over four columns."""
    items = chosen(ax, seed, row, 2 * len(axes))
    audio = ax.modalities["audio"]
    for number, (item, (value, *lines)) in enumerate(zip(items, told(ax, items))):
        first = 4 * (number % 2)
        picture, text = axes[number // 2][first], axes[number // 2][first + 1]
        picture.imshow(audio.preprocess(value).T, origin="lower", aspect="auto", cmap="magma")
        said = (f"{item.direction}", *lines)
        text.text(0, 0.9, "\n\n".join("\n".join(wrap(line, 60)) for line in said), va="top", fontsize=8)
        for place in axes[number // 2][first : first + 4]:
            bare(place)
    name(axes[0][0], row)


def show(place: Axes, value: Any, *lines: str) -> None:
    place.imshow(value.resize((128, 128)))
    place.set_title("\n".join("\n".join(wrap(line, 21)) for line in lines if line), fontsize=7)
    bare(place)


def name(place: Axes, row: Row) -> None:
    place.set_ylabel("\n".join(wrap(row[0], 18)), fontsize=8, rotation=0, ha="right", va="center")


def bare(place: Axes) -> None:
    place.set_facecolor("none")  # so that the text of a neighbour shows
    place.set_xticks([])
    place.set_yticks([])
    for side in place.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
