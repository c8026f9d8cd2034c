"""Captions as drafts and refined: the shipped starter learns for some seconds to fill gaps in texts as well.

    python -m benchmarks.refine [SECONDS] [LIMIT]

A share of 0.7 of its captions is trained masked, the rest left to right, as ``data.other_decoding`` does it. It is
judged on drawings in a style that it never saw: by drafts (left to right), by drafts refined in 1 and 4 rounds, by
drafts that are drawn with chance and by those refined, and by masked decoding alone. Nothing is saved.
"""

import sys
import time
from typing import Any

import torch

from anyxform import checkpoint
from anyxform.dataset import open_datasets
from anyxform.evaluate import MODEL, evaluate
from anyxform.loss import batch_loss
from anyxform.pipeline import STARTER, Pipeline, located
from anyxform.rows import Rows
from anyxform.selection import choose_items

DATA: dict[str, Any] = {"emoji": {"shards": "emoji/{split}-*.tar", "fields": {"text:*": "json.text.*"}}}
ROOT, SHARE, RATE = "data/starter", 0.7, 3e-4
SYSTEMS: dict[str, dict[str, Any]] = {
    MODEL: {},
    "refined once": {"refine": 1},
    "refined 4 times": {"refine": 4},
    "drawn": {"temperature": 1.0},
    "drawn, refined 4 times": {"temperature": 1.0, "refine": 4},
    "masked": {"decoding": "masked", "temperature": 0.0, "guidance": 1.0},
}


def teach(pipeline: Pipeline, seconds: float) -> int:
    """Train its captions both ways; returns the steps."""
    model = pipeline.model.train()
    datasets = open_datasets(DATA, pipeline.modalities, root=ROOT, split="train")
    rows = Rows(
        datasets, pipeline.modalities, model.condition_ids,
        directions={"image>text:en": 1.0}, tokens_per_row=2048, pool=512, other_decoding=SHARE,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    began, steps = time.perf_counter(), 0
    for batch, _ in rows.from_position():
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = batch_loss(model, batch)
        (loss / batch.num_labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if time.perf_counter() - began > seconds:
            break
    model.eval()
    return steps


def main(seconds: float, limit: int) -> None:
    torch.manual_seed(0)
    model, modalities, _ = checkpoint.load(located(STARTER))
    pipeline = Pipeline(model, modalities)  # whose facts no longer hold
    print(f"{teach(pipeline, seconds)} steps")
    datasets = open_datasets(DATA, pipeline.modalities, root=ROOT, split="instance")
    items = choose_items(
        datasets, pipeline.modalities, patterns=["image:openmoji>text:en"], limit=limit, new_only=True
    ).items
    given = [item.direction for item in items], [item.sources for item in items]
    answers, seconds_of = dict[str, list[Any]](), dict[str, float]()
    for name, options in SYSTEMS.items():
        began = time.perf_counter()
        answers[name] = pipeline.answer(*given, **options)
        seconds_of[name] = time.perf_counter() - began
    (row,) = evaluate(items, answers, pipeline.modalities).directions
    for name, metrics in row.systems.items():
        changed = sum(one != other for one, other in zip(answers[name], answers[MODEL]))
        values = ", ".join(
            f"{it} {metrics[it].value:.3f} [{metrics[it].low:.3f}, {metrics[it].high:.3f}]" for it in ("exact", "cer")
        )
        print(
            f"{'drafts' if name == MODEL else name}: {values}, {changed} of {row.n} changed, "
            f"{seconds_of[name] / seconds_of[MODEL]:.1f} of the drafts' time"
        )
    for name, compared in row.against.items():
        gain = compared["cer"].gain
        print(f"gain in cer when {name}: {-gain.value:.3f} [{-gain.high:.3f}, {-gain.low:.3f}]")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(float(words[0]) if words else 100, int(words[1]) if len(words) > 1 else 300)
