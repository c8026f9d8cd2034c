"""Start from what exists: weights of a published language model, or of a checkpoint of our own.

An `Origin` says how large the model must be and which tokenizers fit, and fills what it has weights for; the rest of
the model stays fresh. Files are safetensors and JSON: nothing of a checkpoint is unpickled, imported or run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from anyxform import checkpoint
from anyxform.checkpoint import model_tensors, read_json, read_tensors
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.parts import part_of
from anyxform.published import CONDITIONS, Published


class Origin(Protocol):
    """Where weights come from."""

    @property
    def folder(self) -> Path: ...

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `Transformer` that they decide."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """What these weights were trained by, the first run first: plain values, for the facts of a checkpoint."""

    @property
    def directions(self) -> list[str]:
        """What they were trained on, where that is on record."""

    def modality(self, name: str, **arguments: Any) -> Modality | None:
        """The modality with these arguments and the tokenizer that is found there; None if there is none for it."""

    def fill(self, model: Transformer, modalities: Mapping[str, Modality]) -> set[str]:
        """Copy the weights that fit into a model of the same sizes, or deeper; the names of the tensors that they are.

        Further blocks come behind those that are filled.
        """


@torch.no_grad()
def begin(model: Transformer, origin: Origin, modalities: Mapping[str, Modality]) -> set[str]:
    """Fill a model; the names of the tensors that come from the origin.

    Blocks that the origin has not add nothing to the stream at first, so the model begins as the same function
    (LLaMA Pro, arXiv 2401.02415).
    """
    for block in model.blocks[origin.sizes["depth"] :]:
        block.attention.out.weight.zero_()
        block.mlp.down.weight.zero_()
    return origin.fill(model, modalities)


def open_origin(path: str | Path, verify: bool = True) -> Origin:
    """What lies in a folder. ValueError, in one line: nothing, or something of which the weights cannot be used.

    `verify`: compare every byte with the manifest of a checkpoint of ours.
    """
    folder = checkpoint.find(path)
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.keys() & {"architectures", "model_type"}:
        return Published(folder, config)
    if verify:
        checkpoint.verify(folder)
    return Own(folder, checkpoint.read_config(folder))


RECORDED = ("steps", "tokens", "hours", "command", "averaged")
"""What is kept of how an origin of our own was trained."""
SAMPLES = 8
"""Examples by which two tokenizers are compared."""


@dataclass(frozen=True)
class Own:
    """A checkpoint of ours, perhaps with other modalities and conditions: what fits by name and shape is taken.

    Of a modality that has another tokenizer than there, the tables are not.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def sizes(self) -> dict[str, Any]:
        sizes = {key: value for key, value in self.config["model"].items() if "dropout" not in key}
        return {"qk_norm": True, **sizes}  # which older ones do not mention

    @property
    def history(self) -> list[dict[str, Any]]:
        facts = self.config.get("facts", {})
        run = self.folder.resolve()
        name = run.parents[1].name if run.parent.name == "checkpoints" else run.name
        recorded = {key: facts[key] for key in RECORDED if key in facts}
        return [*facts.get("began_with", []), {"name": name, **recorded}]

    @property
    def directions(self) -> list[str]:
        return list(self.config.get("directions", ()))

    def modality(self, name: str, **arguments: Any) -> Modality | None:
        if name not in self.config["modalities"]:
            return None
        return checkpoint.saved_modality(self.folder, self.config, self._tokenizers, name, **arguments)

    @cached_property
    def _tokenizers(self) -> dict[str, Tensor]:
        return read_tensors(self.folder / "modalities.safetensors")

    @torch.no_grad()
    def fill(self, model: Transformer, modalities: Mapping[str, Modality]) -> set[str]:
        saved, own = read_tensors(self.folder / "model.safetensors"), model_tensors(model)
        taken = self._fill_conditions(model, saved.pop(CONDITIONS), own.pop(CONDITIONS))
        other = tuple(prefix for name, it in modalities.items() for prefix in self._foreign(name, it))
        for name, tensor in own.items():
            if name in saved and saved[name].shape == tensor.shape and not name.startswith(other):
                tensor.copy_(saved[name])
                taken.add(name)
        return taken

    def _fill_conditions(self, model: Transformer, saved: Tensor, own: Tensor) -> set[str]:
        """By their names, as the data here may have others."""
        rows = {name: number for number, name in enumerate(self.config["conditions"])}
        for name, number in model.condition_ids.items():
            if name in rows:
                own[number] = saved[rows[name]].to(own.dtype)
        return {f"{CONDITIONS}.{name}" for name in model.condition_ids if name in rows}

    def _foreign(self, name: str, modality: Modality) -> Iterator[str]:
        """Beginnings of the names of tensors that mean something else here, as the tokenizers differ."""
        if name not in self.config["modalities"]:
            return
        there = self.modality(name)
        assert there is not None
        if not _alike(modality, there, lambda it, value: it.codes(it.preprocess(value))):
            yield f"targets.{name}."
        if not _alike(modality, there, lambda it, value: it.preprocess(value)):
            yield f"front_ends.{name}."


def _alike(one: Modality, other: Modality, seen: Callable[[Modality, Any], Tensor]) -> bool:
    """Whether both see the same whole numbers in some examples; what is continuous is alike."""
    for seed in range(SAMPLES):
        value = one.example(torch.Generator().manual_seed(seed))
        try:
            ours, theirs = seen(one, value), seen(other, value)
        except ValueError:  # too long for the other, say
            continue
        if not ours.is_floating_point() and not torch.equal(ours, theirs):
            return False
    return True


def told(model: Transformer, taken: Set[str]) -> str:
    """Which parts of the model come from elsewhere, but for which of their tensors, and which are fresh."""
    parts: dict[str, tuple[list[str], list[str]]] = {}
    for name in _names(model):
        parts.setdefault(part_of(name), ([], []))[name not in taken].append(name)
    some = [f"{part}{_but(missing)}" for part, (found, missing) in parts.items() if found]
    none = [part for part, (found, _) in parts.items() if not found]
    return f"{', '.join(some) or 'nothing'}; fresh: {', '.join(none) or 'nothing'}"


def _names(model: Transformer) -> list[str]:
    """Of its tensors, each condition by itself."""
    rest = (name for name in model_tensors(model) if name != CONDITIONS)
    return [*(f"{CONDITIONS}.{name}" for name in model.condition_ids), *rest]


def _but(missing: Sequence[str]) -> str:
    names = [name.removeprefix(f"{CONDITIONS}.") for name in missing]
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" (but {', '.join(names[:3])}{rest})" if names else ""
