"""One direction of a checkpoint, written as graphs beside graph.json, which says all that a caller needs.

    prefill   sources → the cache, its length, the target's first position, and what the marker says
    step      left to right: a token's codes → the next one's logits
    parallel  masked: all tokens' codes → their logits; nothing.npz has the prefix without sources, which guides
    decoder   codes → the tensor of a value (a picture's pixels), where the modality has one

Nothing else of this package is needed to run them: docs/export.md has callers in a few lines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from anyxform import __version__
from anyxform.checkpoint import read_json, write_json
from anyxform.graph.decode import left_to_right, masked
from anyxform.graph.files import FORMATS, traced
from anyxform.graph.modules import CACHE, Parallel, Prefill, Step
from anyxform.graph.parity import Answers, compare
from anyxform.graph.task import Task
from anyxform.sampling import GUIDANCE, Sampling

META, NOTHING = "graph.json", "nothing.npz"
VERSION = 1


@dataclass(frozen=True)
class _Part:
    """A graph to be: a module, what to trace it with, which axes of that vary, and names."""

    module: nn.Module
    example: Sequence[Tensor]
    sizes: Sequence[Mapping[int, Any]]
    inputs: Sequence[str]
    outputs: Sequence[str]

    def described(self) -> dict[str, Any]:
        """What graph.json says of it; sizes that vary are null."""
        inputs = {
            name: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": [None if axis in sizes else size for axis, size in enumerate(tensor.shape)],
            }
            for name, tensor, sizes in zip(self.inputs, self.example, self.sizes)
        }
        return {"inputs": inputs, "outputs": list(self.outputs)}


def export(task: Task, folder: Path, format: str, items: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Write the graphs into an existing folder, and compare their answers to `items` with the model's.

    `items`: for each, its sources' values. Returns what graph.json says. ValueError: what the format needs is not
    installed, or the answers differ.
    """
    chosen = FORMATS[format]
    chosen.check()
    task.model.eval()
    tensors = task.preprocessed(items[0])
    slots = task.slots(tensors)
    graphs: dict[str, Any] = {}
    for name, part in _parts(task, tensors, slots).items():
        file = f"{name}.{chosen.ending}"
        chosen.write(traced(part.module, part.example, part.sizes), folder / file, part.inputs, part.outputs)
        graphs[name] = {"file": file, **part.described()}
    meta = {"version": VERSION, "anyxform": __version__, "format": format, **_described(task, slots), "graphs": graphs}
    for modality in (*task.sources, task.target):
        for file, data in modality.recipe()[1].items():
            (folder / file).write_bytes(data)
    if task.decoding == "masked":
        arrays: Any = _nothing(task, slots)
        np.savez_compressed(folder / NOTHING, **arrays)
        meta["nothing"] = NOTHING
    write_json(folder / META, meta)
    meta["parity"] = {"items": len(items), "largest_difference": compare(task, items, opened(folder))}
    write_json(folder / META, meta)
    return meta


def opened(folder: Path) -> Answers:
    """What answers by the graphs of a folder, given preprocessed sources."""
    meta = read_json(folder / META)
    graphs = {name: FORMATS[meta["format"]].open(folder / it["file"]) for name, it in meta["graphs"].items()}
    if "step" in graphs:
        return partial(left_to_right, graphs["prefill"], graphs["step"], meta["target"])
    nothing = dict(np.load(folder / meta["nothing"]))
    return partial(masked, graphs["prefill"], graphs["parallel"], meta["target"], nothing)


def _parts(task: Task, tensors: Sequence[Tensor], slots: int) -> dict[str, _Part]:
    target, prefill = task.target, _prefill(task, slots, task.direction.sources)
    sizes = [_sizes(it.source_sizes, name) for it, name in zip(task.sources, task.inputs)]
    # a size of 1 would be taken for one that never varies
    tensors = [torch.cat([it, it]) if varies and len(it) == 1 else it for it, varies in zip(tensors, sizes)]
    parts = {"prefill": _Part(prefill, tensors, sizes, task.inputs, prefill.outputs)}
    with torch.no_grad():
        keys, values, length, first, *_ = prefill(*tensors)
    cache = (length, first, keys, values)
    tokens = _sizes(range(1, target.max_length + 1), "tokens") if task.varies else {}
    codes = torch.zeros(target.max_length, target.num_codebooks, dtype=torch.long)
    if task.decoding == "masked":
        sizes = [tokens, {}, {}, {}, {}]
        parts["parallel"] = _Part(
            Parallel(task.model, target), (codes, *cache), sizes, Parallel.inputs, Parallel.outputs
        )
    else:
        example = (codes[:1], torch.tensor(0), *cache)
        parts["step"] = _Part(Step(task.model, target), example, [{}] * 6, Step.inputs, Step.outputs)
    if decoder := target.decoder():
        parts["decoder"] = _Part(decoder, (codes,), [tokens], ("codes",), ("value",))
    return parts


def _prefill(task: Task, slots: int, sources: Sequence[Any]) -> Prefill:
    return Prefill(
        task.model,
        task.sources if sources else [],
        list(task.asked.values()),
        task.target.name,
        decoding=task.decoding,
        slots=slots,
    )


def _sizes(sizes: range, name: str) -> dict[int, Any]:
    """The first axis as torch.export wants it; nothing, where there is but one size."""
    if len(sizes) == 1:
        return {}
    step = sizes.step
    dim = Dim(f"{name}_size", min=sizes[0] // step, max=sizes[-1] // step)
    return {0: step * dim if step > 1 else dim}


@torch.no_grad()
def _nothing(task: Task, slots: int) -> dict[str, np.ndarray]:
    """What the prefix without sources gives, in a cache of the same size."""
    prefill = _prefill(task, slots, [])
    return {name: tensor.numpy() for name, tensor in zip(CACHE, prefill())}


def _described(task: Task, slots: int) -> dict[str, Any]:
    """What graph.json says of the direction."""
    target, config = task.target, task.model.config()
    sources = [
        {"input": name, "modality": it.name, "first_size": _range(it.source_sizes), "recipe": it.recipe()[0]}
        for it, name in zip(task.sources, task.inputs)
    ]
    made = {
        "modality": target.name, "decoding": task.decoding, "num_codebooks": target.num_codebooks,
        "vocab_size": target.vocab_size, "max_length": target.max_length, "fixed_length": target.fixed_length,
        "recipe": target.recipe()[0],
    }  # fmt: skip
    if task.decoding == "masked":
        plain = Sampling()
        made |= {"hidden": target.vocab_size, "guidance": GUIDANCE["masked"]}
        made |= {"steps": plain.steps, "schedule": plain.schedule}
    else:
        made["end"] = target.vocab_size
    shape = [config["depth"], 1, slots, config["num_kv_heads"], config["head_dim"]]
    return {
        "direction": str(task.direction),
        "sources": sources,
        "target": made,
        "conditions": task.asked,
        "cache": {"shape": shape, "dtype": "float32"},
    }


def _range(sizes: range) -> dict[str, int]:
    return {"least": sizes[0], "most": sizes[-1], "multiple_of": sizes.step}
