"""Products of a few tokens with one matrix, its weights in bf16, int8 and int4 against fp32: which are worth it?

    python -m benchmarks.products [--pairs 12] [--rows 1 4]

On one thread (THREADS=2 for two): the products that a decoding step is made of, and one of 8,192 by 8,192. fp32, bf16
and int8 are as `anyxform.quantize` keeps them, int8's inputs rounded to bf16 each time; int4 is torch's kernel for
CPUs, a scale and a zero for each 32 inputs, its inputs rounded likewise. Errors are those of the product, relative, of
normal weights.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyxform.quantize import Int8Linear, by_columns
from benchmarks.compare import Comparison, calibration, compare, report

SHAPES = ((768, 256), (2048, 512), (4096, 1024), (8192, 8192))
"""Outputs, inputs."""
GROUP = 32
"""Inputs that share a scale in int4: the smallest that the kernel takes, and the most exact."""
LEVELS = 15
SECONDS = 0.02
"""Of one measurement, about: a single product is over before a clock can tell."""


def _in_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[O, groups, GROUP]`` of weights ``[O, I]``, and the scale and the zero of each group in bf16."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    scale = ((high - low) / LEVELS).clamp_min(1e-9).to(torch.bfloat16)
    zero = (low + scale.float() * 8).to(torch.bfloat16)  # the kernel counts from the eighth level
    codes = ((groups - zero.float()[..., None]) / scale.float()[..., None] + 8).round().clamp(0, LEVELS)
    return codes, scale, zero


def rounded(weight: Tensor) -> Tensor:
    """Weights ``[O, I]`` as their 4 bits say them."""
    codes, scale, zero = _in_groups(weight)
    return ((codes - 8) * scale.float()[..., None] + zero.float()[..., None]).flatten(1)


class Int4Linear:
    """Weights ``[O, I]`` in 4 bits, from the least to the largest of each group of inputs."""

    def __init__(self, weight: Tensor) -> None:
        codes, scale, zero = _in_groups(weight)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.flatten(1).to(torch.int32), 1)
        self.scales = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)
        return y.to(x.dtype)


def kept(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The product with these weights, kept in each way."""
    columns, halves = by_columns(weight), weight.to(torch.bfloat16)
    return {
        "fp32": lambda x: F.linear(x, columns),
        "bf16": lambda x: F.linear(x.to(torch.bfloat16), halves).to(x.dtype),
        "int8": Int8Linear(weight),
        "int4": Int4Linear(weight),
    }


def error(product: Callable[[Tensor], Tensor], x: Tensor, exact: Tensor) -> float:
    return float((product(x) - exact).norm() / exact.norm())


def repeated(product: Callable[[Tensor], Tensor], x: Tensor, times: int) -> float:
    for _ in range(times):
        product(x)
    return float(times)


@torch.no_grad()
def compared(outputs: int, inputs: int, rows: int, pairs: int) -> tuple[list[Comparison], dict[str, Any]]:
    """Every way against fp32, and the errors of all."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(rows, inputs, generator=generator)
    ways, exact = kept(weight), x @ weight.T
    times = max(1, round(SECONDS * 2e9 / (rows * weight.numel())))
    name = f"{rows} × {inputs} with {outputs} × {inputs}"
    found = [
        compare(
            f"{name}, {way} against fp32",
            partial(repeated, ways[way], x, times),
            partial(repeated, ways["fp32"], x, times),
            unit="products/s",
            pairs=pairs,
        )
        for way in ("bf16", "int8", "int4")
    ]
    errors = {way: error(product, x, exact) for way, product in ways.items()}
    print(f"{name}: errors " + ", ".join(f"{way} {value:.2%}" for way, value in errors.items()), flush=True)
    return found, {"outputs": outputs, "inputs": inputs, "rows": rows, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    before = calibration()
    measured = [compared(*shape, rows, options.pairs) for shape in SHAPES for rows in options.rows]
    report([it for results, _ in measured for it in results], before, errors=[facts for _, facts in measured])


if __name__ == "__main__":
    main()
