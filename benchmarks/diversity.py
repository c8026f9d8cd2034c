"""How different the drawings of one name are: several seeds beside each other, and beside drawings of other names.

    python -m benchmarks.diversity [CHECKPOINT] [NAMES] [SEEDS]

Needs the extra `eval`. Likeness, the mean over pairs, is the cosine between the features of a classifier that had no
part in training (1: the same picture), and SSIM. Asked for are trained names in their style, and names in a style that
they were never seen in; beside them stand the originals of different names.
"""

import sys
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from PIL.Image import Image as Picture

from anyxform.pipeline import Pipeline, load
from anyxform.selection import choose_items
from benchmarks import starter
from modalities.image.judge import features
from modalities.image.quality import ssim

ASKED = (("trained", "train", "text:en>image:noto"), ("unseen style", "instance", "text:en>image:twemoji"))
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, guidance 1": {"temperature": 1.0, "guidance": 1.0},
}


def main(checkpoint: str = "starter", names: str = "60", seeds: str = "4") -> None:
    ax = load(checkpoint)
    for label, split, direction in ASKED:
        dataset = {"emoji": starter.datasets(dict(ax.modalities), split)["emoji"]}
        items = choose_items(dataset, ax.modalities, patterns=[direction], limit=int(names), seed=0).items
        originals = [item.reference for item in items]
        print(f"{label}, originals of different names: {described(ax, neighbours(originals))}")
        for setting, options in SETTINGS.items():
            draws = [
                ax.answer([it.direction for it in items], [it.sources for it in items], seed=1000 * number, **options)
                for number in range(int(seeds))
            ]
            same = [pair for answers in zip(*draws) for pair in combinations(answers, 2)]
            print(f"{label}, {setting}: same name {described(ax, same)}")
            print(f"{label}, {setting}: other names {described(ax, neighbours(draws[0]))}")


def neighbours(values: list[Picture]) -> list[tuple[Picture, Picture]]:
    return list(pairwise(values))


def described(ax: Pipeline, pairs: list[tuple[Picture, Picture]]) -> str:
    """Mean likeness of pairs of pictures, with its standard error."""
    left, right = zip(*pairs)
    cosines = (features(left) * features(right)).sum(dim=1).numpy()
    image = ax.modalities["image"]
    scores = np.array([float(ssim(image.preprocess(a), image.preprocess(b))) for a, b in pairs])
    error = cosines.std() / len(cosines) ** 0.5
    return f"cosine {cosines.mean():.3f} ± {error:.3f}, SSIM {scores.mean():.3f} ({len(pairs)} pairs)"


if __name__ == "__main__":
    main(*sys.argv[1:])
