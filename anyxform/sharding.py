"""Tensors of which each process may hold a part only (DTensors): whole ones out of them, and back.

On one process every function gives its tensor as it is. `whole` is a collective: all processes call it, in one order.
DTensors are known by what they can do, as importing their module takes longer than most answers.
"""

from typing import Any

import torch
from torch import Tensor


def is_parted(tensor: Tensor) -> bool:
    """Whether a process may hold a part of it only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes."""
    parts: Any = tensor
    return parts.full_tensor() if is_parted(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds."""
    parts: Any = tensor
    return parts.to_local() if is_parted(tensor) else tensor


def offsets(tensor: Tensor) -> list[int]:
    """The index in the whole tensor at which the part of this process begins."""
    parts: Any = tensor
    return list(parts.__create_chunk_list__()[0].offsets) if is_parted(tensor) else [0] * tensor.dim()


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, parted as another of its shape is."""
    if not is_parted(like) or is_parted(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    other: Any = like
    return distribute_tensor(tensor.to(like.device), other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor."""
    tensor.copy_(parted(values, tensor))
