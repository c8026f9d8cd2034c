"""From a file's bytes to square pictures, and between pictures and tensors.

Letters: S side in pixels, B pictures. Tensors are RGB ``[3, S, S]`` in [-1, 1].
"""

import struct
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from PIL import ImageOps, UnidentifiedImageError
from PIL.Image import Image as Picture
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 2**26
"""Pictures of more than 67 megapixels are refused: a small file can unpack into all of the memory."""

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What PIL's decoders raise on damaged bytes."""


def read(data: bytes) -> Picture:
    """The first frame as RGB, upright, transparency over white. ValueError: empty, broken, unknown or too large."""
    if not data:
        raise ValueError("the picture is empty (0 bytes)")
    try:
        picture = PIL.Image.open(BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"the picture is too large: {error}") from None
    except UnidentifiedImageError:
        raise ValueError(f"the picture is none of {', '.join(FORMATS)}, or its beginning is broken") from None
    except _BROKEN as error:
        raise ValueError(f"the picture is broken: {error}") from None
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} by {picture.height}"
        raise ValueError(f"the picture has {size} pixels, more than {MAX_PIXELS} in all: scale it down")
    try:
        return plain(picture)
    except _BROKEN as error:
        raise ValueError(f"the {picture.format} picture is broken or cut short: {error}") from None


def accept(value: object) -> Picture:
    """A picture of PIL; arrays and tensors ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` of bytes are made one."""
    if isinstance(value, Picture):
        return value
    array = np.asarray(value) if isinstance(value, np.ndarray | Tensor) else np.zeros(0)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or not array.size:
        what = f"an array {list(array.shape)} of {array.dtype}" if array.size else type(value).__name__
        raise ValueError(f"a picture is one of PIL, or an array [rows, columns, 3] of uint8, not {what}")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def plain(picture: Picture) -> Picture:
    """A copy of any picture as RGB, upright, transparency over white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of grey, which PIL would clip instead of scale
        picture = PIL.Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = PIL.Image.new("RGBA", picture.size, "white")
    return PIL.Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def write(picture: Picture) -> bytes:
    """PNG bytes."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def square(picture: Picture, size: int) -> Picture:
    """Scaled to fit into `size` by `size`, and padded with the colour of its own border where it is not square."""
    if picture.size == (size, size):
        return picture
    left, top, right, bottom = place(picture.size, size)
    small = picture.resize((right - left, bottom - top), PIL.Image.Resampling.LANCZOS)
    if small.size == (size, size):
        return small
    canvas = PIL.Image.new("RGB", (size, size), border_colour(small))
    canvas.paste(small, (left, top))
    return canvas


def place(sides: tuple[int, int], size: int) -> Box:
    """Where a picture of these sides comes to lie in a square of `size`: left, top, right, bottom."""
    scale = size / max(sides)
    width, height = (max(1, round(side * scale)) for side in sides)
    left, top = (size - width) // 2, (size - height) // 2
    return left, top, left + width, top + height


def border_colour(picture: Picture) -> RGB:
    """The median colour of the outermost pixels."""
    array = np.asarray(picture)
    border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    border.sort(axis=0)  # np.median takes several times as long
    middle = len(border) // 2
    red, green, blue = ((border[-middle - 1].astype(int) + border[middle]) // 2).tolist()
    return red, green, blue


def to_tensor(picture: Picture) -> Tensor:
    """RGB pixels as ``[3, S, S]`` in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_picture(tensor: Tensor) -> Picture:
    """``[3, S, S]`` in [-1, 1] as RGB pixels."""
    array = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return PIL.Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def grid(rows: list[list[Picture]], scale: int = 2) -> Picture:
    """Pictures of one size in rows, enlarged without smoothing."""
    width, height = rows[0][0].size
    canvas = PIL.Image.new("RGB", (max(map(len, rows)) * width, len(rows) * height), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture, (x * width, y * height))
    return canvas.resize((canvas.width * scale, canvas.height * scale), PIL.Image.Resampling.NEAREST)
