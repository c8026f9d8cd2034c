"""How many steps, by which schedule: a checkpoint's pictures and speech in parallel and left to right, how good and how
fast.

    python -m benchmarks.steps [--limit 100] [--checkpoint starter] [--only pictures]

Needs the extra `eval`. Pictures are of names that were trained on, speech is of held-out recordings. Seconds are of one
answer's codes at a time: the median over rounds in which all numbers of steps take turns, on one thread (THREADS=2 for
two). Left to right is left out where the checkpoint has not learnt it. Prints a table in Markdown for each, and ends
with one line of JSON.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from anyxform.evaluate import MODEL, evaluate
from anyxform.generate import generate
from anyxform.pipeline import Pipeline, load
from anyxform.request import Request
from anyxform.sampling import SCHEDULES, Sampling
from anyxform.selection import choose_items
from benchmarks import starter
from benchmarks.compare import calibration, report

STEPS = (4, 8, 12, 16)
TEMPERATURES = (0.0, 0.25, 1.0)
"""Beside the default, 0.5."""
TIMED, ROUNDS = 3, 5
"""Answers that are timed, and how often: each number of steps once, as schedules and temperatures cost nothing."""


@dataclass(frozen=True)
class Part:
    """What is made: up to a share of the limit of items, by split, dataset and direction, judged by the metrics."""

    name: str
    split: str
    dataset: str
    direction: str
    metrics: Sequence[str]
    share: float


PARTS = (
    Part("pictures", "train", "emoji", "text:en>image:noto", ("retrieval",), 1.0),
    Part("speech", "instance", "prompts", "text:en>audio:en-phone", ("judge_cer", "lsd"), 0.5),
)


def settings(pipeline: Pipeline, request: Request) -> list[Sampling]:
    """Each schedule in each number of steps, the default among them, other temperatures, and left to right."""
    found = [Sampling(steps=steps, schedule=it) for it in SCHEDULES for steps in STEPS]
    found += [Sampling(temperature=it) for it in TEMPERATURES]
    for temperature in (0.0, 0.5):
        other = Sampling(decoding="autoregressive", temperature=temperature, guidance=1.5)
        try:
            found.append(pipeline.learnt(other, [request]))
        except ValueError as error:
            print(error)
            break
    return found


def measured(pipeline: Pipeline, part: Part, limit: int) -> list[dict[str, Any]]:
    """Of each setting what it is, the metrics with their intervals, and seconds an answer."""
    dataset = {part.dataset: starter.datasets(dict(pipeline.modalities), part.split)[part.dataset]}
    items = choose_items(dataset, pipeline.modalities, patterns=[part.direction], limit=limit).items[:limit]
    requests = [pipeline.request(item.direction, item.sources) for item in items]
    ways = settings(pipeline, requests[0])
    target = pipeline.modalities[items[0].direction.target.modality]
    answers = {
        str(number): [
            target.from_codes(it.codes) for it in generate(pipeline.model, pipeline.modalities, requests, way)
        ]
        for number, way in enumerate(ways)
    }
    (row,) = evaluate(items, answers | {MODEL: answers[str(ways.index(Sampling()))]}, pipeline.modalities).directions
    costs = {(way.decoding, way.steps): way for way in reversed(ways)}
    seconds = [timed(pipeline, requests[:TIMED], list(costs.values())) for _ in range(ROUNDS)]
    cost = dict(zip(costs, map(median, zip(*seconds))))
    return [
        {
            "part": part.name,
            "n": row.n,
            "way": "masked" if way.decoding is None else "left to right",
            "schedule": way.schedule,
            "steps": way.steps,
            "temperature": way.temperature_for(way.decoding or target.decoding),
            "metrics": {it: row.systems[str(number)][it] for it in part.metrics if it in row.metrics},
            "seconds": cost[way.decoding, way.steps],
        }
        for number, way in enumerate(ways)
    ]


def timed(pipeline: Pipeline, requests: Sequence[Request], ways: Sequence[Sampling]) -> list[float]:
    """Seconds of an answer by each way."""
    found = []
    for way in ways:
        began = time.perf_counter()
        generate(pipeline.model, pipeline.modalities, requests, way, batch_size=1)
        found.append((time.perf_counter() - began) / len(requests))
    return found


def tell(rows: Sequence[dict[str, Any]]) -> None:
    metrics = list(rows[0]["metrics"])
    print(f"\n| {rows[0]['part']} ({rows[0]['n']}) | steps | temperature | {' | '.join(metrics)} | seconds |")
    print(f"| --- | --- | --- | {'--- | ' * len(metrics)}--- |")
    for it in rows:
        masked = it["way"] == "masked"
        values = [f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]" for own in it["metrics"].values()]
        print(
            f"| {it['way']}{', ' + it['schedule'] if masked else ''} | {it['steps'] if masked else ''} "
            f"| {it['temperature']:g} | {' | '.join(values)} | {it['seconds']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--checkpoint", default="starter")
    parser.add_argument("--only", choices=[part.name for part in PARTS])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    before, pipeline = calibration(), load(options.checkpoint, device="cpu")
    found = list[dict[str, Any]]()
    for part in PARTS:
        if options.only in (None, part.name):
            rows = measured(pipeline, part, max(1, round(part.share * options.limit)))
            tell(rows)
            found += rows
    plain = [it | {"metrics": {name: own.value for name, own in it["metrics"].items()}} for it in found]
    report([], before, ways=plain)


if __name__ == "__main__":
    main()
