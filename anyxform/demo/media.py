"""Values as HTML: text stands in the page, everything else in a file beside it. What a file is, its ending says."""

import mimetypes
from difflib import SequenceMatcher
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from anyxform.modality import Modality

GRADIENT = torch.tensor([(16, 16, 48), (82, 38, 134), (198, 64, 104), (250, 150, 70), (252, 240, 180)]).float()
"""Colours of a spectrogram, from quiet to loud."""


_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine, and what it lacks
for _ending, _type in (("webp", "image"), ("flac", "audio"), ("ogg", "audio"), ("opus", "audio")):
    _TYPES.add_type(f"{_type}/{_ending}", f".{_ending}")


def kind(modality: Modality) -> str:
    """The first half of the media type of a modality's files: `image`, `audio`, `text`, `application`, …"""
    guess = _TYPES.guess_type(f"file.{modality.extensions[0]}")[0] if modality.extensions else None
    return (guess or "application").split("/")[0]


def document(title: str, body: str) -> str:
    """A whole page in our style."""
    style = files("anyxform.demo").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


class Gallery:
    """Writes values into `folder` and gives the HTML that shows them; paths are relative to the folder's parent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, 0

    def show(self, modality: Modality, value: Any) -> str:
        """A value as HTML."""
        if isinstance(value, str):
            return f'<span class="words" dir="auto">{escape(value) or "&nbsp;"}</span>'
        self.count += 1
        path = self.folder / f"{self.count:03d}.{modality.extensions[0]}"
        path.write_bytes(modality.save(value))
        source = escape(f"{self.folder.name}/{path.name}")
        if kind(modality) == "image":
            return f'<img class="picture" src="{source}" alt="" loading="lazy">'
        if kind(modality) == "audio":
            player = f'<audio controls preload="none" src="{source}"></audio>'
            return f'<span class="sound">{self._spectrogram(modality, value, path)}{player}</span>'
        return f'<a href="{source}">{path.name}</a>'

    def _spectrogram(self, modality: Modality, value: Any, path: Path) -> str:
        """The picture of what the model hears, if that is a plane of time × frequency."""
        tensor = modality.preprocess(value)
        if tensor.ndim != 2 or not tensor.is_floating_point():
            return ""
        picture = path.with_suffix(".spectrum.png")
        spectrogram(tensor).save(picture)
        return f'<img class="spectrum" src="{escape(f"{self.folder.name}/{picture.name}")}" alt="spectrogram">'


def spectrogram(frames: Tensor) -> Image.Image:
    """Frames ``[time, frequency]`` as a picture, low frequencies at the bottom."""
    low, high = frames.min(), frames.max()
    place = ((frames - low) / (high - low).clamp(min=1e-6)).T.flip(0) * (len(GRADIENT) - 1)
    first = place.floor().long().clamp(max=len(GRADIENT) - 2)
    colours = torch.lerp(GRADIENT[first], GRADIENT[first + 1], (place - first)[..., None])
    return Image.fromarray(colours.byte().numpy(), "RGB")


def marked(answer: str, truth: str) -> str:
    """An answer as HTML in which the words that the truth has too, in the same order, are marked."""
    words, right = answer.split(), [word.casefold().strip(".,!?¡¿:;") for word in truth.split()]
    blocks = SequenceMatcher(None, [word.casefold().strip(".,!?¡¿:;") for word in words], right, autojunk=False)
    hits = {number for block in blocks.get_matching_blocks() for number in range(block.a, block.a + block.size)}
    parts = [f"<mark>{escape(word)}</mark>" if n in hits else escape(word) for n, word in enumerate(words)]
    return f'<span class="words" dir="auto">{" ".join(parts) or "<i>nothing</i>"}</span>'
