"""A model card in Markdown, made of what training and judging recorded and of nothing else."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from anyxform.evaluate import MODEL, is_baseline
from anyxform.field import Direction
from anyxform.progress import by_pairs

POINTS = 10
"""Lines of the table of losses."""
Report = Mapping[str, Any]


def model_card(
    title: str,
    config: Mapping[str, Any],
    *,
    journal: Sequence[Mapping[str, Any]] = (),
    curve: str = "",
    earlier: Sequence[str] = (),
    reports: Sequence[Report] = (),
    licences: str = "",
) -> str:
    """The card of a checkpoint.

    `config`: its config.json. `journal`: the lines of its run's metrics.jsonl; `curve`: the file of their picture.
    `earlier`: files ``config-until-<step>.yaml`` of what it was trained with before. `reports`: what `anyxform eval`
    wrote. `licences`: Markdown on the data's sources.
    """
    facts = config.get("facts", {})
    parts = [
        f"# {title}",
        _what(config, facts),
        "## Directions",
        _directions(config.get("directions", ()), facts.get("hold_out", ())),
        "## Training",
        _training(facts),
        _earlier(earlier),
        f"![The loss of every pair of modalities]({curve})" if curve else "",
        _losses(journal),
        *(part for report in reports for part in (f"## {_judged_on(report)}", _results(report))),
        "## Limits",
        _limits(config, facts, reports),
    ]
    if licences:
        parts += ["## Data", licences.strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _what(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    model = config["model"]
    size = f"{facts['parameters'] / 1e6:.1f} M parameters, " if "parameters" in facts else ""
    layers, names = f"{model['depth']} layers of width {model['dim']}", ", ".join(config["modalities"])
    rows = []
    for name, arguments in config["modalities"].items():
        plain = {key: value for key, value in arguments.items() if isinstance(value, int | float | str | list)}
        rows.append([name, ", ".join(f"{key} {value}" for key, value in plain.items() if len(str(value)) < 40)])
    return f"One Transformer ({size}{layers}) between {names}.\n\n{table(['modality', 'as configured'], rows)}"


def _directions(directions: Sequence[str], held: Sequence[str]) -> str:
    """Pairs of modalities, with the variants of either side."""
    parsed = sorted(map(Direction.parse, directions), key=_pair)
    rows = []
    for pair, group in groupby(parsed, key=_pair):
        found = list(group)
        sources = sorted({str(source) for direction in found for source in direction.sources})
        targets = sorted({str(direction.target) for direction in found})
        rows.append([pair, len(found), ", ".join(sources), ", ".join(targets)])
    text = table(["from, to", "directions", "from", "to"], rows)
    return f"{text}\n\nHeld out of training: {', '.join(f'`{pattern}`' for pattern in held)}." if held else text


def _pair(direction: Direction) -> str:
    return f"{' + '.join(source.modality for source in direction.sources)} → {direction.target.modality}"


def _training(facts: Mapping[str, Any]) -> str:
    samples = ", ".join(f"{name} {count:,}" for name, count in facts.get("samples", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    named = {
        "steps": f"{facts['steps']:,}" if "steps" in facts else "",
        "tokens": f"{facts['tokens']:,}" if "tokens" in facts else "",
        "hours": facts.get("hours", ""),
        "device": facts.get("device", ""),
        "training samples": samples,
        "weights": _averaged(facts["averaged"]) if "averaged" in facts else "",
        "seed": facts.get("seed", ""),
        "steps skipped, as their loss was not finite": facts.get("skipped", ""),
        "versions": versions,
    }
    rows = [[name, value] for name, value in named.items() if value not in ("", None)]
    command = f"\n\n```sh\n{facts['command']}\n```" if "command" in facts else ""
    return table(["", "recorded"], rows) + command + _began_with(facts.get("began_with", ()))


def _averaged(averaged: Mapping[str, Any]) -> str:
    return f"a mean: {averaged['share']:g} of its own, the rest of {', '.join(averaged['with'])}"


def _began_with(history: Sequence[Mapping[str, Any]]) -> str:
    """The runs before: what they cost belongs to the model too."""
    lines = []
    for run in history:
        cost = [f"{run[key]:,} {key}" for key in ("steps", "tokens", "hours") if key in run]
        said = [run.get("architecture", ""), *cost, f"`{run['command']}`" if "command" in run else ""]
        said += [_averaged(run["averaged"])] if "averaged" in run else []
        lines.append(
            f"- It began with the weights of {run['name']}: {', '.join(filter(None, said)) or 'not recorded'}."
        )
    return "".join(f"\n{line}" for line in ["", *lines]) if lines else ""


def _earlier(names: Sequence[str]) -> str:
    """Which configs a run had before the one of its command."""
    steps = [int(name.removeprefix("config-until-").removesuffix(".yaml")) for name in names]
    return "\n".join(f"- Up to step {step:,} it was trained as `{name}` says." for step, name in zip(steps, names))


def _losses(journal: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss over the run, each row the mean since the row above."""
    if not journal:
        return ""
    last = journal[-1]["step"]
    edges = [last * (number + 1) / POINTS for number in range(POINTS)]
    losses = {line["step"]: by_pairs(line.get("directions") or {}) for line in journal}
    rows, pairs = [], sorted({pair for each in losses.values() for pair in each})
    for low, high in zip([0, *edges], edges):
        lines = [line for line in journal if low < line["step"] <= high]
        if not lines:
            continue
        validation = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
        each = [losses[line["step"]] for line in lines]
        cells = [_mean([some[pair] for some in each if pair in some]) for pair in pairs]
        totals = [line["loss"] for line in lines if line.get("loss") is not None]
        rows.append([f"{lines[-1]['step']:,}", _mean(totals), _mean(validation), *cells])
    return table(["step", "loss", "validation", *(pair.replace(">", " → ") for pair in pairs)], rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "–"


def _judged_on(report: Report) -> str:
    """What a report is about: its part of a suite, and the split."""
    settings = report.get("settings", {})
    part = str(settings.get("part", "")).replace("-", " ").capitalize()
    return f"{f'{part}, on' if part else 'Judged on'} the split `{settings.get('split', '?')}`"


def _results(report: Report) -> str:
    """A row for each direction: the headline with its interval beside the best baseline, and so the other metrics."""
    rows = [_row(row, f"**{row['direction']}**") for row in report["summary"]]
    rows += [_row(row, row["direction"]) for row in report["directions"]]
    settings = report.get("settings", {})
    chosen = [f"{key} {settings[key]}" for key in ("limit", "seed", "sampling") if settings.get(key) is not None]
    head = ["direction", "n", "metric", "model [95 %]", "best baseline", "verdict", "also"]
    return f"{table(head, rows)}\n\n{', '.join(['Bold: all variants together', *chosen])}."


def _row(row: Mapping[str, Any], label: str) -> list[object]:
    values, metric = row["systems"][MODEL], row["headline"]
    also = "; ".join(_also(row, name) for name in values if name != metric)
    verdict = row.get("verdicts", {}).get(metric, "")
    return [label, row["n"], _arrow(row, metric), _interval(values[metric]), _best(row, metric), verdict, also]


def _also(row: Mapping[str, Any], metric: str) -> str:
    best = _best(row, metric)
    return f"{metric} {_interval(row['systems'][MODEL][metric])}{f', beside {best}' if best else ''}"


def _arrow(row: Mapping[str, Any], metric: str) -> str:
    return f"{metric} {'↓' if metric in row['lower_is_better'] else '↑'}"


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def _best(row: Mapping[str, Any], metric: str) -> str:
    others = {
        name: values[metric]["value"]
        for name, values in row["systems"].items()
        if is_baseline(name) and metric in values
    }
    if not others:
        return ""
    best = (min if metric in row["lower_is_better"] else max)(others, key=lambda name: others[name])
    return f"{others[best]:.3g} ({best})"


def _limits(config: Mapping[str, Any], facts: Mapping[str, Any], reports: Sequence[Report]) -> str:
    lines = [
        f"- Sources and targets are no larger than the modalities above say; it knows no other attributes than: "
        f"{', '.join(name for name in config['conditions'] if not name.startswith('to:')) or 'none'}.",
        "- It has seen nothing but its training samples: what is not like them it answers anyway.",
    ]
    for report in reports:
        behind = [
            f"{row['direction']} ({row['headline']}, {row['verdicts'][row['headline']]})"
            for row in report["summary"]
            if row.get("verdicts", {}).get(row["headline"], "better") != "better"
        ]
        if behind:
            lines.append(f"- {_judged_on(report)}: not clearly better than every baseline: {', '.join(behind)}.")
    return "\n".join(lines)
