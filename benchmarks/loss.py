"""Losses of what a head reads, and their gradients: chunk by chunk in one function against torch's cross-entropy.

python -m benchmarks.loss
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from anyxform.loss import head_losses
from benchmarks.compare import calibration, compare, report

SIZES = ((4096, 1, 4097, 320), (1500, 2, 1001, 256))
"""States, codebooks, codes and width: texts of a step, and pictures."""


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before, results = calibration(), []
    for states, num_codebooks, codes, dim in SIZES:
        table = torch.randn(num_codebooks, codes, dim, requires_grad=True)
        x = torch.randn(states, dim, requires_grad=True)
        labels = torch.randint(codes, (states, num_codebooks))
        head: Any = SimpleNamespace(head=table)
        for bf16 in (False, True):

            def ours(x: Any = x, head: Any = head, labels: Any = labels, bf16: bool = bf16) -> float:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    total, _ = head_losses(head, x, labels)
                total.backward()  # type: ignore[no-untyped-call]
                return len(x)

            def peer(x: Any = x, table: Any = table, labels: Any = labels, bf16: bool = bf16) -> float:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    each = [
                        F.cross_entropy((x @ codebook.T).float(), of_book, reduction="sum")
                        for codebook, of_book in zip(table, labels.T)
                    ]
                sum(each, x.new_zeros(())).backward()
                return len(x)

            name = f"{states} states, {num_codebooks} x {codes} codes, {'bf16' if bf16 else 'fp32'}"
            results.append(compare(name, ours, peer, unit="states/s"))
    report(results, before)


if __name__ == "__main__":
    main()
