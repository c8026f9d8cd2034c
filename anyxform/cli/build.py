"""From plain configs to modalities, data and a model: what the commands that train and judge have in common."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from anyxform.checkpoint import load_modality
from anyxform.cli.conf import no_such_key, shipped
from anyxform.data import condition_names
from anyxform.dataset import Dataset, open_datasets, shards_of
from anyxform.directions import Directions
from anyxform.field import Direction, Field, did_you_mean
from anyxform.init_from import Origin
from anyxform.modality import Modality, get_modality
from anyxform.model import Transformer
from anyxform.rows import Rows
from anyxform.storage import is_remote

NONE = "none"
OPEN = ("sampling", "train.loss_weights", "distributed.slurm", "optim.part_lr")
"""Dictionaries of the configs that are empty, and may hold any keys."""
NULL = ("train.ema",)
"""Numbers that there may be none of."""
FREE = ("datasets", "directions", "resume", "processes", "other_decoding")
"""Keys whose values may be of another type than their defaults."""


def prepared(overrides: Sequence[str]) -> list[str]:
    """Overrides as hydra wants them: directions in quotes, and ++ before keys of dictionaries that may hold any."""
    return [_opened(word) for word in overrides]


def _opened(word: str) -> str:
    key, equals, value = word.partition("=")
    if not set(value) & set("'\"{"):
        value = re.sub(r"[^\[\],\s][^\[\],]*>[^\[\],]*", r"'\g<0>'", value)
    return ("++" if key.startswith(OPEN) else "") + key + equals + value


def typed(config: Any, defaults: Any, name: str = "") -> Any:
    """The config, with 10000 for 1e4. ValueError: a number or a switch that is none, such as train.steps=abc."""
    if isinstance(config, dict) and isinstance(defaults, dict):
        known = {key: default for key, default in defaults.items() if key not in FREE}
        return {key: typed(value, known.get(key), f"{name}.{key}".lstrip(".")) for key, value in config.items()}
    if isinstance(defaults, str) and isinstance(config, int | float):
        return str(config)  # a folder that is named like a year
    if type(config) is type(defaults) or not isinstance(defaults, bool | int | float):
        return config
    if config is None and (name in NULL or name.startswith(("model.", "modality."))):
        return config
    if isinstance(defaults, bool) or isinstance(config, bool) or not isinstance(config, int | float):
        config = "null" if config is None else config
        wanted = "true or false" if isinstance(defaults, bool) else "a number"
        raise ValueError(f"{name}={config} is not possible: give {wanted}")
    if isinstance(defaults, int) and not float(config).is_integer():
        raise ValueError(f"{name}={config} is not possible: give a whole number")
    return type(defaults)(config)


def check_keys(config: Mapping[str, Any]) -> None:
    """ValueError: a misspelt key, of which hydra says nothing if it is in a file; others may be a user's own."""
    files = {"": "train", "data": "data/starter", "optim": "optim/adamw", "distributed": "distributed/single"}
    known = {part: list(shipped(file)) for part, file in files.items()}
    known |= {"": [*known[""], "data", "optim", "distributed", "modality"], "train": list(shipped("train")["train"])}
    for part, names in known.items():
        for key in config[part] if part else config:
            if key not in names and get_close_matches(str(key), names, n=1):
                wrong, *others = (f"{part}.{name}".lstrip(".") for name in (key, *names))
                raise ValueError(no_such_key(wrong, others))


class NoTokenizer(ValueError):
    """There is no folder with the tokenizer of a modality."""


OF_DATA = ("root", "datasets", "directions", "tokens_per_row", "pool", "num_workers")


def check_data(data: Any, names: Sequence[str] = OF_DATA) -> None:
    """ValueError: what a config of data lacks."""
    for name in names:
        if not isinstance(data, Mapping) or name not in data:
            raise ValueError(f"the config of the data has no {name}: docs/train.md shows all that belongs into one")


