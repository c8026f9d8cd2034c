"""`anyxform eval [CHECKPOINT] [key=value …]`: every direction × its metrics, with intervals, beside the baselines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anyxform.assess import assess
from anyxform.checkpoint import write_json
from anyxform.cli.build import prepared, typed
from anyxform.cli.conf import compose
from anyxform.dataset import Dataset, open_datasets
from anyxform.evaluate import MODEL, Row
from anyxform.field import Direction, matches
from anyxform.heatmap import draw_heatmap
from anyxform.pipeline import Pipeline, load
from anyxform.selection import Selection, choose_items
from anyxform.statistics import Interval


def main(arguments: list[str]) -> int:
    """Run the command; writes report.json and heatmap.png, prints a table, and returns the exit code."""
    named, overrides = _split(arguments)
    config = typed(compose("eval", prepared(overrides)), compose("eval", []))
    config["checkpoint"] = named or config["checkpoint"]
    config["directions"], config["hold_out"] = listed(config["directions"]), listed(config["hold_out"])
    console = Console(stderr=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    pipeline = load(config["checkpoint"], device=config["device"])
    chosen = select(pipeline, config)
    for reason, count in chosen.refused.most_common(3):
        say(f"left out {count} times: {reason}")
    if not chosen.items:
        raise ValueError(_nothing(pipeline, config, chosen))
    training = _open(pipeline, config, config["baselines_split"]) if config["baselines"] else {}
    done = assess(
        pipeline,
        chosen.items,
        training,
        options=config["sampling"],
        baselines=config["baselines"],
        judges=config["judges"],
        batch_size=config["batch_size"],
        seed=config["seed"],
        say=say,
    )
    out = Path(str(config["out"] or _beside(pipeline)))
    out.mkdir(parents=True, exist_ok=True)
    settings = {key: config[key] for key in ("checkpoint", "split", "limit", "seed", "sampling")}
    write_json(out / "report.json", {"settings": settings, **done.report.to_dict()})
    tell(done.report.summary, "by modality")
    tell(done.report.directions, f"every direction, split {config['split']}")
    try:
        draw_heatmap(done.report.directions, out / "heatmap.png", f"{config['checkpoint']}, split {config['split']}")
    except ValueError as error:  # everything else is measured and saved
        say(str(error))
    say(f"written to {out}")
    return 0


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The checkpoint, if the first argument is one, and the overrides."""
    if not arguments or arguments[0].startswith(("-", "~")):
        return None, list(arguments)
    if "=" in arguments[0] and not Path(arguments[0]).exists():
        return None, list(arguments)
    return arguments[0], list(arguments[1:])


def listed(patterns: str | list[str] | None) -> list[str]:
    """One pattern, several or none as a list."""
    return [patterns] if isinstance(patterns, str) else patterns or []


def _open(pipeline: Pipeline, config: dict[str, Any], split: str) -> dict[str, Dataset]:
    return open_datasets(config["data"]["datasets"], pipeline.modalities, root=config["data"]["root"], split=split)


def _nothing(pipeline: Pipeline, config: dict[str, Any], chosen: Selection) -> str:
    """Why there is nothing to judge."""
    trained = pipeline.facts.get("directions", [])
    unknown = f"the model was not trained for {sorted(chosen.unknown)[:6]}; " if chosen.unknown else ""
    return (
        f"the split {config['split']!r} holds nothing to judge this model on: {unknown}its directions are "
        f"{trained[:6]}{' …' if len(trained) > 6 else ''}; see split=, directions=, limit="
    )


def select(pipeline: Pipeline, config: dict[str, Any]) -> Selection:
    """The items of a config: of the trained directions unless others are named, held out ones included."""
    trained = [Direction.parse(name) for name in pipeline.facts.get("directions", [])]
    attributes = {it for it in pipeline.model.condition_ids if not it.startswith("to:")}

    def known(direction: Direction) -> bool:
        if config["directions"]:  # whatever can be asked for
            return attributes.issuperset(direction.target.attributes)
        return any(_alike(direction, other) for other in trained)

    return choose_items(
        _open(pipeline, config, config["split"]),
        pipeline.modalities,
        patterns=config["directions"] or list(config["data"]["directions"]),
        hold_out=config["hold_out"],
        limit=config["limit"],
        seed=config["seed"],
        known=known,
        new_only=config["split"] == config["instance_split"],
    )


def _alike(direction: Direction, trained: Direction) -> bool:
    """Whether a direction was trained, from whatever variant of its sources' modalities."""
    sources = "+".join(source.modality for source in direction.sources)
    return matches(trained, f"{sources}>{direction.target}")


def _beside(pipeline: Pipeline) -> Path:
    """Where the result goes by default: a folder named like the run and the checkpoint."""
    assert pipeline.path is not None
    path = pipeline.path.resolve()
    return Path("eval") / (path.parents[1].name if path.parent.name == "checkpoints" else "") / path.name


def tell(rows: Sequence[Row], title: str) -> None:
    """Print rows as a table: the headline of each direction, the model's value and those of the baselines."""
    names = list(dict.fromkeys(name for row in rows for name in row.systems if name != MODEL))
    table = Table("direction", "n", "metric", MODEL, *names, "verdict", title=title)
    for row in rows:
        metric = row.headline
        arrow = "↓" if metric in row.lower_is_better else "↑"
        values = [number(row.systems.get(name, {}).get(metric)) for name in names]
        verdict = row.verdict(metric) if row.against else ""
        table.add_row(
            row.direction, str(row.n), f"{metric} {arrow}", number(row.systems[MODEL][metric]), *values, verdict
        )
    console = Console()
    Console(width=None if console.is_terminal else 180).print(table)


def number(value: Interval | None) -> str:
    """A value with its interval."""
    if value is None:
        return "–"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
