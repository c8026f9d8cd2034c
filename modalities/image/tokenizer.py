"""The image tokenizer: a convolutional auto-encoder around finite scalar quantisation (FSQ, arXiv 2309.15505).

Letters: B pictures, S side, W width, R rows or columns of codes, T = R·R tokens, K codes of each, L levels of a code.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from modalities.image.layers import Residual
from modalities.image.quality import psnr

STEM = 4
"""Side of the blocks of pixels that are folded into channels at both ends: full resolution is where time would go."""
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
STEPS = 4000
"""Ten minutes of one CPU core, or two of a GPU."""


class Tokenizer(nn.Module):
    """Pictures ``[B, 3, S, S]`` in [-1, 1] to codes ``[B, T, K]``, rows first, and back. S / R = `downsample`."""

    def __init__(self, levels: tuple[int, ...], width: int, downsample: int, num_codebooks: int = 1) -> None:
        super().__init__()
        latents = num_codebooks * len(levels)
        halvings = (downsample // STEM).bit_length() - 1
        encoder: list[nn.Module] = [
            nn.PixelUnshuffle(STEM), nn.Conv2d(3 * STEM**2, width, 3, padding=1), Residual(width)
        ]  # fmt: skip
        decoder: list[nn.Module] = [nn.Conv2d(latents, width, 3, padding=1), Residual(width), Residual(width)]
        for _ in range(halvings):
            encoder += [nn.Conv2d(width, width, 2, stride=2), Residual(width)]
            decoder += [nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2), Residual(width)]
        encoder += [Residual(width), nn.GroupNorm(8, width), nn.Conv2d(width, latents, 1)]
        decoder += [
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 3 * STEM**2, 3, padding=1),
            nn.PixelShuffle(STEM),
        ]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        # without the norm quantisers saturate, and a handful of codes is left
        self.norm = nn.GroupNorm(num_codebooks, latents)
        self.quantizer = FSQ(list(levels), num_codebooks=num_codebooks, keep_num_codebooks_dim=True, channel_first=True)
        self.to(memory_format=torch.channels_last)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What quantisers leave of pictures, ``[B, K·L, R, R]``, and codes ``[B, R, R, K]``; gradients pass through."""
        z = self.encoder(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would put values on the wrong side of a level
            return self.quantizer(self.norm(z.float()))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions ``[B, 3, S, S]``."""
        return self.decoder(self.quantized(x)[0]).float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.quantized(x)[1].flatten(1, 2).long()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        side = math.isqrt(codes.shape[1])
        return self.decoder(self.quantizer.indices_to_codes(codes.unflatten(1, (side, side)))).clamp(-1, 1)


class Decoder(nn.Module):
    """Codes ``[T, K]`` to a picture ``[3, S, S]`` in [-1, 1]."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.decoder, self.quantizer = tokenizer.decoder, tokenizer.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        side = math.isqrt(codes.shape[0])
        return self.decoder(self.quantizer.indices_to_codes(codes.unflatten(0, (side, side))[None]))[0].clamp(-1, 1)


def train(tokenizer: Tokenizer, pixels: Tensor, *, steps: int | None, seed: int) -> Iterator[dict[str, float]]:
    """Train in place on ``[n, 3, S, S]`` (uint8), on a GPU if there is one; yields ``step, steps, loss, psnr``.

    AdamW with a cosine, an average of the weights at the end. The codes are made by the same weights that decode them.
    """
    steps = STEPS if steps is None else steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(tokenizer).to(device).train().requires_grad_(True)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        chosen = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
        x = pixels[chosen].to(device).float() / 127.5 - 1
        if torch.rand((), generator=generator) < 0.5:  # shifts and other colours cost 0.7 dB of a short training
            x = x.flip(-1)
        with torch.autocast(device.type, torch.bfloat16):
            y = model(x)
        loss = reconstruction_loss(y, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _follow(average, model, min(0.999, (step + 1) / (step + 10)))
        yield {"step": step + 1, "steps": steps, "loss": loss.item(), "psnr": psnr(y.detach(), x).mean().item()}
    tokenizer.load_state_dict(average.state_dict())


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Squared error, which is what PSNR measures, and absolute error of values and slopes, which keeps edges sharp."""
    error = y - x
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.square().mean() + 0.3 * error.abs().mean() + 0.15 * slopes


def _schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
