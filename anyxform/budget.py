"""What a training would take on some hardware: memory of each process by part, time and money."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyxform.estimate import Cost
from anyxform.hardware import Device

FP32, BF16 = 4, 2
AT_ONCE = 64
"""Answers that are generated together."""
GENERATING = 0.5
"""The share of a device's bandwidth, or of its operations, that generation is taken to reach."""


@dataclass(frozen=True)
class Setting:
    """How many `devices` of a kind share the model (fsdp) or each hold all of it, and what share of their operations
    they are taken to reach (`mfu`)."""

    device: Device
    devices: int = 1
    sharded: bool = False
    mfu: float = 0.4
    rows_per_step: int = 1
    average: bool = True
    bf16: bool = True


def memory(cost: Cost, setting: Setting) -> dict[str, float]:
    """Bytes of one process, by what they hold, at the moment when there are most: the start of the backward pass."""
    share = setting.devices if setting.sharded else 1
    parts = {
        "weights": FP32 * cost.parameters / share,
        "gradients": FP32 * cost.parameters / share,
        "optimizer": cost.optimizer_bytes / share,
        "average": FP32 * cost.parameters / share * setting.average,
        "activations": float(cost.activations),
    }
    if setting.sharded:  # the block at work, the next one, and what does not belong to a block
        outside = cost.parameters - cost.stack_parameters
        parts["gathered"] = float((BF16 if setting.bf16 else FP32) * (2 * cost.largest_block + outside))
    return parts


def speed(cost: Cost, setting: Setting) -> float:
    """Tokens a second of all devices together."""
    rows = -(-setting.rows_per_step // setting.devices)  # of the process that has the most
    operations = rows * (cost.forward + cost.backward) + cost.optimizer_step
    return setting.rows_per_step * cost.tokens * _rate(setting) * setting.mfu / operations


def _rate(setting: Setting) -> float:
    return setting.device.operations if setting.bf16 else setting.device.fp32


def generating(cost: Cost, device: Device) -> float:
    """Tokens a second that one device generates left to right, `AT_ONCE` answers together, bf16.

    Each step reads all of the stack's weights once; a longer answer's cache is left out.
    """
    reading = BF16 * cost.stack_parameters / device.bandwidth
    computing = 2 * AT_ONCE * cost.stack_parameters / device.operations
    return GENERATING * AT_ONCE / max(reading, computing)


def plan(cost: Cost, setting: Setting, tokens: float, price: float | None) -> Mapping[str, Any]:
    """All of it, plain: for `tokens` to train on, at `price` an hour of one device."""
    parts, rate = memory(cost, setting), speed(cost, setting)
    hours = tokens / rate / 3600
    generated = generating(cost, setting.device)
    return {
        "parameters": cost.parameters,
        "operations_per_token": cost.per_token,
        "memory": parts,
        "memory_needed": sum(parts.values()),
        "memory_there": setting.device.memory,
        "tokens_per_second": rate,
        "tokens": tokens,
        "days": hours / 24,
        "price": None if price is None else hours * setting.devices * price,
        "generated_tokens_per_second": generated,
        "price_per_million_generated": None if price is None else 1e6 / generated / 3600 * price,
    }
