"""`anyxform card CHECKPOINT`: a model card from what was recorded."""

import json
from pathlib import Path
from typing import Any

from anyxform.card import model_card
from anyxform.checkpoint import find, read_json
from anyxform.cli.arguments import Parser

NAME = "MODEL_CARD.md"


def main(arguments: list[str]) -> int:
    """Write the card; returns the exit code."""
    parser = Parser(
        prog="anyxform card", description="Write a model card from what training and anyxform eval recorded."
    )
    parser.add_argument("checkpoint", type=Path, help="the folder of a run or of a checkpoint")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], help="report.json of anyxform eval; repeatable"
    )
    parser.add_argument("--licences", type=Path, help="Markdown on the data's sources, such as ATTRIBUTION.md")
    parser.add_argument("--title", help="default: the run's name")
    parser.add_argument("-o", "--out", type=Path, help=f"default: {NAME} in CHECKPOINT")
    options = parser.parse_args(arguments)
    folder = find(options.checkpoint)
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    text = model_card(
        options.title or run.resolve().name,
        read_json(folder / "config.json"),
        journal=_journal(run / "metrics.jsonl"),
        reports=[_report(path) for path in options.report],
        licences=options.licences.read_text(encoding="utf-8") if options.licences else "",
    )
    out = options.out or options.checkpoint / NAME
    out.write_text(text, encoding="utf-8")
    print(out)
    return 0


def _journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's journal; none where only a checkpoint was kept."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _report(path: Path) -> dict[str, Any]:
    report = read_json(path)
    if not isinstance(report, dict) or not {"summary", "directions"} <= report.keys():
        raise ValueError(f"{path} is no report of anyxform eval")
    return report
