"""Training-time changes of a picture that leave its meaning alone.

Few pictures of each thing make a model learn the pictures by heart; what is varied here it cannot. Colours move
together in one affine map, so that it costs one small matrix product.
"""

import math

import PIL.Image
import torch
from PIL import ImageFilter
from PIL.Image import Image as Picture
from torch import Tensor

from modalities.image.pixels import RGB, border_colour, to_tensor

GREY = torch.tensor([0.299, 0.587, 0.114])
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
YIQ_INVERSE = torch.linalg.inv(YIQ)


class Chance:
    """Numbers drawn from one generator, at most `size` of them: one call to torch instead of twenty."""

    def __init__(self, generator: torch.Generator | None, size: int = 32) -> None:
        self._draws = iter(torch.rand(size, generator=generator).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._draws)

    def happens(self, probability: float) -> bool:
        return next(self._draws) < probability


def augment(picture: Picture, generator: torch.Generator | None, strength: float = 1.0) -> Tensor:
    """A square picture, moved, recoloured, outlined and covered: ``[3, S, S]`` in [-1, 1]. `strength` 1 is strong."""
    chance = Chance(generator)
    moved = _move(picture, border_colour(picture), chance, strength)
    if chance.happens(0.1 * strength):
        moved = moved.filter(ImageFilter.GaussianBlur(chance.between(0.3, 1.0)))
    pixels = _recolour(to_tensor(moved), chance, strength)
    if chance.happens(0.4 * strength):
        pixels = _outline(pixels, chance)
    if chance.happens(0.5 * strength):
        _cut_out(pixels, chance)
    return pixels


def _move(picture: Picture, fill: RGB, chance: Chance, strength: float) -> Picture:
    """Rotated by up to 20°, scaled by 0.75 to 1.15, slanted, shifted by up to a tenth, rarely mirrored."""
    size = picture.width
    angle = math.radians(chance.between(-20, 20) * strength)
    scale = math.exp(chance.between(math.log(0.75), math.log(1.15)) * strength)
    shear = chance.between(-0.15, 0.15) * strength
    aspect = math.exp(chance.between(-0.12, 0.12) * strength)
    shift = [chance.between(-0.1, 0.1) * strength * size for _ in range(2)]
    mirror = -1 if chance.happens(0.1 * strength) else 1  # an arrow or a letter means something else mirrored
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    a, b = mirror * aspect * cos, mirror * (sin + shear * cos)
    d, e = -sin, (cos - shear * sin) / aspect
    centre = (size - 1) / 2
    c = centre - a * (centre + shift[0]) - b * (centre + shift[1])
    f = centre - d * (centre + shift[0]) - e * (centre + shift[1])
    return picture.transform(
        picture.size,
        PIL.Image.Transform.AFFINE,
        (a, b, c, d, e, f),  # from a pixel of the result to its place in the original
        PIL.Image.Resampling.BILINEAR,
        fillcolor=fill,
    )


def _recolour(pixels: Tensor, chance: Chance, strength: float) -> Tensor:
    """Hue, saturation (rarely none), contrast, brightness and the balance of the channels, as one affine map."""
    saturation = 0.0 if chance.happens(0.05 * strength) else 1 + chance.between(-0.5, 0.5) * strength
    hue = math.radians(chance.between(-20, 20) * strength)  # more would make the red circle an orange one
    contrast = 1 + chance.between(-0.4, 0.3) * strength
    brightness = chance.between(-0.25, 0.25) * strength
    balance = torch.tensor([1 + chance.between(-0.1, 0.1) * strength for _ in range(3)])
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    turn = torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = (contrast * balance)[:, None] * (YIQ_INVERSE @ turn @ YIQ)
    return torch.baddbmm(
        torch.full((1, 1, 1), brightness), matrix[None], pixels.flatten(1)[None]
    ).view_as(pixels).clamp_(-1, 1)  # fmt: skip


def _outline(pixels: Tensor, chance: Chance) -> Tensor:
    """With black lines along its edges, at times on paler fills: as others, who draw by outlines, would have it.

    Without it a model that saw no line drawings in training names half as many of them.
    """
    contrast = greatest_nearby(pixels) + greatest_nearby(-pixels)
    ink = contrast.amax(dim=0).sub_(0.25).div_(0.4).clamp_(0, 1)
    if chance.happens(0.3):
        pixels = 1 - (1 - pixels) * chance.between(0, 1)
    return pixels - (pixels + 1) * ink


def greatest_nearby(pixels: Tensor) -> Tensor:
    """The greatest of the 3 × 3 pixels around each: torch's max_pool2d takes five times as long at these sizes."""
    for axis in (1, 2):
        padded = torch.cat([pixels.narrow(axis, 0, 1), pixels, pixels.narrow(axis, -1, 1)], axis)
        size = pixels.shape[axis]
        pixels = torch.maximum(torch.maximum(pixels, padded.narrow(axis, 0, size)), padded.narrow(axis, 2, size))
    return pixels


def _cut_out(pixels: Tensor, chance: Chance) -> None:
    """Cover a rectangle of up to half the side with one colour (arXiv 1708.04552)."""
    size = pixels.shape[-1]
    height, width = (round(chance.between(0.1, 0.5) * size) for _ in range(2))
    top, left = round(chance.between(0, size - height)), round(chance.between(0, size - width))
    colour = torch.tensor([chance.between(-1, 1) for _ in range(3)])
    pixels[:, top : top + height, left : left + width] = colour[:, None, None]
