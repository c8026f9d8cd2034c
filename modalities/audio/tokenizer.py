"""The audio tokenizer: a convolutional auto-encoder of log-mel frames around finite scalars (FSQ, arXiv 2309.15505).

Letters: B clips, F frames, M mel bands, W width, T = F/4 tokens, K codebooks, L levels of each.
"""

import copy
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from modalities.audio.spectrogram import BANDS, SILENCE

STRIDE = 4
"""Frames of a token."""
CROP = 96
BATCH_SIZE = 32
LEARNING_RATE = 1.5e-3
STEPS = 6000


class ChannelNorm(nn.Module):
    """Root-mean-square normalisation of each frame by itself: what a frame becomes depends on no distant one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * self.weight.to(x.dtype)


class Residual(nn.Module):
    """Two normalised convolutions over time beside the identity, which is all that they are at the start."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm2 = ChannelNorm(width)
        self.conv2 = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Tokenizer(nn.Module):
    """Normalised log-mel frames ``[B, F, M]`` to codes ``[B, T, K]`` and back."""

    def __init__(self, levels: Sequence[int], num_codebooks: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(BANDS, width, 3, padding=1), Residual(width), Residual(width, 3),
            nn.Conv1d(width, width, 2, stride=2), Residual(width), Residual(width, 3),
            nn.Conv1d(width, width, 2, stride=2), Residual(width), Residual(width, 3),
            ChannelNorm(width), nn.Conv1d(width, num_codebooks * len(levels), 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv1d(num_codebooks * len(levels), width, 3, padding=1),
            Residual(width), Residual(width, 3), Residual(width),
            nn.ConvTranspose1d(width, width, 2, stride=2), Residual(width), Residual(width, 3), Residual(width),
            nn.ConvTranspose1d(width, width, 2, stride=2), Residual(width), Residual(width, 3),
            ChannelNorm(width), nn.SiLU(), nn.Conv1d(width, BANDS, 3, padding=1),
        )  # fmt: skip
        self.norm = nn.BatchNorm1d(num_codebooks * len(levels), affine=False)  # keeps all levels in use
        self.quantizer = FSQ(list(levels), num_codebooks=num_codebooks, keep_num_codebooks_dim=True)

    def quantized(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latents ``[B, T, K·L]``, gradients passing straight through, and codes ``[B, T, K]``."""
        z = self.encoder(frames.transpose(1, 2))
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would put values on the wrong side of a level
            return self.quantizer(self.norm(z.float()).transpose(1, 2))

    def forward(self, frames: Tensor) -> Tensor:
        """Reconstructed frames."""
        return self.decoder(self.quantized(frames)[0].transpose(1, 2)).transpose(1, 2).float()

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        return self.quantized(frames)[1].long()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.indices_to_codes(codes).transpose(1, 2)).transpose(1, 2).float()


class Decoder(nn.Module):
    """Codes ``[T, K]`` to normalised log-mel frames ``[F, M]``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.decoder, self.quantizer = tokenizer.decoder, tokenizer.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.indices_to_codes(codes[None]).transpose(1, 2))[0].T


def train(tokenizer: Tokenizer, clips: Sequence[Tensor], *, steps: int | None, seed: int) -> Iterator[dict[str, float]]:
    """Train in place on crops of clips' frames ``[F, M]``, on a GPU if there is one. Yields ``step, steps, loss``.

    AdamW with a cosine; at the end the average of the weights is taken.
    """
    steps = STEPS if steps is None else steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    joined = torch.cat([F.pad(clip, (0, 0, 0, max(0, CROP - len(clip))), value=SILENCE) for clip in clips])
    model = copy.deepcopy(tokenizer).to(device).train().requires_grad_(True)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        starts = torch.randint(len(joined) - CROP + 1, (BATCH_SIZE,), generator=generator)
        x = torch.stack([joined[start : start + CROP] for start in starts.tolist()]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            y = model(x)
        loss = reconstruction_loss(y, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _follow(average, model, min(0.999, (step + 1) / (step + 10)))
        yield {"step": step + 1, "steps": steps, "loss": loss.item()}
    tokenizer.load_state_dict(average.state_dict())


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Absolute and squared error of frames, and of their change over time, which carries consonants."""
    error = y - x
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * error.diff(dim=1).abs().mean()


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, current in zip(average.state_dict().values(), model.state_dict().values()):
        if mean.is_floating_point():
            mean.lerp_(current, 1 - decay)
        else:
            mean.copy_(current)
