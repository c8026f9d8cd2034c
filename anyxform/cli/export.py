"""`anyxform export CHECKPOINT OUT`: what inference needs of a checkpoint, in a folder that can be passed on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anyxform import checkpoint
from anyxform.cli.arguments import Parser
from anyxform.progress import by_pairs, read_journal

POINTS = 160
"""The losses of a long run are thinned to so many lines."""


def main(arguments: list[str]) -> int:
    """Write the folder; returns the exit code."""
    parser = Parser(
        prog="anyxform export",
        description="Write the weights that anyxform.load reads, the tokenizers with them, and the run's losses.",
    )
    parser.add_argument("checkpoint", type=Path, help="the folder of a run or of a checkpoint")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="of the weights (default: bf16)")
    options = parser.parse_args(arguments)

    if options.out.exists():
        raise ValueError(f"there is {str(options.out)!r} already: give a folder that is not there yet")
    source = checkpoint.find(options.checkpoint).resolve()
    model, modalities, config = checkpoint.load(source)
    run = source.parents[1] if source.parent.name == "checkpoints" else source
    journal = _until(read_journal(run / "metrics.jsonl"), config["facts"].get("steps"))
    with checkpoint.atomic_folder(options.out) as folder:
        dtype = torch.bfloat16 if options.dtype == "bf16" else None
        own = {name: config[name] for name in ("directions", "facts")}
        checkpoint.write(folder, checkpoint.contents(model, modalities, dtype=dtype, **own))
        for path in sorted(run.glob("config*.yaml")):
            (folder / path.name).write_bytes(path.read_bytes())
        if journal:
            text = "".join(json.dumps(line) + "\n" for line in thinned(journal))
            (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def _until(journal: Sequence[Mapping[str, Any]], step: int | None) -> list[Mapping[str, Any]]:
    """The lines up to the checkpoint's step: the run may have gone on since."""
    return [line for line in journal if step is None or line["step"] <= step]


def thinned(journal: Sequence[Mapping[str, Any]], points: int = POINTS) -> list[dict[str, Any]]:
    """A run's lines as means over equal stretches of it: of the loss, of validation, and of each pair of modalities."""
    size = -(-len(journal) // points)
    return [_mean_line(journal[start : start + size]) for start in range(0, len(journal), size)]


def _mean_line(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    each = [by_pairs(line.get("directions") or {}) for line in lines]
    pairs = sorted({pair for losses in each for pair in losses})
    line: dict[str, Any] = {"step": lines[-1]["step"]}
    for name in ("loss", "val_loss"):
        values = [it[name] for it in lines if it.get(name) is not None]
        if values:
            line[name] = round(sum(values) / len(values), 4)
    found = {pair: [losses[pair] for losses in each if pair in losses] for pair in pairs}
    line["directions"] = {pair: round(sum(values) / len(values), 4) for pair, values in found.items()}
    return line
