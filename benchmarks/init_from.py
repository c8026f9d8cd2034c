"""Does a stack that was trained on texts alone learn captions from fewer samples than a fresh one?

    python -m benchmarks.init_from STEPS [SEED …] [fresh|all|tables …]

Trains a model on the starter's parallel texts for STEPS steps, unless runs/init_from/STEPS is there already. Then, for
each seed, captions of its drawings on the same samples in the same order, from three beginnings:

- `fresh`: nothing is taken over.
- `tables`: what serves text, its embeddings, head and conditions; the stack is fresh.
- `all`: the stack too, as by `model.init_from`.

Judged by the loss, and the share of exact names, on drawings in styles that no model was trained on.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from anyxform import checkpoint
from anyxform.cli.build import having_split, prepared
from anyxform.cli.conf import compose
from anyxform.cli.train import Run
from anyxform.dataset import open_datasets
from anyxform.evaluate import Item
from anyxform.optim import EMA, learning_rate
from anyxform.parts import part_of
from anyxform.pipeline import Pipeline
from anyxform.selection import choose_items
from anyxform.sequence import Batch
from anyxform.train import averaged, train, validation_loss

COMMON = (
    "model=nano", "optim=muon", "optim.lr=3e-3", "optim.warmup=50", "train.rows_per_step=1", "train.bf16=true",
    "train.ema=0.98", "data.tokens_per_row=2048", "data.num_workers=0", "tokenizers=data/starter/tokenizers",
    "~modality@modality.audio", "run_dir=runs/unsaved",
)  # fmt: skip
PICTURES = ("modality.image.patch_size=16", "modality.image.augment=0.8")
ARMS = ("fresh", "all", "tables")
LOSSES, EXACT = (2_500, 5_000, 7_500, 10_000), (10_000,)
"""After how many samples the loss, and the share of exact names, are measured."""
ROWS, LIMIT = 6, 300


def opened(words: Sequence[str], direction: str, seed: int) -> Run:
    """A run on one kind of direction."""
    words = prepared([*COMMON, *words, f"seed={seed}"])
    config = compose("train", words)
    config["data"] |= {"directions": {direction: 1.0}, "hold_out": []}
    torch.manual_seed(seed)
    return Run(config, words)


def stepped(run: Run, steps: int, schedule: Any) -> Iterator[tuple[int, float]]:
    """Train it; after each step the number of samples so far, and the loss."""
    options, optim, samples = run.config["train"], run.config["optim"], 0

    def rows() -> Iterator[tuple[Batch, Any]]:
        nonlocal samples
        for batch, position in run.rows(pad=False).from_position():
            samples += len(batch.keys)
            yield batch, position

    def rate(step: int) -> float:
        return optim["lr"] * learning_rate(step, steps=steps, warmup=optim["warmup"], schedule=schedule, final=0.02)

    for metrics in train(run.state, rows(), steps=steps, lr=rate, seed=run.config["seed"], bf16=options["bf16"]):
        yield samples, metrics["loss"]


def pretrained(steps: int) -> Path:
    """The folder of a model that was trained on texts alone."""
    folder = Path("runs/init_from") / str(steps)
    if not folder.exists():
        run = opened(["~modality@modality.image"], "text>text", seed=0)
        for number, (samples, loss) in enumerate(stepped(run, steps, "cosine"), start=1):
            if number % 100 == 0:
                print(f"texts: step {number} of {steps}, {samples:,} samples, loss {loss:.2f}", flush=True)
        with averaged(run.state) as model, checkpoint.atomic_folder(folder) as temporary:
            checkpoint.write(temporary, checkpoint.contents(model, run.modalities))
    return folder


def beginning(arm: str, texts: Path, seed: int) -> Run:
    """A run on captions that begins as the arm says."""
    fresh = opened(PICTURES, "image>text:en", seed)
    if arm == "fresh":
        return fresh
    run = opened([*PICTURES, f"model.init_from={texts}"], "image>text:en", seed)
    if arm == "tables":
        kept = fresh.state.model.state_dict()
        stack = {name: tensor for name, tensor in kept.items() if part_of(name) == "stack"}
        run.state.model.load_state_dict(stack, strict=False)
        run.state = replace(run.state, ema=EMA(run.state.model, run.config["train"]["ema"]))
    return run


def held_out(run: Run) -> tuple[list[Batch], list[Item]]:
    """Rows for the loss and items for the names, the same for every run."""
    config = run.config["data"]
    split = having_split({"emoji": config["datasets"]["emoji"]}, config["root"], "instance")
    datasets = open_datasets(split, run.modalities, root=config["root"], split="instance")
    rows = replace(run.data, val=datasets).rows("val", run.state.model, run.modalities, seed=0, pad=False)
    batches = [batch for batch, _ in islice(rows.from_position(), ROWS)]
    items = choose_items(datasets, run.modalities, patterns=["image>text:en"], limit=LIMIT, new_only=True).items
    return batches, items


def exact(run: Run, items: Sequence[Item]) -> float:
    """The share of names that are right."""
    with averaged(run.state) as model:
        answers = Pipeline(model, run.modalities).answer([it.direction for it in items], [it.sources for it in items])
    return sum(answer in (it.reference, *it.alternatives) for answer, it in zip(answers, items)) / len(items)


def learnt(arm: str, texts: Path, seed: int) -> dict[str, dict[int, float]]:
    """The losses, and the shares of exact names, of one run after so many samples."""
    run = beginning(arm, texts, seed)
    batches, items = held_out(run)
    losses, names = dict[int, float](), dict[int, float]()
    for samples, _ in stepped(run, 10**6, "constant"):
        for wanted in LOSSES:
            if samples >= wanted and wanted not in losses:
                with averaged(run.state) as model:
                    losses[wanted] = validation_loss(model, batches, bf16=True)[0]
                print(f"seed {seed}, {arm}: loss {losses[wanted]:.3f} after {wanted:,} samples", flush=True)
        for wanted in EXACT:
            if samples >= wanted and wanted not in names:
                names[wanted] = exact(run, items)
                print(f"seed {seed}, {arm}: {names[wanted]:.3f} of {len(items)} exact after {wanted:,}", flush=True)
        if samples >= max(LOSSES):
            break
    return {"loss": losses, "exact": names}


def main(steps: int, seeds: Sequence[int], arms: Sequence[str]) -> None:
    texts = pretrained(steps)
    found = {seed: {arm: learnt(arm, texts, seed) for arm in arms} for seed in seeds}
    print(json.dumps({"steps": steps, "seeds": found}))


if __name__ == "__main__":
    words = sys.argv[1:]
    numbers = [int(word) for word in words if word.isdigit()]
    main(numbers[0], numbers[1:], [arm for arm in words if arm in ARMS] or ARMS)
