"""`anyxform data check [key=value …]`: read all data as training would, and name what is wrong with them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anyxform.check import KINDS, Checked, check, digests
from anyxform.checkpoint import write_json
from anyxform.cli.arguments import printable
from anyxform.cli.bar import progress_bar
from anyxform.cli.build import build_modalities, check_data, held, listed, modality_classes, prepared, typed
from anyxform.cli.conf import compose
from anyxform.dataset import open_datasets
from anyxform.directions import Directions
from anyxform.field import Field

SHOWN = 10
"""Findings of each kind on the screen; the reports have all."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 where there is a problem, as opposed to a remark."""
    config = typed(compose("check", prepared(arguments)), compose("check", []))
    check_data(config["data"], ("root", "datasets", "directions"))
    data = config["data"]
    classes = modality_classes(config["modality"])
    datasets = open_datasets(data["datasets"], classes, root=data["root"], split=config["split"])
    modalities = build_modalities(config["modality"], config["tokenizers"], used=held(datasets))
    datasets = open_datasets(data["datasets"], modalities, root=data["root"], split=config["split"])
    directions = Directions(data["directions"], data.get("hold_out") or ())
    required = [Field.parse(name) for name in listed(config["required"])]
    others: dict[bytes, str] = {}
    for split in listed(config["against"]):
        for dataset in open_datasets(data["datasets"], modalities, root=data["root"], split=split).values():
            others |= digests(dataset, modalities, split)
    checked = {}
    with progress_bar() as bar:
        for name, dataset in datasets.items():
            task = bar.add_task(name, total=len(dataset))
            checked[name] = check(
                dataset, modalities, directions, required=required, others=others,
                progress=lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )  # fmt: skip
    tell(checked)
    if config["out"]:
        out = Path(str(config["out"]))
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "check.json", {name: it.to_dict() for name, it in checked.items()})
        (out / "check.html").write_text(page(checked, config["split"]), encoding="utf-8", errors="backslashreplace")
        print(out)
    return int(any(it.problems for it in checked.values()))


def tell(checked: Mapping[str, Checked]) -> None:
    """Print what the datasets hold, and the first findings of each kind."""
    console = Console()
    plain = Console(width=None if console.is_terminal else 160)
    table = Table("dataset", "samples", "fields", *KINDS)
    for name, it in checked.items():
        counts = Counter(finding.kind for finding in it.findings)
        fields = ", ".join(f"{field} {count:,}" for field, count in sorted(it.fields.items()))
        table.add_row(
            name, f"{it.samples:,}", fields, *(f"{counts[kind]:,}" if counts[kind] else "–" for kind in KINDS)
        )
    plain.print(table)
    for kind in KINDS:
        found = [finding for it in checked.values() for finding in it.findings if finding.kind == kind]
        for finding in found[:SHOWN]:
            plain.print(
                printable(f"{kind}: {finding.where}: {finding.what}"), markup=False, highlight=False, soft_wrap=True
            )
        if len(found) > SHOWN:
            plain.print(f"{kind}: and {len(found) - SHOWN:,} more")


def page(checked: Mapping[str, Checked], split: str) -> str:
    """The whole report as HTML."""
    parts = []
    for name, it in checked.items():
        fields = "".join(f"<tr><td>{escape(f)}</td><td>{n:,}</td></tr>" for f, n in sorted(it.fields.items()))
        parts.append(f"<h2>{escape(name)}: {it.samples:,} samples</h2><table>{fields}</table>")
        for kind, meaning in KINDS.items():
            found = [finding for finding in it.findings if finding.kind == kind]
            rows = "".join(f"<tr><td>{escape(f.where)}</td><td>{escape(f.what)}</td></tr>" for f in found)
            if found:
                parts.append(
                    f"<details><summary>{len(found):,} {kind}: {meaning}</summary><table>{rows}</table></details>"
                )
    style = "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}td{padding:2px 12px}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data, split {escape(split)}</title>'
    return f"{head}<style>{style}</style><h1>Data, split {escape(split)}</h1>{''.join(parts)}</html>\n"
