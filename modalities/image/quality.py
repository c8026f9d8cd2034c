"""How near one picture is to another: PSNR and SSIM. B pictures of side S are ``[B, 3, S, S]`` in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 100.0
"""Decibels of equal pictures, in place of infinity."""


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``[B]``."""
    error = ((x - y) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp(min=1e-10).log10()).clamp(max=MAX_PSNR)


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity ``[B]`` of Wang et al. 2004 (doi 10.1109/TIP.2003.819861), averaged over the channels."""
    x, y = (x + 1) / 2, (y + 1) / 2
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]), window, sigma)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def _blur(images: Tensor, window: int, sigma: float) -> Tensor:
    """A Gaussian window over the last two axes, only where it fits whole."""
    offsets = torch.arange(window, device=images.device) - (window - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, -3).unsqueeze(1)
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.squeeze(1).unflatten(0, images.shape[:-2])
