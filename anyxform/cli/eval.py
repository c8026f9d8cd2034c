"""`anyxform eval [CHECKPOINT] [key=value …]`: every direction × its metrics, with intervals, beside the baselines."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from anyxform.assess import assess, training_set
from anyxform.candidates import check_rank
from anyxform.checkpoint import digest_of_weights, find, write_json
from anyxform.cli.build import check_data, having_split, listed, prepared, typed
from anyxform.cli.conf import compose, offer
from anyxform.dataset import Dataset, check_datasets, open_datasets, shards_of
from anyxform.evaluate import MODEL, Report, Row
from anyxform.field import Direction, did_you_mean, matches
from anyxform.heatmap import draw_heatmap
from anyxform.pipeline import STARTER, Pipeline, load, located
from anyxform.sampling import sampling_of
from anyxform.selection import Selection, choose_items, texts_of
from anyxform.statistics import Interval

CHOICE = ("split", "datasets", "directions", "hold_out", "limit", "via")
"""What says on what a model is judged."""
OWN = (*CHOICE, "unseen_texts", "sampling", "baselines", "candidates", "rank")
"""What a part of a suite may have of its own."""
SPLITS = ("instance", "test", "val")
"""On which of them a model is judged, if it is not said: the first that the data have."""
SETTINGS = ("checkpoint", "dtype", "part", *CHOICE, "unseen_texts", "sampling", "seed", "candidates", "rank")
CONFIG, OWN_DATA = "config.yaml", "of_the_run"
Say = Callable[[str], None]
Config = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the command; writes report.json and heatmap.png, prints a table, and returns the exit code."""
    named, overrides = _split(arguments)
    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    overrides, own = with_own_data(named, suited(named, overrides))
    config = typed(compose("eval", prepared(overrides)), compose("eval", []))
    check_data(config["data"], ("root", "datasets", "directions"))
    check_datasets(config["data"]["datasets"])
    config["checkpoint"] = named or config["checkpoint"]
    parts = _there(_parts(config), say)
    pipeline = load(config["checkpoint"], device=config["device"], dtype=config["dtype"], compile=config["compile"])
    if own is not None:
        what = "that it was trained with" if own else f"of the starter, as it has no {CONFIG} that names its own"
        say(f"on the data {what}: {config['data']['root']}")
    assert pipeline.path is not None
    weights = digest_of_weights(pipeline.path)
    for part in parts.values():
        if part["via"] is not None:
            pipeline.field(part["via"])
    seen = set[tuple[str, str]]()
    if any(part["unseen_texts"] for part in parts.values()):
        say("reading the texts of the training data")
        seen = texts_of(_open(pipeline, config, config["baselines_split"]), pipeline.modalities)
    chosen = {name: select(pipeline, part, seen if part["unseen_texts"] else ()) for name, part in parts.items()}
    for reason, count in sum((it.refused for it in chosen.values()), Counter[str]()).most_common(3):
        say(f"left out {count} times: {reason}")
    for name, selection in chosen.items():
        if not selection.items:
            raise ValueError((f"{name}: " if name else "") + _nothing(pipeline, parts[name], selection))
        sampling = sampling_of(parts[name]["sampling"])
        if config["compile"] and sampling.uncompiled:
            say((f"{name}: " if name else "") + f"not compiled, as there is no compiled step for {sampling.uncompiled}")
        for direction in {item.direction for item in selection.items}:
            pipeline.check_spelling(sampling, direction.sources[0].modality, direction.target.modality)
    known = None
    if config["baselines"]:
        say("reading the training data for the baselines")
        items = [item for it in chosen.values() for item in it.items]
        known = training_set(pipeline, _open(pipeline, config, config["baselines_split"]), items)
    out = Path(str(config["out"] or _beside(pipeline)))
    for name, part in parts.items():
        done = assess(
            pipeline,
            chosen[name].items,
            known if part["baselines"] else None,
            via=part["via"],
            candidates=part["candidates"],
            rank=part["rank"],
            options=part["sampling"],
            judges=part["judges"],
            batch_size=part["batch_size"],
            seed=part["seed"],
            say=say,
        )
        _write(done.report, out / name, {"part": name} | part if name else part, weights, say)
    say(f"written to {out}")
    return 0


def suited(named: str | None, overrides: Sequence[str]) -> list[str]:
    """The overrides, and for the shipped checkpoint its suite, unless they say themselves on what it is judged."""
    given = _given(overrides)
    if _checkpoint(named, given) != STARTER or given.keys() & {"suite", "data", *CHOICE}:
        return [*overrides]
    return ["suite=starter", *overrides]


def with_own_data(named: str | None, overrides: Sequence[str]) -> tuple[list[str], bool | None]:
    """The overrides, and the data that the checkpoint's config.yaml names, unless they say themselves which.

    Whether it names any; None: it does not matter.
    """
    given = _given(overrides)
    checkpoint = _checkpoint(named, given)
    if checkpoint == STARTER or "data" in given:
        return [*overrides], None
    data = _trained_on(checkpoint)
    if data is None:
        return [*overrides], False
    offer("data", OWN_DATA, data)
    return [f"data={OWN_DATA}", *overrides], True


def _trained_on(checkpoint: str) -> Mapping[str, Any] | None:
    """The data in the config beside a checkpoint, or in its run; None: there is none that can be used."""
    try:
        folder = find(located(checkpoint)).resolve()
        run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
        text = (run / CONFIG).read_text(encoding="utf-8")
        trained = None if "${" in text else yaml.safe_load(text)  # what a stranger wrote looks nothing up here
    except (ValueError, OSError, yaml.YAMLError):
        return None
    data = trained.get("data") if isinstance(trained, Mapping) else None
    return data if isinstance(data, Mapping) else None


