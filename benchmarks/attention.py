"""Attention of a packed row, forward and backward: segments of about one length together, against its alternatives.

A hundred samples of the starter's mixture, packed, against the same padded to the longest, which makes some 60 % of the
batch padding; long texts in bf16 against torch's kernel in fp32.

python -m benchmarks.attention
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anyxform.attention import SegmentAttention
from anyxform.sequence import Segments, may_attend, pack
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

HEADS, HEAD_DIM = 4, 64


def mixture(count: int) -> Segments:
    """The segments of the first samples of the starter's training."""
    rows, ids = starter.rows(starter.modalities(), num_workers=0)
    return pack(starter.examples(rows, count), ids).segments


def padded(segments: Segments, *inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """Inputs ``[B, longest, H, C]`` of a padded batch, every example as long as the longest, and its mask.

    Both are made once a batch, for all blocks of a model.
    """
    lengths, longest = segments.lengths, max(segments.lengths)
    mask = torch.zeros(len(lengths), 1, longest, longest, dtype=torch.bool)
    mask[..., 0] = True  # so that no row of padding is empty
    for number, (p, t, causal) in enumerate(zip(segments.prefixes, segments.targets, segments.causal)):
        mask[number, 0, : p + t, : p + t] = may_attend(Segments([0], [p], [t], [causal]), p + t)
    parts = [x.detach().split(lengths) for x in inputs]
    return [torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True).requires_grad_() for part in parts], mask


def main() -> None:
    torch.set_num_threads(1)
    before = calibration()
    segments = mixture(100)
    size = sum(segments.lengths)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(size, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True) for _ in range(3)]
        loop = SegmentAttention(segments, size)
        batch, mask = padded(segments, *inputs)

        def ours(loop: SegmentAttention = loop, inputs: list[Tensor] = inputs) -> float:
            loop(*inputs).sum().backward()
            return size

        def peer(batch: list[Tensor] = batch, mask: Tensor = mask) -> float:
            q, k, v = (x.transpose(1, 2) for x in batch)
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
            return size

        results.append(compare(f"packed against a padded batch, {dtype}", ours, peer, unit="tokens/s"))
    longer = Segments([512 * number for number in range(8)], [0] * 8, [512] * 8, [True] * 8)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(8 * 512, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True) for _ in range(3)]
        loop = SegmentAttention(longer, 8 * 512)

        def long(loop: SegmentAttention = loop, inputs: list[Tensor] = inputs) -> float:
            loop(*inputs).sum().backward()
            return 8 * 512

        def kernel(inputs: list[Tensor] = inputs) -> float:
            q, k, v = (x.float().unflatten(0, (8, 512)).transpose(1, 2) for x in inputs)
            F.scaled_dot_product_attention(q, k, v, is_causal=True).to(inputs[0].dtype).sum().backward()
            return 8 * 512

        name = f"texts of 512 tokens, {dtype}, against the kernel in fp32"
        results.append(compare(name, long, kernel, unit="tokens/s"))
    padding = 1 - size / (len(segments.lengths) * max(segments.lengths))
    report(results, before, padding_of_the_peer=round(padding, 3))


if __name__ == "__main__":
    main()
