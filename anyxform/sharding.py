"""Tensors of which each process may hold a part only: whole ones out of them, and back.

On one process every function gives its tensor as it is. `whole` is a collective: all processes call it, in one order.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, parted as another of its shape is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor."""
    tensor.copy_(parted(values, tensor))
