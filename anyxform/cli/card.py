"""`anyxform card CHECKPOINT`: a model card from what was recorded, and the evaluation table that via=auto reads."""

from pathlib import Path
from typing import Any

from anyxform.cli.arguments import Parser

NAME, CURVE = "MODEL_CARD.md", "training.svg"


def main(arguments: list[str]) -> int:
    """Write the card; returns the exit code."""
    parser = Parser(
        prog="anyxform card", description="Write a model card from what training and anyxform eval recorded."
    )
    parser.add_argument("checkpoint", type=Path, help="the folder of a run or of a checkpoint")
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        help="report.json of anyxform eval, or a folder of them; repeatable",
    )
    parser.add_argument("--licences", type=Path, help="Markdown on the data's sources, such as ATTRIBUTION.md")
    parser.add_argument("--title", help="default: the run's name")
    parser.add_argument("-o", "--out", type=Path, help=f"default: {NAME} in CHECKPOINT")
    options = parser.parse_args(arguments)

    from anyxform.card import model_card
    from anyxform.checkpoint import find, write_json
    from anyxform.curve import training_curve
    from anyxform.progress import configs_until, read_journal, until
    from anyxform.routes import FILE, table

    folder = find(options.checkpoint).resolve()
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    if options.licences and not options.licences.is_file():
        raise ValueError(f"there is no file {str(options.licences)!r}: --licences takes a Markdown file")
    out = options.out or options.checkpoint / NAME
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {str(out.parent)!r} to write {out.name} into: make it first")
    config = _config(folder / "config.json")
    steps = config.get("facts", {}).get("steps")
    journal, name = until(read_journal(run / "metrics.jsonl"), steps), f"{out.stem}.svg" if options.out else CURVE
    curve = training_curve(journal)
    reports = [_report(path, folder) for given in options.report for path in _reports(given)]
    text = model_card(
        options.title or run.name,
        config,
        journal=journal,
        curve=name if curve else "",
        earlier=[it for _, it in configs_until(run, steps) if it != "config.yaml"],
        reports=reports,
        licences=options.licences.read_text(encoding="utf-8") if options.licences else "",
    )
    out.write_text(text, encoding="utf-8")
    if reports:
        write_json(folder / FILE, table(reports))
    if curve:
        (out.parent / name).write_text(curve, encoding="utf-8")
    print(out)
    return 0


def _config(path: Path) -> dict[str, Any]:
    from anyxform.checkpoint import read_json

    config = read_json(path)
    if not isinstance(config, dict) or not {"model", "modalities", "conditions"} <= config.keys():
        raise ValueError(f"{path} is not that of a model: give the folder of a run or of one of its checkpoints")
    return config


def _reports(path: Path) -> list[Path]:
    """The reports in a folder, or the one that is given."""
    if path.is_dir():
        found = sorted(path.rglob("report.json"))
        if not found:
            raise ValueError(f"the folder {str(path)!r} holds no report.json: give what anyxform eval wrote")
        return found
    return [path]


def _report(path: Path, checkpoint: Path) -> dict[str, Any]:
    """A report on this checkpoint, whose rows have all that a card shows."""
    from anyxform.checkpoint import digest_of_weights, read_json
    from anyxform.evaluate import MODEL

    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}: --report takes the report.json that anyxform eval wrote")
    try:
        report = read_json(path)
        for row in (*report["summary"], *report["directions"]):
            row["systems"][MODEL][row["headline"]]["value"], row["direction"], row["n"], row["lower_is_better"]
        judged = dict(report.get("settings", {})).get("weights")
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path} is no report of anyxform eval: give the report.json that it wrote") from None
    if judged is not None and judged != digest_of_weights(checkpoint):
        raise ValueError(f"{path} is about other weights than those in {checkpoint}: judge these by anyxform eval")
    return report
