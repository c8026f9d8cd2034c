"""Which size of model is right for a time of training, by the law that runs on this machine follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyxform.checkpoint import find, read_json
from anyxform.progress import read_journal
from anyxform.scaling import TRAINING, Law, Point


@dataclass(frozen=True)
class Measured:
    """What a run's folder says."""

    name: str
    parameters: int
    tokens_per_second: float
    points: list[Point]


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


def advise(law: Law, runs: Sequence[Measured], hours: float) -> dict[str, Any]:
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