def listed(patterns: str | list[str] | None) -> list[str]:
    """One pattern, several or none as a list."""
    return [patterns] if isinstance(patterns, str) else patterns or []


def modality_classes(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, type[Modality]]:
    """The class of each modality of a config."""
    classes = {}
    for key, config in configs.items():
        if config.get("name") != key:
            raise ValueError(f"modality.{key} has name={config.get('name')}: the two must be the same")
        classes[key] = get_modality(key)
    return classes


def build_modality(config: Mapping[str, Any], tokenizers: str = NONE, origin: Origin | None = None) -> Modality:
    """The modality `name` with the config's arguments, and the tokenizer that was fitted for it.

    It lies in the config's `tokenizer`, a folder of ours or of a published language model; else in the `origin` of the
    model's weights, if that has one; else in ``<tokenizers>/<name>``. "none" leaves the modality as it is.
    """
    arguments = dict(config)
    name, folder = arguments.pop("name"), arguments.pop("tokenizer", None)
    try:
        if not folder and origin is not None and (found := origin.modality(name, **arguments)) is not None:
            return found
        folder = folder or (tokenizers if tokenizers == NONE else _below(str(tokenizers), name))
        if folder == NONE:
            return get_modality(name)(**arguments)
        if published := get_modality(name).published(Path(folder)):
            return get_modality(name)(**{**arguments, **published})
    except TypeError as error:
        raise ValueError(f"modality.{name}: {error}: see the modality's arguments") from error
    if is_remote(folder):
        raise ValueError(
            f"the tokenizer for {name} cannot be read from {folder}: give tokenizers=, a folder on the disk"
        )
    if not Path(folder).is_dir():
        raise NoTokenizer(
            f"there is no tokenizer for {name} in {folder}: run anyxform tokenizer modality={name} "
            f"out={Path(folder).parent}, or, if it needs none, say +modality.{name}.tokenizer=none; "
            f"~modality@modality.{name} leaves {name} out"
        )
    return load_modality(folder, **arguments)


def _below(tokenizers: str, name: str) -> str:
    return f"{tokenizers.rstrip('/')}/{name}" if is_remote(tokenizers) else str(Path(tokenizers) / name)


def held(datasets: Mapping[str, Dataset]) -> set[str]:
    """The modalities of which samples have fields; of a dataset that cannot be read none is known."""
    found = set[str]()
    for dataset in datasets.values():
        with suppress(ValueError):
            found |= {field.modality for fields in dataset.kinds() for field in fields}
    return found


def build_modalities(
    configs: Mapping[str, Mapping[str, Any]],
    tokenizers: str = NONE,
    origin: Origin | None = None,
    used: Container[str] | None = None,
) -> dict[str, Modality]:
    """All modalities of a config by name, but for those that are not `used`, if that is said, and have no tokenizer."""
    built = {}
    for name in modality_classes(configs):
        try:
            built[name] = build_modality(configs[name], tokenizers, origin)
        except NoTokenizer:
            if used is None or name in used:
                raise
    for name, modality in built.items():
        for target in modality.read_apart_for:
            if target not in configs:
                raise ValueError(f"{name} is to be read apart for {target!r}: {did_you_mean(target, list(configs))}")
    return built


