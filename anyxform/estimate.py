"""What a step of training costs: counted, not guessed, by going through it with tensors that have shapes and no values.

So a model of any size is counted on any machine, with the very code that trains it, on rows of the real data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from anyxform.loss import batch_loss
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.optim import optimizer_named
from anyxform.sequence import Batch, mapped

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of one row, for each process that makes one; bytes are those of a process that holds the whole model."""

    parameters: int
    stack_parameters: int
    """Those of the blocks, which a generated token has to go through."""
    largest_block: int
    tokens: float
    labels: float
    forward: float
    """Floating-point operations."""
    backward: float
    optimizer_step: float
    activations: int
    """Bytes held in the backward pass, of the row with the most."""
    optimizer_bytes: int

    @property
    def per_token(self) -> float:
        """Floating-point operations of training for each token."""
        return (self.forward + self.backward) / self.tokens


def shapes_only() -> FakeTensorMode:
    """A context in which what is computed has shapes and no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def estimate(
    config: Mapping[str, Any],
    modalities: Mapping[str, Modality],
    conditions: Sequence[str],
    batches: Sequence[Batch],
    *,
    optimizer: str = "adamw",
    bf16: bool = False,
    recompute: bool = False,
) -> Cost:
    """The cost of training a model of this config (`Transformer`'s numbers) on these rows.

    `recompute`: whether blocks are computed again in the backward pass. ValueError: a front end whose shapes depend on
    values.
    """
    with shapes_only() as mode:
        model = Transformer(modalities=modalities, conditions=conditions, **config).train()
        make = optimizer_named(optimizer)(model)
        counted = [_row(model, mapped(batch, mode.from_tensor), bf16, recompute) for batch in batches]
        with (stepping := operations()):
            make.step()
        state = [t for part in make.state_dict()["state"].values() for t in part.values() if isinstance(t, Tensor)]
        blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
        return Cost(
            parameters=model.num_parameters(),
            stack_parameters=sum(blocks),
            largest_block=max(blocks),
            tokens=sum(batch.num_tokens for batch in batches) / len(batches),
            labels=sum(batch.num_labels for batch in batches) / len(batches),
            forward=sum(forward for forward, _, _ in counted) / len(batches),
            backward=sum(backward for _, backward, _ in counted) / len(batches),
            optimizer_step=stepping.get_total_flops(),
            activations=max(kept for _, _, kept in counted),
            optimizer_bytes=sum(t.numel() * t.element_size() for t in state),
        )


def _row(model: Transformer, batch: Batch, bf16: bool, recompute: bool) -> tuple[float, float, int]:
    """Operations forward and backward, and the most bytes held; with `recompute`, of the inside of one block."""
    for block in model.blocks:
        block.recomputes = False
    forward, backward, sizes = _gone_through(model, batch, bf16)
    held = sum(sizes) + max(sizes)  # the gradient of the largest is there with it
    if recompute:
        for block in model.blocks:
            block.recomputes = True
        forward, backward, inputs = _gone_through(model, batch, bf16)
        held = sum(inputs) + (sum(sizes) - sum(inputs)) // len(model.blocks) + max(sizes)
    if bf16 and 0 in batch.segments.prefixes:  # texts alone, of which bf16 may compute what the mask hides
        forward, backward, _ = _gone_through(model, batch, bf16=False)
    return forward, backward, held


def _gone_through(model: Transformer, batch: Batch, bf16: bool) -> tuple[float, float, list[int]]:
    """Operations forward and backward, and the bytes of each tensor that is kept between the two."""
    weights = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, as views share theirs; the tensors, so that no storage is used again

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    try:
        with (
            operations() as forward,
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            total, _ = batch_loss(model, batch)
        with operations() as backward:
            total.backward()
    except torch._subclasses.fake_tensor.DynamicOutputShapeException as error:
        raise ValueError(f"the cost cannot be counted: the shapes of a front end depend on values ({error})") from error
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    return forward.get_total_flops(), backward.get_total_flops(), sizes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def operations() -> FlopCounterMode:
    """A context that counts floating-point operations; torch's, which does not know attention on CPUs."""
    kernel, gradient = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    formulas: dict[Any, Callable[..., int]] = {
        kernel: _attention,
        gradient: _attention_backward,
        torch.ops.anyxform.causal_backward: lambda _, query, key, *rest, **__: 5 * _product(query, key, causal=True),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(
    query: Sequence[int], key: Sequence[int], value: Any, dropout: float = 0.0, causal: bool = False, **_: Any
) -> int:
    return 2 * _product(query, key, causal)


def _attention_backward(
    gradient: Any,
    query: Sequence[int],
    key: Sequence[int],
    value: Any,
    output: Any,
    logsumexp: Any,
    dropout: float,
    causal: bool,
    **_: Any,
) -> int:
    return 5 * _product(query, key, causal)


def _product(query: Sequence[int], key: Sequence[int], causal: bool) -> int:
    """One product of queries ``[B, H, T, C]`` with keys ``[B, G, S, C]``; causal, of each with those up to its own."""
    batch, heads, rows, width = query
    pairs = rows * (rows + 1) // 2 if causal else rows * key[2]
    return 2 * batch * heads * pairs * width
