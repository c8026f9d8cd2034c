"""Training with matrix products in float8 (arXiv 2209.05433), by torchao, on GPUs that have them."""

from typing import Any

import torch
from torch import nn

from anyxform.model import Transformer

CAPABILITY = (8, 9)
"""The least compute capability of a GPU that multiplies in float8."""


def to_float8(model: Transformer, *, device: torch.device | None = None, emulate: bool = False) -> None:
    """Let the blocks multiply in float8, in place; weights, names and all else stay as they are.

    Matrices with a side that is no multiple of 16 stay as they are too, as the products need that. `emulate`: compute
    the same in fp32, on any device, slowly. `device`: where the model will be, if it is not there yet. ValueError:
    torchao is not installed, or the device has no float8.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError("train.float8=true needs torchao: pip install 'anyxform[float8]'") from error
    if not emulate and not _has_float8(device or next(model.parameters()).device):
        raise ValueError(
            "train.float8=true needs a GPU that multiplies in float8 (H100, L40 or later): use train.bf16=true alone"
        )
    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(model.blocks, config=config, module_filter_fn=_fits)


def _has_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def _fits(module: nn.Module, name: str) -> Any:
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0
