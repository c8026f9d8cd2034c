"""`anyxform export CHECKPOINT OUT --format onnx --from image --to text:en`: one direction as graphs."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from anyxform.cli.run_shards import pair

if TYPE_CHECKING:
    from anyxform.dataset import Reader
    from anyxform.field import Field
    from anyxform.graph.task import Task

SEED = 0
"""Of the values that are made up where no shards are given."""


def write_graphs(options: argparse.Namespace) -> None:
    """Write the folder, and say how far its answers are from the model's."""
    if not options.origin or not options.to:
        raise ValueError("graphs are of one direction: give --from FIELD and --to FIELD")
    if options.dtype == "bf16":
        raise ValueError("--dtype bf16 is not possible: graphs are fp32")
    if options.items < 1:
        raise ValueError(f"--items {options.items} is not possible: give 1 or more")
    from itertools import islice

    from anyxform.checkpoint import atomic_folder
    from anyxform.field import Direction, Field, did_you_mean
    from anyxform.graph.export import export
    from anyxform.graph.files import FORMATS
    from anyxform.graph.task import Task
    from anyxform.pipeline import load

    FORMATS[options.format].check()
    pipeline = load(options.checkpoint, device="cpu")
    sources = tuple(map(Field.parse, options.origin.split("+")))
    for source in sources:
        if source.modality not in pipeline.modalities:
            raise ValueError(f"--from {source}: {did_you_mean(source.modality, list(pipeline.modalities))}")
    task = Task(pipeline.model, pipeline.modalities, Direction(sources, pipeline.field(options.to)))
    items = list(islice(_held_out(task, options) if options.on else _made_up(task), options.items))
    if not items:
        raise ValueError(f"--on: no sample has {options.origin}")
    with atomic_folder(options.out) as folder:
        found = export(task, folder, options.format, items)
    for graph in found["graphs"].values():
        print(f"{graph['file']}: {', '.join(graph['inputs'])} → {', '.join(graph['outputs'])}")
    of = "samples" if options.on else "made-up inputs"
    difference = found["parity"]["largest_difference"]
    print(f"on {len(items)} {of} the same codes as the model's, logits within {difference:.1e}")


def _made_up(task: "Task") -> Iterator[list[Any]]:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield [source.example(generator) for source in task.sources]


def _held_out(task: "Task", options: argparse.Namespace) -> Iterator[list[Any]]:
    """The sources' values of the samples that have them all."""
    from anyxform.convert import shards_of
    from anyxform.dataset import Dataset, extensions_of

    fields = dict(pair(it) for it in options.fields)
    samples = Dataset("--on", shards_of(options.on), extensions=extensions_of(task.modalities), fields=fields)
    for line in samples.damage:
        print(line, file=sys.stderr)
    for readers in samples.readable():
        try:
            if item := _item(task, readers):
                yield item
        except ValueError as error:  # training leaves it out too
            print(f"left out: {error}", file=sys.stderr)


def _item(task: "Task", readers: Mapping["Field", "Reader"]) -> list[Any]:
    """The values of a sample for all sources; none if it lacks one. ValueError: one cannot be read, or is too long."""
    values = []
    for wanted, source in zip(task.direction.sources, task.sources):
        fitting = [it for it in readers if it.modality == wanted.modality and wanted.variant in ("", it.variant)]
        if not fitting:
            return []
        values.append(source.load(readers[fitting[0]]()))
    task.preprocessed(values)
    return values
