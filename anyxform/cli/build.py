"""From plain configs to modalities, data and a model: what the commands that train and judge have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import torch

from anyxform.checkpoint import load_modality
from anyxform.data import Rows, condition_names
from anyxform.dataset import Dataset, open_datasets
from anyxform.directions import Directions
from anyxform.field import Direction
from anyxform.modality import Modality, get_modality
from anyxform.model import Transformer

NONE = "none"


def build_modality(config: Mapping[str, Any], tokenizers: str = NONE) -> Modality:
    """The modality `name` with the config's arguments, and the tokenizer that was fitted for it.

    Its folder is the config's `tokenizer`, else ``<tokenizers>/<name>``; "none" leaves the modality as it is.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    default = tokenizers if tokenizers == NONE else str(Path(tokenizers) / name)
    folder = arguments.pop("tokenizer", None) or default
    if folder == NONE:
        try:
            return get_modality(name)(**arguments)
        except TypeError as error:
            raise ValueError(f"modality.{name}: {error}: see the modality's arguments") from error
    if not Path(folder).is_dir():
        get_modality(name)  # an unknown one is another mistake
        raise ValueError(
            f"there is no tokenizer for {name} in {folder}: run anyxform tokenizer modality={name} "
            f"out={Path(folder).parent}, or, if it needs none, say +modality.{name}.tokenizer=none"
        )
    return load_modality(folder, **arguments)


def build_modalities(configs: Mapping[str, Mapping[str, Any]], tokenizers: str = NONE) -> dict[str, Modality]:
    """All modalities of a config by name."""
    modalities = {}
    for key, config in configs.items():
        modality = build_modality(config, tokenizers)
        if modality.name != key:
            raise ValueError(f"modality.{key} has name={modality.name}: the two must be the same")
        modalities[key] = modality
    return modalities


@dataclass(frozen=True)
class Data:
    """The datasets of each split, what they can be asked by, and the rest of the data's config."""

    config: Mapping[str, Any]
    train: dict[str, Dataset]
    val: dict[str, Dataset]
    conditions: list[str]

    @classmethod
    def open(cls, config: Mapping[str, Any], modalities: Mapping[str, Modality]) -> "Data":
        """Open the training split, and the validation split if there is one."""
        train = open_datasets(config["datasets"], modalities, root=config["root"], split="train")
        split = _having_split(config["datasets"], config["root"], "val")
        val = open_datasets(split, modalities, root=config["root"], split="val") if split else {}
        everything = {f"{split}/{name}": it for split, part in (("t", train), ("v", val)) for name, it in part.items()}
        return cls(config, train, val, condition_names(everything, modalities))

    def rows(self, split: str, model: Transformer, modalities: Mapping[str, Modality], *, seed: int, pad: bool) -> Rows:
        """The stream of rows of a split; validation is never augmented and read in this process."""
        config, train, datasets = self.config, split == "train", self.train if split == "train" else self.val
        weights = {n: float(c["weight"]) for n, c in config["datasets"].items() if n in datasets and c.get("weight") is not None}
        options = ("tokens_per_row", "pool", "max_broken", "condition_dropout", "attribute_dropout")
        return Rows(
            datasets,
            modalities,
            model.condition_ids,
            directions=config["directions"],
            hold_out=config.get("hold_out") or (),
            weights=weights,
            seed=seed,
            pad=pad,
            train=train,
            num_workers=config["num_workers"] if train else 0,
            **{name: config[name] for name in options if name in config},
        )

    @property
    def directions(self) -> Directions:
        return Directions(self.config["directions"], self.config.get("hold_out") or ())

    def trained_directions(self, modalities: Sequence[str]) -> list[Direction]:
        """Every direction that the training split holds and the config does not hold out."""
        kinds = {
            tuple(field for field in dataset.fields(number) if field.modality in modalities)
            for dataset in self.train.values()
            for number in range(len(dataset))
        }
        directions = self.directions
        return sorted({found for kind in kinds for _, group in directions.fitting(kind) for found in group})


def _having_split(datasets: Mapping[str, Any], root: str, split: str) -> dict[str, Any]:
    """The datasets that have shards of their own for a split."""
    patterns = {name: [c["shards"]] if isinstance(c["shards"], str) else c["shards"] for name, c in datasets.items()}
    return {
        name: datasets[name]
        for name, some in patterns.items()
        if any("{split}" in p and glob(str(Path(root) / p.replace("{split}", split))) for p in some)
    }


def pick_device(name: str | None) -> torch.device:
    """The device of that name; without one, CUDA where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"train.device={name!r} cannot be used: {str(error).splitlines()[0]}") from error
