"""How recordings enter the model: two strided convolutions over time, within each clip."""

import torch.nn.functional as F
from torch import Tensor, arange, cat, nn, tensor
from torch.nn.utils.rnn import pad_sequence

from modalities.audio.spectrogram import BANDS


class ConvStem(nn.Module):
    """Log-mel frames ``[sum F, M]`` of clips to tokens ``[sum F/4, D]``; clips do not see one another."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(BANDS, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.out = nn.Linear(dim, dim)

    def forward(self, values: Tensor, lengths: list[int]) -> Tensor:
        x = pad_sequence(values.split(lengths), batch_first=True).transpose(1, 2)  # [B, M, F]
        x = F.gelu(self.conv1(x))
        halves = tensor([length // 2 for length in lengths]).to(x.device, non_blocking=True)
        within = arange(x.shape[2], device=x.device) < halves[:, None]
        # what the bias made of the padding must not reach a clip's last token
        x = F.gelu(self.conv2(x * within[:, None])).transpose(1, 2)
        # by numbers: a mask would have to be read from the device to know how many there are
        tokens = cat([arange(length // 4) + clip * x.shape[1] for clip, length in enumerate(lengths)])
        return self.out(x.flatten(0, 1)[tokens.to(x.device, non_blocking=True)])
