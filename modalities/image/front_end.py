"""The continuous source side: a convolutional stem, or a timm backbone. Letters: B pictures, S side, D width."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from modalities.image.layers import Residual

FIRST = 4
"""Side of the first convolution's patches: full resolution is where time would go."""
Grid = tuple[int, int]


class ConvStem(nn.Module):
    """Pictures ``[B, 3, S, S]`` to one token a patch ``[B·T, D]``, rows first.

    Residual convolutions down to the grid learn from few pictures what one matrix a patch cannot (arXiv 2106.14881).
    """

    def __init__(self, patch_size: int, dim: int, width: int = 64) -> None:
        super().__init__()
        first = min(patch_size, FIRST)
        layers: list[nn.Module] = [nn.Conv2d(3, width, first, stride=first), Residual(width)]
        for _ in range((patch_size // first).bit_length() - 1):  # patch_size is a power of two
            layers += [nn.Conv2d(width, 2 * width, 2, stride=2), Residual(2 * width)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, width), nn.Conv2d(width, dim, 1))

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        return self.layers(values).permute(0, 2, 3, 1).flatten(0, 2)


class Backbone(nn.Module):
    """The last features of a timm model ``[B·T, D]``; a frozen one stays in evaluation mode and gets no gradient.

    Pictures are enlarged to `size` pixels and normalised as the model's own configuration says.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, dim: int, *, size: int, pretrained: bool | str | None = False, frozen: bool = False
    ) -> None:
        super().__init__()
        self.model = create(name, size, pretrained)
        self.size, self.frozen = size, frozen
        self.project = nn.Linear(self.model.num_features, dim)
        self.norm = nn.LayerNorm(self.model.num_features)
        for statistic in ("mean", "std"):
            value = torch.tensor(self.model.pretrained_cfg[statistic]).view(3, 1, 1)
            self.register_buffer(statistic, value, persistent=False)
        self.model.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        x = values
        if x.shape[-1] != self.size:
            x = F.interpolate(x.float(), (self.size, self.size), mode="bilinear", antialias=True).to(x.dtype)
        x = ((x + 1) / 2 - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = features(self.model, x)
        return self.project(self.norm(tokens.flatten(0, -2)))


def create(name: str, size: int, pretrained: bool | str | None) -> Any:
    """A timm model without its classifier, its weights `pretrained`: downloaded, or those of a file of safetensors.

    ValueError: timm has none of that name, it cannot take that size, or the file does not fit.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ValueError(f"timm has no model {name!r} (near it: {near or 'none'}); see timm.list_models()")
    options: dict[str, Any] = {"num_classes": 0}
    try:
        published = timm.get_pretrained_cfg(name)
        if published is not None and published.fixed_input_size:  # a vision transformer has positions for one size
            options["img_size"] = size
        model = timm.create_model(name, pretrained=pretrained is True, **options)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"the timm model {name!r} takes no pictures of {size} pixels: {error}") from error
    except RuntimeError as error:  # of an unknown tag, or where no weights are published
        raise ValueError(f"the timm model {name!r} cannot be had: {error}") from error
    if isinstance(pretrained, str):
        _fill(model, name, pretrained)
    return model


def _fill(model: nn.Module, name: str, path: str) -> None:
    """Give a timm model the weights of a file; those of a classifier, which it lacks here, are left."""
    if not path.endswith(".safetensors") or not Path(path).is_file():
        raise ValueError(f"there is no file of safetensors {path!r}: give one, or true to download weights")
    try:
        missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit the timm model {name!r}: {str(error).splitlines()[-1]}") from error
    if missing:
        raise ValueError(f"{path} does not fit the timm model {name!r}: {missing[0]} is not in it")


def features(model: Any, x: Tensor) -> Tensor:
    """The model's last features, channels last, without class tokens: ``[B, rows, columns, C]`` or ``[B, T, C]``."""
    x = model.forward_features(x)
    if x.ndim == 3:
        return x[:, getattr(model, "num_prefix_tokens", 0) :]
    return x.movedim(1, -1) if x.shape[1] == model.num_features != x.shape[-1] else x


def grid(name: str, size: int) -> Grid:
    """Rows and columns of a backbone's features, found on the meta device: nothing is computed or downloaded."""
    with torch.device("meta"), torch.no_grad():
        model = create(name, size, pretrained=False).eval()  # normalisation over a batch wants more than one value
        shape = features(model, torch.empty(1, 3, size, size)).shape
    if len(shape) == 4:
        return shape[1], shape[2]
    side = round(shape[1] ** 0.5)
    return (side, side) if side * side == shape[1] else (1, shape[1])
