"""Parts of pictures: rectangles and mask files, which tokens they touch, and pasting. Masks are ``[H, W]`` (bool)."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from torch import Tensor

from modalities.image import pixels


def named(spec: str, picture: Picture) -> Tensor:
    """The mask of ``x0,y0,x1,y1`` (pixels, the last not included) or of a file that is white there."""
    width, height = picture.size
    numbers = _numbers(spec)
    if numbers is None:
        if Path(spec).is_file():
            return _drawn(Path(spec), picture)
        raise ValueError(f"{spec!r} is no part of a picture: give x0,y0,x1,y1 in pixels, or a file that is white there")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"{spec!r} is no rectangle in a picture of {width} by {height} pixels: give x0,y0,x1,y1 within 0,0,{width},"
            f"{height}"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def _drawn(path: Path, picture: Picture) -> Tensor:
    try:
        drawn = pixels.read(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if drawn.size != picture.size:
        sizes = [f"{width} by {height}" for width, height in (drawn.size, picture.size)]
        raise ValueError(f"{path} has {sizes[0]} pixels, the picture {sizes[1]}: a mask has the size of its picture")
    return torch.from_numpy(np.array(drawn.convert("L")) > 127)


def extended(spec: str, picture: Picture) -> tuple[Picture, Tensor]:
    """The picture on a canvas that is larger by ``left,top,right,bottom`` pixels, of the colour of its border."""
    numbers = _numbers(spec)
    if numbers is None or min(numbers) < 0 or not any(numbers):
        raise ValueError(f"{spec!r} is not how much larger a picture can get: give left,top,right,bottom in pixels")
    left, top, right, bottom = numbers
    width, height = picture.size
    sides = (left + width + right, top + height + bottom)
    if sides[0] * sides[1] > pixels.MAX_PIXELS:
        raise ValueError(f"{spec!r} would make a picture of more than {pixels.MAX_PIXELS} pixels: give less")
    canvas = PIL.Image.new("RGB", sides, pixels.border_colour(picture))
    canvas.paste(picture, (left, top))
    mask = torch.ones(sides[1], sides[0], dtype=torch.bool)
    mask[top : top + height, left : left + width] = False
    return canvas, mask


def _numbers(spec: str) -> pixels.Box | None:
    """Four whole numbers, if that is what it is."""
    try:
        left, top, right, bottom = (int(part) for part in spec.split(","))
    except ValueError:
        return None
    return left, top, right, bottom


def touched(mask: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Which cells of a grid over the square of `size` pixels have a pixel of the mask, ``[rows · columns]``."""
    left, top, right, bottom = pixels.place((mask.shape[1], mask.shape[0]), size)
    small = F.adaptive_max_pool2d(mask[None].float(), (bottom - top, right - left))[0]
    square = F.pad(small, (left, size - right, top, size - bottom))
    return F.adaptive_max_pool2d(square[None], grid).flatten() > 0


def paste(original: Picture, edited: Picture, mask: Tensor) -> Picture:
    """The square `edited`, brought back to the original's size and place, where the mask is; else the original."""
    box = pixels.place(original.size, edited.width)
    if original.size != edited.size:
        edited = edited.crop(box).resize(original.size, PIL.Image.Resampling.LANCZOS)
    chosen = np.where(mask.numpy()[..., None], np.asarray(edited), np.asarray(original))
    return PIL.Image.fromarray(chosen)
