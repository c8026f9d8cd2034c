"""`anyxform tokenizer modality=NAME data=NAME`: train a modality's tokenizer, say how good it is, and save it."""

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anyxform.checkpoint import save_modality, write_json
from anyxform.cli.bar import progress_bar
from anyxform.cli.build import build_modality, check_data, having_split, typed
from anyxform.cli.conf import compose
from anyxform.dataset import field_values
from anyxform.modality import Modality

HELD_OUT = 20
"""One value in so many is held out of data whose shards are not split."""


def main(overrides: list[str]) -> int:
    """Run the command with hydra overrides; writes ``<out>/<modality>/`` and returns the exit code."""
    config = typed(compose("tokenizer", overrides), {"seed": 0, "max_values": 1, "max_held_out": 1})
    steps = config["steps"] if config["steps"] is None else typed(config["steps"], 1, "steps")
    for name, value in (("steps", steps), ("max_values", config["max_values"])):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is not possible: give 1 or more")
    check_data(config["data"], ("root", "datasets"))
    console = Console(stderr=True)
    modality = build_modality(config["modality"])
    values, held_out = _read(modality, config, console)
    console.print(f"{modality.name}: fitting on {len(values)} values, {len(held_out)} held out")
    _fit(modality, values, steps=steps, seed=config["seed"], console=console)
    folder = Path(config["out"]) / modality.name
    save_modality(modality, folder)  # before anything can go wrong
    report = modality.report(held_out)
    write_json(folder / "report.json", report)
    random.Random(config["seed"]).shuffle(held_out)  # the picture holds the first few
    modality.compare(held_out, str(folder / "compare.png"))
    Console().print(_table(f"{modality.name} tokenizer on held-out data", report))
    Console().print(f"saved in {folder}", soft_wrap=True)
    return 0


def _read(modality: Modality, config: Mapping[str, Any], console: Console) -> tuple[list[Any], list[Any]]:
    """Training and held-out values; a broken one is counted and left out."""
    data, broken = config["data"], list[str]()

    def read(data: Mapping[str, Any], split: str, most: int) -> list[Any]:
        return list(_load(modality, sample(field_values(data, modality.name, split), most, config["seed"]), broken))

    values = read(data, "train", config["max_values"])
    if having := having_split(data["datasets"], data["root"], "val"):
        held_out = read({**data, "datasets": having}, "val", config["max_held_out"])
    else:
        held_out, values = values[::HELD_OUT], [v for number, v in enumerate(values) if number % HELD_OUT]
    if broken:
        console.print(f"[yellow]{len(broken)} values cannot be read and are left out; the first: {broken[0]}[/]")
    if not values or not held_out:
        raise ValueError(
            f"the data hold too few {modality.name} values to train a tokenizer on "
            f"({len(values)}, and {len(held_out)} held out): see data.datasets"
        )
    return values, held_out


def sample(items: Iterable[bytes], most: int, seed: int) -> list[bytes]:
    """At most `most` of the items, each with the same chance (reservoir sampling: no more than those are held)."""
    chance, kept = random.Random(seed), list[bytes]()
    for number, item in enumerate(items):
        if len(kept) < most:
            kept.append(item)
        elif (place := chance.randrange(number + 1)) < most:
            kept[place] = item
    return kept


def _load(modality: Modality, items: Iterable[bytes], broken: list[str]) -> Iterator[Any]:
    for data in items:
        try:
            yield modality.load(data)
        except ValueError as error:
            broken.append(str(error))


def _fit(modality: Modality, values: list[Any], *, steps: int | None, seed: int, console: Console) -> None:
    with progress_bar(console) as progress:
        task = progress.add_task("preparing", total=None)
        for state in modality.fit(values, steps=steps, seed=seed):
            step, total = int(state["step"]), int(state["steps"])
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in state.items() if name not in ("step", "steps"))
            progress.update(task, completed=step, total=total, description=numbers)
            if not console.is_terminal and (step == total or step % max(1, total // 20) == 0):
                console.print(f"step {step} of {total}  {numbers}", soft_wrap=True)


def _table(title: str, report: Mapping[str, float]) -> Table:
    table = Table(title=title)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in report.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    return table
