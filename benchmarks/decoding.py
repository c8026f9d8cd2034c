"""Pictures decoded in parallel and left to right by the same weights: how many are right, and how long they take.

    python -m benchmarks.decoding [SECONDS] [KEYS] [LIMIT]

A model is trained for SECONDS to draw the noto emoji whose keys fit KEYS, half of the times in each way of decoding.
Judged: whether an independent judge, shown a drawing, retrieves the right one among those drawings; each setting beside
the defaults, one option changed at a time. Timed on one thread, in alternation, one picture at a time: both ways with
the same guidance, of this model's 64 tokens and of 256 tokens by a model of the same size with random weights, of that
in bf16 too. Nothing is saved.
"""

import sys
from typing import Any

import torch

from anyxform.cli.build import prepared
from anyxform.cli.conf import compose
from anyxform.cli.train import Run
from anyxform.data import source
from anyxform.dataset import open_datasets
from anyxform.evaluate import Item, evaluate
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.modality import Modality, get_modality
from anyxform.model import PRESETS, Transformer
from anyxform.pipeline import Pipeline
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.selection import choose_items
from anyxform.sequence import marker
from anyxform.train import train
from benchmarks.compare import Comparison, calibration, compare, report
from benchmarks.specialists import OPTIONS, Budget

DIRECTION = "text:en>image:noto"
DEFAULTS = ("200", "1f4[0-7]*", "100")
DEFAULT = "masked, 12 steps"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "masked, 4 steps": {"steps": 4},
    "masked, 8 steps": {"steps": 8},
    "masked, 16 steps": {"steps": 16},
    "temperature 0": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "guidance 1": {"guidance": 1.0},
    "guidance 3": {"guidance": 3.0},
    "choice temperature 0": {"choice_temperature": 0.0},
    "choice temperature 2": {"choice_temperature": 2.0},
    "left to right": {"decoding": "autoregressive", "temperature": 0.5, "guidance": 1.5},
    "left to right, the likeliest": {"decoding": "autoregressive", "temperature": 0.0, "guidance": 1.5},
    "left to right, temperature 1": {"decoding": "autoregressive", "temperature": 1.0, "guidance": 1.5},
}
"""Beside the defaults: temperature 0.5, guidance 1.5, choice temperature 0.5."""


def trained(seconds: float, keys: str, limit: int) -> tuple[Run, list[Item]]:
    """A model of both ways, and up to `limit` of the drawings that it learnt as items."""
    words = prepared(["experiment=starter", "run_dir=runs/unsaved", "train.compile=false"])
    config = compose("train", words)
    data = config["data"]
    data |= {
        "directions": {DIRECTION: 1.0},
        "hold_out": [],
        "datasets": {"emoji": data["datasets"]["emoji"] | {"keys": [keys]}},
        "other_decoding": 0.5,
    }
    torch.manual_seed(config["seed"])
    run, budget, optim = Run(config, words), Budget(seconds=seconds), config["optim"]
    rows = run.data.rows("train", run.state.model, run.modalities, seed=config["seed"], pad=False)
    steps = train(
        run.state, rows.from_position(), steps=10**9, seed=config["seed"],
        lr=lambda step: budget.rate(step, optim["lr"], optim["warmup"]),
        **{name: config["train"][name] for name in OPTIONS},
    )  # fmt: skip
    losses = []
    for metrics in steps:
        losses.append(metrics["loss"])
        if budget.passed() == 1:
            break
    print(f"{run.state.step} steps, loss {sum(losses[-20:]) / len(losses[-20:]):.2f}")
    found = {"emoji": {name: value for name, value in data["datasets"]["emoji"].items() if name != "weight"}}
    datasets = open_datasets(found, run.modalities, root=data["root"])
    items = choose_items(datasets, run.modalities, patterns=[DIRECTION], limit=limit).items
    return run, items


def judge(pipeline: Pipeline, items: list[Item]) -> dict[str, Any]:
    """The drawings retrieved with each setting, printed and returned."""
    given = [item.direction for item in items], [item.sources for item in items]
    answers = {name: pipeline.answer(*given, **options) for name, options in SETTINGS.items()}
    answers["model"] = answers[DEFAULT]
    (row,) = evaluate(items, answers, pipeline.modalities).directions
    print(f"{row.n} drawings; the right one is retrieved")
    for name in [*SETTINGS, "truth"]:
        it = row.systems[name]["retrieval"]
        print(f"  {name}: {it.value:.3f} [{it.low:.3f}, {it.high:.3f}]")
    return {name: row.systems[name]["retrieval"].value for name in [*SETTINGS, "truth"]}


def timed(model: Transformer, modalities: dict[str, Modality], request: Request, steps: int, pairs: int) -> Comparison:
    """Pictures a second: masked against left to right."""
    tokens = modalities["image"].max_length

    def draw(**options: Any) -> float:
        generate(model, modalities, [request], Sampling(guidance=1.5, temperature=0.5, **options))
        return 1.0

    return compare(
        f"{tokens} tokens, {model.norm.weight.dtype}, {steps} steps against left to right",
        lambda: draw(steps=steps), lambda: draw(decoding="autoregressive"), unit="pictures/s", pairs=pairs, warmup=1,
    )  # fmt: skip


def large(modalities: dict[str, Modality], conditions: list[str]) -> tuple[Transformer, dict[str, Modality]]:
    """A model of pictures of 256 tokens."""
    image = get_modality("image")(downsample=4, num_codebooks=1, patch_size=16)  # type: ignore[call-arg]
    both = {"text": modalities["text"], "image": image}
    return Transformer(modalities=both, conditions=conditions, **PRESETS["tiny"]).eval(), both  # type: ignore[arg-type]


def main(seconds: float, keys: str, limit: int) -> None:
    run, items = trained(seconds, keys, limit)
    model = run.state.model.eval()
    retrieved = judge(Pipeline(model, run.modalities), items)
    torch.set_num_threads(1)
    before = calibration()
    request = Request((source(run.modalities["text"], items[0].sources[0], "image"),), Field.parse("image:noto"))
    results = [timed(model, run.modalities, request, steps, 8) for steps in (4, 8, 12, 16)]
    other = large(run.modalities, ["noto", marker("image"), marker("text")])
    results += [timed(*other, request, steps, 4) for steps in (4, 8, 12)]
    other[0].bfloat16()
    results += [timed(*other, request, steps, 4) for steps in (4, 8, 12)]
    report(results, before, steps=run.state.step, items=len(items), retrieved=retrieved)


if __name__ == "__main__":
    seconds, keys, limit = [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]]
    main(float(seconds), keys, int(limit))
