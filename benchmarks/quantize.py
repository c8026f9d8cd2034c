"""What is lost by weights in bf16, int8 and int4, direction by direction, each answer against the one of fp32.

    python -m benchmarks.quantize [--limit 60] [--checkpoint starter] [--only translations]

Needs the extra `eval`. bf16 and int8 are what `anyxform.load` makes of the weights. There is no int4 to load: its
matrices are rounded as `benchmarks.products` does it, a scale and a zero for each 32 inputs, and multiplied in fp32.
Differences are paired, with 95 % intervals: below 0 is a loss, whichever way the metric counts. Prints a table in
Markdown.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from anyxform.evaluate import MODEL, Item, evaluate
from anyxform.pipeline import Pipeline, load
from anyxform.quantize import DTYPES, linears
from anyxform.selection import choose_items
from benchmarks import starter
from benchmarks.products import rounded


@dataclass(frozen=True)
class Part:
    """What is answered: a share of the limit of items of each direction; `metrics` judge it, if need be the judge's."""

    name: str
    split: str
    dataset: str
    directions: Sequence[str]
    metrics: Sequence[str]
    share: float
    judged: bool = False
    options: dict[str, Any] = field(default_factory=dict)


PARTS = (
    Part("captions", "instance", "emoji", ["image:openmoji>text:en"], ("exact", "cer"), 2.0),
    Part("translations", "test", "names", ["text:fr>text:en", "text:en>text:fr"], ("chrf", "exact"), 1.0),
    Part(
        "transcripts, joint decoding", "instance", "prompts", [f"audio:{it}*>text:{it}" for it in ("en", "es", "fr")],
        ("cer", "wer"), 0.5, options={"align_weight": 0.5, "num_beams": 4},
    ),
    Part("drawings", "train", "emoji", ["text:en>image:noto"], ("retrieval", "ssim"), 1.5, judged=True),
    Part("speech", "instance", "prompts", ["text:en>audio:en-phone"], ("judge_cer", "lsd"), 0.5, judged=True),
)  # fmt: skip


def opened(checkpoint: str, dtype: str) -> Pipeline:
    """A checkpoint with its weights as asked for."""
    if dtype in DTYPES:
        return load(checkpoint, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    pipeline = load(checkpoint, device="cpu")
    matrices = [getattr(*it).weight for block in pipeline.model.blocks for it in linears(block)]
    with torch.no_grad():
        for weight in [*matrices, *(head for it in pipeline.model.targets.values() for head in it.head)]:
            weight.copy_(rounded(weight))
    return pipeline


def chosen(pipeline: Pipeline, part: Part, limit: int) -> list[Item]:
    dataset = {part.dataset: starter.datasets(dict(pipeline.modalities), part.split)[part.dataset]}
    limit = max(1, round(part.share * limit))
    return choose_items(dataset, pipeline.modalities, patterns=part.directions, limit=limit).items


def told(part: Part, items: Sequence[Item], answers: dict[str, list[Any]], pipeline: Pipeline) -> None:
    """A line for each metric."""
    first, *others = answers
    systems = {name: values for name, values in answers.items() if name != first}
    (row,) = evaluate(items, {MODEL: answers[first], **systems}, pipeline.modalities, judges=part.judged).summary
    for metric in part.metrics:
        own = row.systems[MODEL][metric]
        gains = [row.against[name][metric].gain for name in others]
        cells = [f"{-it.value + 0.0:+.3f} [{-it.high + 0.0:+.3f}, {-it.low + 0.0:+.3f}]" for it in gains]
        print(
            f"| {part.name} ({row.n}) | {metric} | {own.value:.3f} [{own.low:.3f}, {own.high:.3f}] "
            f"| {' | '.join(cells)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--checkpoint", default="starter")
    parser.add_argument("--only", choices=[part.name for part in PARTS])
    options = parser.parse_args()
    pipelines = {dtype: opened(options.checkpoint, dtype) for dtype in (*DTYPES, "int4")}
    first, *others = pipelines
    print(f"| direction | metric | {first} | {' | '.join(others)} |")
    print("| --- " * (3 + len(others)) + "|")
    for part in PARTS:
        if options.only not in (None, part.name):
            continue
        items = chosen(pipelines[first], part, options.limit)
        given = [item.direction for item in items], [item.sources for item in items]
        answers = {name: list(it.answer(*given, **part.options)) for name, it in pipelines.items()}
        told(part, items, answers, pipelines[first])


if __name__ == "__main__":
    main()
