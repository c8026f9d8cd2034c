"""`anyxform export CHECKPOINT OUT`: what inference needs of a checkpoint, in a folder that can be passed on."""

import argparse
import json
from functools import partial
from pathlib import Path

from anyxform.cli.arguments import Parser
from anyxform.cli.export_graphs import write_graphs

POINTS = 160
"""The losses of a long run are thinned to so many lines."""
EPILOG = """examples:
  anyxform export runs/mine mine
  anyxform export runs/mine mine --average starter --share 0.7
  anyxform export runs/mine graphs --format onnx --from image --to text:en --on 'shards/val-*.tar'
"""


def main(arguments: list[str]) -> int:
    """Write the folder; returns the exit code."""
    parser = Parser(
        prog="anyxform export",
        description="Write the weights that anyxform.load reads, the tokenizers with them, and the run's losses; "
        "or one direction as graphs, which run without anyxform.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="the folder of a run or of a checkpoint")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of weights (default: bf16; graphs are fp32)")
    parser.add_argument(
        "--average",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="weights: their mean with those of other checkpoints that began alike",
    )
    parser.add_argument("--share", type=float, help="of the checkpoint's own weights in the mean (default: all alike)")
    parser.add_argument(
        "--format",
        choices=("weights", "torch", "onnx"),
        default="weights",
        help="weights (default), or graphs of which",
    )
    parser.add_argument("--from", dest="origin", metavar="FIELD", help="graphs: the source, or image+text, say")
    parser.add_argument("--to", metavar="FIELD", help="graphs: the target, such as text:en")
    parser.add_argument(
        "--on",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="graphs: samples to compare them with the model on",
    )
    parser.add_argument(
        "--field", dest="fields", action="append", default=[], metavar="F=PLACE", help="of --on: 'text:*=json.text.*'"
    )
    parser.add_argument("--items", type=int, default=8, metavar="N", help="graphs: on so many (default: 8)")
    options = parser.parse_args(arguments)
    graphs = {"--from": options.origin, "--to": options.to, "--on": options.on, "--field": options.fields}
    if options.format == "weights" and (given := [name for name, value in graphs.items() if value]):
        raise ValueError(f"{given[0]} is for graphs: add --format onnx or --format torch")
    if options.average and options.format != "weights":
        raise ValueError("--average is for weights: export them first, then the graphs of what that has written")
    if options.share is not None and not options.average:
        raise ValueError("--share is for a mean: add --average OTHER")
    if options.out.exists():
        raise ValueError(f"there is {str(options.out)!r} already: give a folder that is not there yet")
    (_write_weights if options.format == "weights" else write_graphs)(options)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def _write_weights(options: argparse.Namespace) -> None:
    import torch

    from anyxform import checkpoint
    from anyxform.average import average
    from anyxform.init_from import open_origin
    from anyxform.pipeline import located
    from anyxform.progress import configs_until, read_journal, thinned, until
    from anyxform.routes import FILE
    from anyxform.storage import without_secrets

    source = checkpoint.find(options.checkpoint).resolve()
    model, modalities, config = checkpoint.load(source)
    run = source.parents[1] if source.parent.name == "checkpoints" else source
    facts = config["facts"]
    if options.average:
        share = 1 / (1 + len(options.average)) if options.share is None else options.share
        others = [open_origin(located(path)) for path in options.average]
        average(model, modalities, others, share)
        facts["averaged"] = {"share": share, "with": [other.history[-1]["name"] for other in others]}
    journal = until(read_journal(run / "metrics.jsonl"), facts.get("steps"))
    with checkpoint.atomic_folder(options.out) as folder:
        dtype = None if options.dtype == "fp32" else torch.bfloat16
        copy = partial(checkpoint.copied, dtype=dtype)
        own = {name: config[name] for name in ("directions", "facts")}
        checkpoint.write(folder, checkpoint.contents(model, modalities, copy=copy, **own))
        for path, name in configs_until(run, facts.get("steps")):
            (folder / name).write_text(without_secrets(path.read_text(encoding="utf-8")), encoding="utf-8")
        if (source / FILE).is_file():
            (folder / FILE).write_bytes((source / FILE).read_bytes())
        if journal:
            text = "".join(json.dumps(line) + "\n" for line in thinned(journal, POINTS))
            (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
