"""Weights as answering wants them: int8 with scales, bf16, or fp32 laid out as one token reads fastest.

Answering one request token by token reads every weight once a token, so bytes are time. Letters: M tokens, I inputs,
O outputs, K codebooks, V codes, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyxform.layers import Block, compiled_for, summed_products
from anyxform.model import Transformer

Dtype = Literal["fp32", "bf16", "int8"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "int8")
FEW = 8
"""Tokens up to which the kernel that reads int8 weights as they are is faster than converting them first."""


class Int8Linear(nn.Module):
    """A linear layer without bias, its weights symmetric int8 with one scale for each output.

    Inputs are rounded to bf16 for the product alone, and what comes out has the dtype of what went in. ValueError: the
    number of inputs is no multiple of 16, beyond which the kernel would read without a word.
    """

    weight: Tensor  # [O, I] int8
    scale: Tensor  # [O] bf16

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.shape[1] % 16:
            raise ValueError(f"int8 is not possible: a layer has {weight.shape[1]} inputs, which is no multiple of 16")
        weight = weight.detach().float()
        largest = weight.abs().amax(dim=1).clamp_min(1e-12)
        scale = (largest / 127).to(torch.bfloat16)  # rounded first, so that the weights make up for it
        codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", codes.to(torch.int8).contiguous())
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        if compiled_for(x, 1):
            return summed_products(x, self.weight) * self.scale.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) <= FEW:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)) * self.scale
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


@torch.no_grad()
def prepare(model: Transformer, dtype: Dtype = "fp32") -> Transformer:
    """Turn the stack and the heads into what answers fastest, in place; such a model cannot be trained any more.

    ``bf16`` converts everything. ``int8`` converts the matrices of the stack and the heads, a quarter of the bytes, and
    leaves front ends, tables and norms in fp32. ``fp32`` changes no number: on CPUs it lays wide matrices out by
    columns, where a product with one token runs at up to twice the speed. ValueError: an unknown dtype; int8 on a
    device that is no CPU, where no such kernel is tested, or with a width that is no multiple of 16.
    """
    device = model.norm.weight.device
    if dtype == "fp16":
        raise ValueError("dtype='fp16' is not possible: it is slow on CPUs, and large activations overflow: give bf16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not possible: give {', '.join(DTYPES)}")
    if dtype == "int8" and device.type != "cpu":
        raise ValueError(f"dtype=int8 is for CPUs, not for {device.type}: give bf16, or the device cpu")
    model.eval().requires_grad_(False)
    if dtype == "bf16":
        return model.to(torch.bfloat16)
    if device.type != "cpu":
        return model
    for block in model.blocks:
        for part, name in linears(block):
            linear = getattr(part, name)
            if dtype == "int8":
                setattr(part, name, Int8Linear(linear.weight))
            else:
                linear.weight = nn.Parameter(by_columns(linear.weight), requires_grad=False)
    for target in model.targets.values():
        if dtype == "int8":
            target.int8_heads = nn.ModuleList(Int8Linear(head) for head in target.head)
        else:
            target.head = nn.Parameter(by_columns(target.head), requires_grad=False)
    return model


def by_columns(weight: Tensor) -> Tensor:
    """The same matrix ``[…, O, I]``, its columns one after another in memory if it has more outputs than inputs."""
    wide = weight.shape[-2] > weight.shape[-1]
    return weight.mT.contiguous().mT if wide else weight


def linears(block: Block) -> list[tuple[nn.Module, str]]:
    """Where a block's matrices are: modules, and the names that they have there."""
    return [(block.attention, "qkv"), (block.attention, "out"), (block.mlp, "gate_up"), (block.mlp, "down")]
