"""How every benchmark here measures: both sides in alternation in one run, as the median of paired ratios.

Absolute figures on a shared machine vary; the ratio of two runs a moment apart varies little. The last line that a
benchmark prints is one JSON document.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """Units per second of both sides, and ours / peer as the median of pairs with its 95 % bootstrap interval."""

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.name}: ours {self.ours:,.0f} {self.unit}, peer {self.peer:,.0f} {self.unit}, "
            f"ratio {self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}] over {self.pairs} pairs"
        )


def compare(
    name: str, ours: Callable[[], float], peer: Callable[[], float], *, unit: str, pairs: int = 12, warmup: int = 2
) -> Comparison:
    """Time two callables, each of which does some work and returns how many units it did."""
    for _ in range(warmup):
        ours(), peer()
    rates: list[tuple[float, float]] = []
    for pair in range(pairs):
        sides = [ours, peer] if pair % 2 == 0 else [peer, ours]  # neither always goes first
        measured = [_rate(side) for side in sides]
        rates.append((measured[0], measured[1]) if pair % 2 == 0 else (measured[1], measured[0]))
    return compared(name, rates, unit=unit)


def compared(name: str, rates: list[tuple[float, float]], *, unit: str) -> Comparison:
    """What pairs of rates, ours and the peer's, say."""
    ratios = np.array([ours / peer for ours, peer in rates])
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
    return Comparison(
        name,
        unit,
        statistics.median(rate for rate, _ in rates),
        statistics.median(rate for _, rate in rates),
        float(np.median(ratios)),
        float(low),
        float(high),
        len(rates),
    )


def _rate(work: Callable[[], float]) -> float:
    started = time.perf_counter()
    units = work()
    return units / (time.perf_counter() - started)


def calibration(size: int = 1024) -> dict[str, float]:
    """What this machine can do right now: matrix products in GFLOP/s and a copy in GB/s."""

    def product(dtype: torch.dtype) -> float:
        a = torch.randn(size, size, dtype=dtype)
        a @ a  # warms up
        return max(_rate(lambda: float((a @ a).numel()) * 2 * size) for _ in range(5)) / 1e9

    block = torch.zeros(64 * 2**20, dtype=torch.uint8)
    copy = max(_rate(lambda: float(block.clone().numel() * 2)) for _ in range(5)) / 1e9
    return {"fp32_gflops": product(torch.float32), "bf16_gflops": product(torch.bfloat16), "copy_gb_per_s": copy}


def report(results: list[Comparison], before: dict[str, float], **facts: object) -> None:
    """Print every comparison, and last one JSON line with the setting."""
    for result in results:
        print(result)
    setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), **facts}
    document = {
        "results": [asdict(result) for result in results],
        "calibration": {"before": before, "after": calibration()},
        "setting": setting,
    }
    print(json.dumps(document))
