"""`anyxform export CHECKPOINT OUT`: what inference needs of a checkpoint, in a folder that can be passed on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyxform.cli.arguments import Parser

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

    import torch

    from anyxform import checkpoint
    from anyxform.progress import read_journal, thinned
    from anyxform.routes import FILE

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
        if (source / FILE).is_file():
            (folder / FILE).write_bytes((source / FILE).read_bytes())
        if journal:
            text = "".join(json.dumps(line) + "\n" for line in thinned(journal, POINTS))
            (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def _until(journal: Sequence[Mapping[str, Any]], step: int | None) -> list[Mapping[str, Any]]:
    """The lines up to the checkpoint's step: the run may have gone on since."""
    return [line for line in journal if step is None or line["step"] <= step]
