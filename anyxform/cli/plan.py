"""`anyxform plan --fit RUN RUN RUN …`: which size of model is right for a time of training, by runs on this machine."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from anyxform.checkpoint import find, read_json, write_json
from anyxform.cli.arguments import Parser
from anyxform.progress import read_journal
from anyxform.scaling import Law, Point, fit_law
from anyxform.scaling_picture import draw_scaling

TRAINING = 6.0
"""Floating-point operations for each parameter and token: forward 2, backward 4."""


@dataclass(frozen=True)
class Measured:
    """What a run's folder says."""

    name: str
    parameters: int
    tokens_per_second: float
    points: list[Point]


def main(arguments: list[str]) -> int:
    """Print the law and its advice, write plan.json and scaling.png; returns the exit code."""
    parser = Parser(
        prog="anyxform plan",
        description="Fit the held-out loss of runs to a power law of size and data, and say which size is right.",
    )
    parser.add_argument("--fit", nargs="+", type=Path, required=True, metavar="RUN", help="runs of three sizes or more")
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 3, 10, 30, 100], help="of training, to advise on")
    parser.add_argument("--skip", type=float, default=0.1, help="share of each run that is left out at its start")
    parser.add_argument("-o", "--out", type=Path, default=Path("plan"), help="a folder (default: plan)")
    options = parser.parse_args(arguments)
    if not 0 <= options.skip < 1:
        raise ValueError(f"--skip {options.skip:g} is not possible: give a share from 0 to below 1")
    if min(options.hours) <= 0:
        raise ValueError(f"--hours {min(options.hours):g} is not possible: give hours above 0")
    runs = [measured(path, options.skip) for path in options.fit]
    law = fit_law([point for run in runs for point in run.points])
    options.out.mkdir(parents=True, exist_ok=True)
    advice = [advise(law, runs, hours) for hours in sorted(options.hours)]
    write_json(options.out / "plan.json", {"law": asdict(law), "runs": [asdict(it) for it in runs], "advice": advice})
    _tell(law, runs, advice)
    try:
        draw_scaling(law, {run.name: run.points for run in runs}, options.out / "scaling.png")
    except ValueError as error:  # everything else is measured and saved
        Console(stderr=True).print(str(error), markup=False)
    print(options.out)
    return 0


def measured(path: Path, skip: float = 0.0) -> Measured:
    """A run's size, its speed, and its validations after the first share `skip` of its steps."""
    facts = read_json(find(path) / "config.json").get("facts", {})
    journal = read_journal(path / "metrics.jsonl")
    if not journal or not {"parameters", "tokens", "steps", "seconds"} <= facts.keys():
        raise ValueError(f"{path} is no whole run: give the run_dir of anyxform train, metrics.jsonl included")
    per_step = facts["tokens"] / facts["steps"]
    points = [
        Point(facts["parameters"], line["step"] * per_step, line["val_loss"])
        for line in journal
        if line.get("val_loss") and line["step"] > skip * journal[-1]["step"]
    ]
    return Measured(path.name, facts["parameters"], facts["tokens"] / facts["seconds"], points)


def advise(law: Law, runs: Sequence[Measured], hours: float) -> dict[str, object]:
    """What to expect of each measured size after so many hours at its measured speed, and the size that is best.

    The best size is that of the law at the rate of operations that the runs reached, interpolated by their sizes.
    """
    expected = {it.name: law.loss(it.parameters, it.tokens_per_second * 3600 * hours) for it in runs}
    by_size = sorted((math.log(it.parameters), TRAINING * it.parameters * it.tokens_per_second) for it in runs)
    sizes, rates = zip(*by_size)
    parameters = math.exp(sum(sizes) / len(sizes))
    for _ in range(20):  # the rate depends on the size, and the size on the rate
        rate = float(np.interp(math.log(parameters), sizes, rates))
        parameters, tokens = law.best_size(rate * 3600 * hours)
    return {
        "hours": hours,
        "best_parameters": round(parameters),
        "tokens": round(tokens),
        "loss": law.loss(parameters, tokens),
        "of_the_runs": min(expected, key=lambda name: expected[name]),
        "expected": expected,
    }


def _tell(law: Law, runs: Sequence[Measured], advice: Sequence[dict[str, object]]) -> None:
    console = Console()
    console.print(
        f"loss = {law.floor:.3f} + {law.a:.3g} / parameters^{law.alpha:.3f} + {law.b:.3g} / tokens^{law.beta:.3f}, "
        f"{law.error:.1%} beside the {sum(len(run.points) for run in runs)} losses measured",
        soft_wrap=True,
        highlight=False,
    )
    table = Table(
        "hours", "best size", "on tokens", "loss", *(f"{run.name} ({_short(run.parameters)})" for run in runs)
    )
    for line in advice:
        expected: dict[str, float] = line["expected"]  # type: ignore[assignment]
        cells = [f"{value:.3f}{' ◀' * (name == line['of_the_runs'])}" for name, value in expected.items()]
        best = [_short(float(str(line[name]))) for name in ("best_parameters", "tokens")]
        table.add_row(f"{line['hours']:g}", *best, f"{line['loss']:.3f}", *cells)
    Console(width=None if console.is_terminal else 140).print(table)


def _short(number: float) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"
