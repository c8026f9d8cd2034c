"""Whether graphs answer as the model does: the same codes, from the same logits but for rounding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyxform.data import source, target
from anyxform.generate import generate
from anyxform.graph.decode import Answer
from anyxform.graph.task import Task
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import Example, Source, pack

TOLERANCE = 1e-3
"""Of logits, whose differences by rounding are about a hundredth of it."""
Answers = Callable[[Sequence[np.ndarray]], Answer]


def compare(task: Task, items: Sequence[Sequence[Any]], answer: Answers) -> float:
    """The largest difference of any logit, over `items`, each its sources' values.

    The model's logits are those of training, over the packed row, to which no cache has contributed. ValueError: one
    differs by more than `TOLERANCE`, or an answer has other codes than the model's own.
    """
    options = Sampling(temperature=0, choice_temperature=0, decoding=task.decoding)
    pairs = [zip(task.sources, item, strict=True) for item in items]
    given = [tuple(source(it, value, task.target.name) for it, value in pair) for pair in pairs]
    requests = [Request(sources, task.direction.target) for sources in given]
    answers = generate(task.model, task.modalities, requests, options)
    largest = 0.0
    for number, (sources, own) in enumerate(zip(given, answers)):
        got = answer([it.values.numpy() for it in sources])
        logits = _logits(task, sources, torch.from_numpy(got.codes)).numpy()
        # the end of an answer that is as long as may be was not asked for
        difference = float(np.abs(logits[: len(got.logits)] - got.logits).max())
        largest = max(largest, difference)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the graphs of {task.direction} are wrong: at item {number} a logit differs by {difference:.2g}, more "
                f"than {TOLERANCE:g}"
            )
        if not np.array_equal(got.codes, own.codes.numpy()):
            raise ValueError(f"the graphs of {task.direction} are wrong: at item {number} they give other codes")
    return largest


@torch.no_grad()
def _logits(task: Task, sources: tuple[Source, ...], codes: Tensor) -> Tensor:
    """The model's logits of an answer ``[T, K, V + 1]``, the end's as well; masked, with all of it hidden."""
    made = target(task.target, codes, masked=False)
    if task.decoding == "masked":
        made = replace(made, hidden=torch.ones(len(codes), dtype=torch.bool))
    example = Example("item", str(task.direction), sources, tuple(task.asked), made)
    return task.model(pack([example], task.model.condition_ids))[task.target.name]
