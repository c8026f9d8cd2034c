"""How far a recipe gets in some seconds: losses on instances that were held out, from one modality to another.

    python -m benchmarks.recipe SECONDS [key=value …]

Trains as `anyxform train` would with these overrides, but for a learning rate that falls by a cosine over the seconds,
whatever the number of steps: so recipes whose steps take different times can be compared. Nothing is saved.
"""

import json
import math
import sys
import time
from dataclasses import replace
from itertools import islice

import torch

from anyxform.cli.build import having_split, prepared
from anyxform.cli.conf import compose
from anyxform.cli.train import Run
from anyxform.dataset import open_datasets
from anyxform.progress import by_pairs
from anyxform.train import averaged, train, validation_loss

ROWS = 12
FINAL = 0.02
OPTIONS = ("rows_per_step", "exit_every", "clip", "bf16", "exit_weight", "length_weight")


def main(seconds: float, overrides: list[str]) -> None:
    overrides = prepared([*overrides, "run_dir=runs/unsaved"])
    config = compose("train", overrides)
    torch.manual_seed(config["seed"])
    run = Run(config, overrides)
    model, data, options, optim = run.state.model, config["data"], config["train"], config["optim"]
    split = having_split(data["datasets"], data["root"], "instance")
    held = replace(run.data, val=open_datasets(split, run.modalities, root=data["root"], split="instance"))
    batches = [b for b, _ in islice(held.rows("val", model, run.modalities, seed=0, pad=False).from_position(), ROWS)]
    rows = run.data.rows("train", model, run.modalities, seed=config["seed"], pad=False)
    tokens, began = 0, time.perf_counter()

    def passed() -> float:
        return min(1.0, (time.perf_counter() - began) / seconds)

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / optim["warmup"])
        return optim["lr"] * warm * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * passed())))

    arguments = {name: options[name] for name in OPTIONS}
    for metrics in train(
        run.state, rows.from_position(), steps=10**9, lr=rate, seed=config["seed"],
        weights=options["loss_weights"], **arguments,
    ):  # fmt: skip
        tokens += metrics["tokens"]
        if passed() == 1:
            break
    with averaged(run.state) as average:
        loss, directions = validation_loss(average, batches, bf16=options["bf16"])
    result = {"steps": run.state.step, "tokens_per_second": round(tokens / seconds), "loss": round(loss, 3)}
    print(json.dumps(result | {pair: round(value, 2) for pair, value in by_pairs(directions).items()}))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
