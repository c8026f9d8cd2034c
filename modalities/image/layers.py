"""What the front end and the tokenizer are both built of. Letters: B pictures, W width, R rows or columns."""

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two normalised 3x3 convolutions beside the identity, which is all that they are at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
