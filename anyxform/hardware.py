"""What devices can do: published figures of accelerators, measured ones of this machine."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from anyxform.field import did_you_mean

HERE = "here"


@dataclass(frozen=True)
class Device:
    """`operations`: floating-point operations a second in dense bf16 matrix products, `fp32` in those of fp32; `memory`
    in bytes, `bandwidth` in bytes a second.
    """

    name: str
    operations: float
    fp32: float
    memory: float
    bandwidth: float


DEVICES = {
    device.name: device
    for device in (  # the makers' data sheets, dense, accumulated in fp32; fp32 without TF32, as torch has it
        Device("l4", 121e12, 30e12, 24e9, 0.30e12),
        Device("rtx4090", 165e12, 83e12, 24e9, 1.01e12),
        Device("l40s", 362e12, 92e12, 48e9, 0.86e12),
        Device("a100-40", 312e12, 19.5e12, 40e9, 1.56e12),
        Device("a100", 312e12, 19.5e12, 80e9, 2.04e12),
        Device("h100", 989e12, 67e12, 80e9, 3.35e12),
        Device("h200", 989e12, 67e12, 141e9, 4.8e12),
        Device("b200", 2250e12, 75e12, 180e9, 8.0e12),
        Device("mi300x", 1307e12, 163e12, 192e9, 5.3e12),
    )
}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether it is a GPU with instructions for bf16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def device(name: str, bf16: bool = True) -> Device:
    """A device by its name; `here` is this machine, measured, in fp32 or bf16. ValueError: an unknown name."""
    if name == HERE:
        return _measured(torch.bfloat16 if bf16 else torch.float32)
    if name not in DEVICES:
        raise ValueError(f"--gpu {name} is unknown: {did_you_mean(name, [HERE, *DEVICES])}")
    return DEVICES[name]


def _measured(dtype: torch.dtype, size: int = 2048, seconds: float = 1.0) -> Device:
    """The best of the matrix products, and of the copies, that fit into the time."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, size, size, device=place, dtype=dtype)
    large = torch.zeros(16 * size * size, device=place)
    product = _best(lambda: a @ b, seconds)
    copy = _best(large.clone, seconds)
    if place == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    operations = 2 * size**3 / product
    return Device(HERE, operations, operations, memory, 2 * large.nbytes / copy)


def _best(work: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call, in seconds."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])