def _given(overrides: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.lstrip("+~").partition("=") for word in overrides)}


def _checkpoint(named: str | None, given: Mapping[str, str]) -> str:
    return named or given.get("checkpoint", STARTER).strip("'\"")


def _parts(config: Config) -> dict[str, Config]:
    """The config of each part of the suite; without a suite, one without a name."""
    suite = config.get("suite") or {"": {}}
    return {name: _part(config, name, own or {}) for name, own in suite.items()}


def _part(config: Config, name: str, own: Config) -> Config:
    """The config with a part's own keys."""
    if not isinstance(own, Mapping):
        raise ValueError(f"suite.{name}={own} is not possible: give keys and values, such as limit: 50")
    for key in own:
        if key not in OWN:
            raise ValueError(f"suite.{name}.{key} is unknown: {did_you_mean(str(key), OWN)}")
    part = {**config, **typed(own, {key: config[key] for key in own}, f"suite.{name}")}
    sampling_of(part["sampling"])  # these complain before anything is read
    check_rank(part["rank"])
    if part["candidates"] < 1 or part["limit"] < 1:
        raise ValueError(f"candidates={part['candidates']}, limit={part['limit']}: give 1 or more")
    split = part["split"]
    return part | {"sampling": part["sampling"] or {}, "split": _first_split(part) if split is None else str(split)}


def _first_split(part: Config) -> str:
    return next((split for split in SPLITS if having_split(_wanted(part), part["data"]["root"], split)), SPLITS[0])


def _there(parts: dict[str, Config], say: Say) -> dict[str, Config]:
    """A suite without its parts on datasets that are not on this machine; all parts, if none would be left."""
    absent = {name: part for name, part in parts.items() if name and listed(part["datasets"]) and not _shards(part)}
    if len(absent) == len(parts):
        return parts  # whose first says what is missing
    for name, part in absent.items():
        say(f"without {name}: no shards of {', '.join(listed(part['datasets']))} in {part['data']['root']}")
    return {name: part for name, part in parts.items() if name not in absent}


def _shards(config: Config) -> list[str]:
    """Those of the datasets to judge on."""
    data, split = config["data"], config["split"]
    return [it for own in _wanted(config).values() for it in shards_of(own, data["root"], split)]


def _write(report: Report, out: Path, config: Config, weights: str | None, say: Say) -> None:
    """A part's report.json, which says of which `weights` it is, and heatmap.png, and its tables on the screen."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    settings |= {"data": config["data"]["root"]} | ({"weights": weights} if weights else {})
    write_json(out / "report.json", {"settings": settings, **report.to_dict()})
    title = f"split {config['split']}"
    tell(report.summary, f"{config['part']}, {title}" if "part" in config else "by modality")
    tell(report.directions, f"every direction, {title}")
    try:
        draw_heatmap(report.directions, out / "heatmap.png", f"{config['checkpoint']}, {title}")
    except ValueError as error:  # everything else is measured and saved
        say(str(error))


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The checkpoint, if the first argument is one, and the overrides."""
    if not arguments or arguments[0].startswith(("-", "~")):
        return None, list(arguments)
    if "=" in arguments[0] and not Path(arguments[0]).exists():
        return None, list(arguments)
    return arguments[0], list(arguments[1:])


def _open(pipeline: Pipeline, config: Config, split: str) -> dict[str, Dataset]:
    return open_datasets(config["data"]["datasets"], pipeline.modalities, root=config["data"]["root"], split=split)


def _wanted(config: Config) -> dict[str, Config]:
    """The configs of the datasets to judge on."""
    known, wanted = config["data"]["datasets"], listed(config["datasets"])
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"datasets: the data in {config['data']['root']} have no {name!r}: {did_you_mean(name, list(known))}; "
                "see data="
            )
    return {name: known[name] for name in wanted or known}


def _judged(pipeline: Pipeline, config: Config) -> dict[str, Dataset]:
    """The datasets of the split to judge on."""
    return _open(pipeline, {**config, "data": {**config["data"], "datasets": _wanted(config)}}, config["split"])


def _nothing(pipeline: Pipeline, config: Config, chosen: Selection) -> str:
    """Why there is nothing to judge."""
    trained = pipeline.facts.get("directions", [])
    unknown = f"the model was not trained for {sorted(chosen.unknown)[:6]}; " if chosen.unknown else ""
    return (
        f"the split {config['split']!r} holds nothing to judge this model on: {unknown}its directions are "
        f"{trained[:6]}{' …' if len(trained) > 6 else ''}; see split=, directions=, limit="
    )


def select(pipeline: Pipeline, config: Config, seen: Container[tuple[str, str]] = ()) -> Selection:
    """The items of a config: of the trained directions unless others are named, held out ones included.

    `seen`: texts that must be no part of them.
    """
    trained = [Direction.parse(name) for name in pipeline.facts.get("directions", [])]
    attributes = {it for it in pipeline.model.condition_ids if not it.startswith("to:")}

    def known(direction: Direction) -> bool:
        if config["directions"]:  # whatever can be asked for
            return attributes.issuperset(direction.target.attributes)
        return any(_alike(direction, other) for other in trained)

    return choose_items(
        _judged(pipeline, config),
        pipeline.modalities,
        patterns=listed(config["directions"]) or list(config["data"]["directions"]),
        hold_out=listed(config["hold_out"]),
        limit=config["limit"],
        seed=config["seed"],
        known=known,
        new_only=config["split"] == config["instance_split"],
        seen=seen,
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
        verdict = row.verdict(metric) if row.strongest(metric) else ""
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
