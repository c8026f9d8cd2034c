"""What the codes of pictures keep: quality of held-out drawings and photographs, and what a judge still tells apart.

    python -m benchmarks.picture_codes [TOKENIZER] [OUT]

Needs the extra `eval`. Quality is of pictures of concepts that are not in training (splits val and test). Retrieval is
the judge's of drawings: of the trained names' noto drawings themselves, and through the codes, which is the most that a
model which draws by these codes can reach; and of openmoji drawings, whose own style no gallery of noto matches. OUT:
a picture of held-out drawings, chosen by a seed, each above what its codes make of it.
"""

import sys
from typing import Any

import numpy as np

from anyxform.checkpoint import load_modality
from anyxform.modality import Modality
from anyxform.selection import choose_items
from benchmarks import starter
from modalities.image import Image
from modalities.image.judge import retrieved

SHOWN = 16


def main(tokenizer: str = str(starter.TOKENIZERS / "image"), out: str = "") -> None:
    image = load_modality(tokenizer)
    assert isinstance(image, Image)
    found = {**starter.modalities(), "image": image}
    for name, kind in (("emoji", "drawings"), ("stamps", "photographs")):
        values = [value for split in ("val", "test") for value in pictures(found, name, split)]
        quality = image.report(values)
        print(f"held-out {kind}: {quality['psnr']:.1f} dB, SSIM {quality['ssim']:.3f} of {len(values)}")
        if out and kind == "drawings":
            order = np.random.default_rng(0).permutation(len(values))[:SHOWN]
            image.compare([values[number] for number in order], out)
    items = choose_items(
        {"emoji": starter.datasets(found, "train")["emoji"]}, found, patterns=["text:en>image:noto"], limit=5000
    ).items
    drawn, names = [item.reference for item in items], [item.text for item in items]
    again = [image.from_codes(image.codes(image.preprocess(value))) for value in drawn]
    for kind, answers in (("the drawings themselves", drawn), ("their codes", again)):
        hits = retrieved(answers, drawn, names)
        print(f"{kind}: retrieved {sum(hits) / len(hits):.3f} of {len(hits)} noto drawings")


def pictures(found: dict[str, Modality], name: str, split: str) -> list[Any]:
    """Every picture of a dataset's split, once."""
    dataset = starter.datasets(found, split)[name]
    items = choose_items({name: dataset}, found, patterns=["image>text:en"], limit=5000).items
    return [item.sources[0] for item in items]


if __name__ == "__main__":
    main(*sys.argv[1:])