@dataclass(frozen=True)
class Data:
    """The datasets of each split, and the rest of the data's config."""

    config: Mapping[str, Any]
    train: dict[str, Dataset]
    val: dict[str, Dataset]

    @classmethod
    def open(cls, config: Mapping[str, Any], modalities: Mapping[str, Modality | type[Modality]]) -> "Data":
        """Open the training split, and that to validate on: `val_split`, by default ``val`` if there is any.

        ValueError: `val_split` is train, or no dataset has shards of it.
        """
        train = open_datasets(config["datasets"], modalities, root=config["root"], split="train")
        name = config.get("val_split") or "val"
        having = having_split(config["datasets"], config["root"], name)
        if name == "train" or (name != "val" and not having):
            raise ValueError(f"data.val_split={name} is not possible: give one that has shards and is not trained on")
        val = open_datasets(having, modalities, root=config["root"], split=name) if having else {}
        return cls(config, train, val)

    def conditions(self, modalities: Mapping[str, Modality]) -> list[str]:
        """What the datasets' targets can be asked by."""
        both = [(f"{split}/{name}", it) for split in ("train", "val") for name, it in getattr(self, split).items()]
        return condition_names(dict(both), modalities)

    def rows(
        self,
        split: str,
        model: Transformer,
        modalities: Mapping[str, Modality],
        *,
        seed: int,
        pad: bool,
        lanes: int = 1,
        own: Sequence[int] | None = None,
    ) -> Rows:
        """The stream of rows of a split; validation is never augmented and read in this process."""
        config, train, datasets = self.config, split == "train", self.train if split == "train" else self.val
        weights = dataset_weights(config["datasets"], datasets)
        options = ("tokens_per_row", "pool", "max_broken", "condition_dropout", "attribute_dropout", "other_decoding")
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
            lanes=lanes,
            own=own,
            num_workers=config["num_workers"] if train else 0,
            aligned=listed(config.get("aligned")),
            **{name: config[name] for name in options if name in config},
        )

    @property
    def directions(self) -> Directions:
        return Directions(self.config["directions"], self.config.get("hold_out") or ())

    def trained_directions(self, modalities: Sequence[str]) -> list[Direction]:
        """Every direction that the training split holds and the config does not hold out."""
        return _directions(self._kinds(modalities), self.directions)

    def used(self, modalities: Sequence[str]) -> set[str]:
        """Which of them the trained directions have, as a source or as their target."""
        found = self.trained_directions(modalities)
        return {field.modality for it in found for field in (*it.sources, it.target)}

    @property
    def absent(self) -> list[str]:
        """The config's datasets that have no training shards, by name."""
        return [name for name in self.config["datasets"] if name not in self.train]

    def idle_patterns(self, modalities: Sequence[str]) -> list[str]:
        """Patterns of directions that no sample fits: misspelt, or for data that are left out."""
        kinds, held = self._kinds(modalities), self.config.get("hold_out") or ()
        trained = [pattern for pattern, weight in self.config["directions"].items() if weight]
        patterns = dict.fromkeys(held, ()) | dict.fromkeys([*trained, *listed(self.config.get("aligned"))], held)
        return [p for p, without in patterns.items() if not _directions(kinds, Directions({p: 1.0}, without))]

    def _kinds(self, modalities: Sequence[str]) -> set[tuple[Field, ...]]:
        """The sets of fields of these modalities that training samples have."""
        return {tuple(field for field in fields if field.modality in modalities) for fields in self._every_kind}

    @cached_property
    def _every_kind(self) -> set[tuple[Field, ...]]:
        """Found in one walk over all samples, which is long where they are many."""
        return {fields for dataset in self.train.values() for fields in dataset.kinds()}


def _directions(kinds: Iterable[Sequence[Field]], directions: Directions) -> list[Direction]:
    return sorted({found for kind in kinds for _, group in directions.fitting(kind) for found in group})


def dataset_weights(configs: Mapping[str, Any], opened: Iterable[str]) -> dict[str, float]:
    """The weights that configs of datasets give to those that are opened."""
    return {n: float(c["weight"]) for n, c in configs.items() if n in opened and c.get("weight") is not None}


def having_split(datasets: Mapping[str, Any], root: str, split: str) -> dict[str, Any]:
    """The datasets that have shards of their own for a split."""
    patterns = {name: [c["shards"]] if isinstance(c["shards"], str) else c["shards"] for name, c in datasets.items()}
    own = {name: [p for p in some if "{split}" in p] for name, some in patterns.items()}
    return {name: datasets[name] for name, some in own.items() if shards_of({"shards": some}, root, split)}
