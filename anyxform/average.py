"""One model of several: the mean of checkpoints that began alike (arXiv 2109.01903, arXiv 2203.05482)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch

from anyxform.checkpoint import model_tensors
from anyxform.init_from import Origin
from anyxform.modality import Modality
from anyxform.model import Transformer


@torch.no_grad()
def average(model: Transformer, modalities: Mapping[str, Modality], others: Sequence[Origin], share: float) -> None:
    """Make each weight of `model` its `share` plus equal parts of the others', 1 in all.

    What another has not (a condition, the tables of another tokenizer) is taken to be as here. ValueError: a share that
    is none, or another of other sizes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} is not possible: give a number from 0 to 1")
    sizes = model.config()
    for other in others:
        for name, size in other.sizes.items():
            if sizes[name] != size:
                raise ValueError(
                    f"{other.folder} has {name}={size}, not {sizes[name]}: weights of other shapes have no mean"
                )
    own = model_tensors(model)
    sums = {name: share * tensor for name, tensor in own.items()}
    for other in others:
        filled = deepcopy(model)
        other.fill(filled, modalities)
        for name, tensor in model_tensors(filled).items():
            sums[name] += (1 - share) / len(others) * tensor
    for name, tensor in own.items():
        tensor.copy_(sums[name])
