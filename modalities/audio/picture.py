"""Spectrograms as pictures, to look at."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

SCALE = 2


def spectrograms(clips: Sequence[Tensor]) -> Image.Image:
    """Normalised log-mel frames ``[F, M]`` of clips below one another: time to the right, low bands below."""
    width = max(len(clip) for clip in clips)
    rows = [torch.nn.functional.pad(clip.T.flip(0), (0, width - len(clip), 0, 2), value=-3.0) for clip in clips]
    level = ((torch.cat(rows) + 2.5) / 5).clamp(0, 1)
    # dark blue over orange to white: three ramps, one for each colour
    colours = torch.stack([(level * 2).clamp(0, 1), level**1.5, (level * 3 - 2).clamp(0.15, 1)], dim=-1)
    picture = Image.fromarray((colours * 255).byte().numpy())
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)
