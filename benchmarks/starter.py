"""What the benchmarks share: the starter's modalities, examples of its training mixture, and a model."""

from pathlib import Path

from anyxform.checkpoint import load_modality
from anyxform.cli.conf import compose
from anyxform.data import Counts, condition_names
from anyxform.dataset import Dataset, open_datasets
from anyxform.evaluate import Item
from anyxform.modality import Modality, get_modality
from anyxform.model import PRESETS, Transformer
from anyxform.rows import Rows
from anyxform.selection import choose_items
from anyxform.sequence import Example

TOKENIZERS = Path("data/starter/tokenizers")


def modalities() -> dict[str, Modality]:
    """Text, image and audio with the starter's tokenizers, or unfitted ones where there are none."""
    names = ("text", "image", "audio")
    return {
        name: load_modality(TOKENIZERS / name) if (TOKENIZERS / name).is_dir() else get_modality(name)()
        for name in names
    }


def datasets(found: dict[str, Modality], split: str, data: str = "starter") -> dict[str, Dataset]:
    """A split of the starter's datasets, or of what is built beside them."""
    config = compose("train", [f"data={data}"])["data"]
    return open_datasets(config["datasets"], found, root=config["root"], split=split)


def english_prompts(found: dict[str, Modality]) -> list[Item]:
    """Telephone prompts, from their English texts, of the splits val and test: their concepts are not in training."""
    patterns = ["text:en>audio:en-phone"]
    return [
        item
        for split in ("val", "test")
        for item in choose_items(datasets(found, split), found, patterns=patterns, limit=10_000).items
    ]


def rows(found: dict[str, Modality], root: str = "", **options: object) -> tuple[Rows, dict[str, int]]:
    """The starter's training rows, and the ids of the conditions; `root`: where its shards are, if elsewhere."""
    config = compose("train", ["data=starter"])["data"]
    datasets = open_datasets(config["datasets"], found, root=root or config["root"])
    ids = {name: number for number, name in enumerate(condition_names(datasets, found))}
    weights = {name: config["datasets"][name]["weight"] for name in datasets}
    names = ("directions", "hold_out", "tokens_per_row", "pool")
    chosen = {name: config[name] for name in names} | {"weights": weights, **options}
    return Rows(datasets, found, ids, **chosen), ids  # type: ignore[arg-type]


def examples(stream: Rows, count: int, first: int = 0) -> list[Example]:
    """That many examples of the mixture."""
    made: list[Example] = []
    index, counts = first, Counts()
    while len(made) < count:
        example = stream.examples(index, counts)
        index += 1
        if example is not None:
            made.append(example)
    return made


def model(preset: str, found: dict[str, Modality], ids: dict[str, int]) -> Transformer:
    return Transformer(modalities=found, conditions=list(ids), **PRESETS[preset])  # type: ignore[arg-type]
