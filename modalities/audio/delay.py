"""Codebooks one token behind another, so that a frame's codes are chosen in turn (MusicGen, arXiv 2306.05284).

Without it a frame's codes are chosen at once and each for itself, though those of later quantisers are what the earlier
ones have left over. T tokens, K codebooks.
"""

import torch
from torch import Tensor

NOTHING = 0
"""The code that stands where a codebook has not begun yet, or has ended."""


def delayed(codes: Tensor) -> Tensor:
    """Codes ``[T, K]`` as ``[T + K - 1, K]``: those of codebook k come k tokens later."""
    tokens, books = codes.shape
    found = codes.new_full((tokens + books - 1, books), NOTHING)
    for k in range(books):
        found[k : k + tokens, k] = codes[:, k]
    return found


def undelayed(codes: Tensor) -> Tensor:
    """The codes ``[T, K]`` of which these ``[T + K - 1, K]`` are made; of fewer than K tokens one is made."""
    tokens, books = codes.shape
    more = codes[-1:].expand(books - 1, -1)  # so that what ended too soon has codes to be read, too
    length = max(1, tokens - books + 1)
    return torch.stack([torch.cat([codes, more])[k : k + length, k] for k in range(books)], dim=1)
