"""The shared Transformer: every modality enters through its front end, one stack, one head per modality.

Letters: N tokens of the packed row, D width, K codebooks, V codes of a modality, m labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyxform.attention import packed_attention
from anyxform.field import did_you_mean
from anyxform.layers import Attend, Block, RMSNorm, Rope, rope
from anyxform.modality import Modality
from anyxform.sequence import Batch, PackedTargets

PRESETS: dict[str, dict[str, int]] = {
    "nano": {"dim": 128, "depth": 4, "num_heads": 2, "num_kv_heads": 2},
    "tiny": {"dim": 256, "depth": 6, "num_heads": 4, "num_kv_heads": 4},
    "mini": {"dim": 320, "depth": 8, "num_heads": 5, "num_kv_heads": 5},
    "small": {"dim": 768, "depth": 16, "num_heads": 12, "num_kv_heads": 6},
    "base": {"dim": 1024, "depth": 28, "num_heads": 16, "num_kv_heads": 8},
    "large": {"dim": 2048, "depth": 26, "num_heads": 16, "num_kv_heads": 8},
    "xl": {"dim": 4096, "depth": 38, "num_heads": 32, "num_kv_heads": 8},
}
"""Sizes of the shared stack; heads are 64 wide up to `base` and 128 wide beyond."""


TARGET_POSITIONS = ("after", "along")


class Target(nn.Module):
    """A modality's target side: K embedding tables summed, K heads in parallel, and the length of masked targets.

    Tables have V + 1 rows, the last being the mask; heads have V + 1 outputs, the last being the end.
    """

    def __init__(self, modality: Modality, dim: int, tie: bool) -> None:
        super().__init__()
        shape = (modality.num_codebooks, modality.vocab_size + 1, dim)
        self.embedding = nn.Parameter(torch.empty(shape))
        self.head = self.embedding if tie else nn.Parameter(torch.empty(shape))
        self.length = None if modality.fixed_length else nn.Linear(dim, modality.max_length + 1)
        self.int8_heads: Any = None  # see `anyxform.quantize`

    def embed(self, ids: Tensor) -> Tensor:
        """Ids ``[..., K]`` to ``[..., D]``."""
        # table[ids] would do, but its gradient takes a quarter of all that a GPU computes in a step of a small model
        return sum(F.embedding(ids[..., k], table) for k, table in enumerate(self.embedding))  # type: ignore[return-value]

    def logits(self, states: Tensor) -> Tensor:
        """States ``[..., D]`` to fp32 logits ``[..., K, V + 1]``."""
        if self.int8_heads is not None:
            logits = [head(states).float() for head in self.int8_heads]
        else:
            logits = [(states @ head.to(states.dtype).T).float() for head in self.head]
        return logits[0].unsqueeze(-2) if len(logits) == 1 else torch.stack(logits, dim=-2)  # which is a copy


class Transformer(nn.Module):
    """One stack for every direction. `conditions` are the attributes and markers that a target can be asked by.

    `layer_dropout`: with what probability a training step skips the last block; see `train.skipped_blocks`.
    `target_positions`: whether a target's positions count on ``after`` those of its prefix, or run ``along`` those of
    its source, from the same first one: what is said in the same order is then near at once. Of all targets, or by
    modality, ``{"audio": "along"}``, the others' after.
    """

    def __init__(
        self,
        *,
        modalities: Mapping[str, Modality],
        conditions: Sequence[str],
        dim: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        hidden_dim: int | None = None,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
        qk_norm: bool = True,
        dropout: float = 0.0,
        layer_dropout: float = 0.0,
        tie_embeddings: bool = True,
        target_positions: str | Mapping[str, str] = "after",
    ) -> None:
        super().__init__()
        if min(dim, depth, num_heads) < 1 or (num_kv_heads or 1) < 1:
            raise ValueError(
                f"dim={dim}, depth={depth}, num_heads={num_heads}, num_kv_heads={num_kv_heads}: give 1 or more"
            )
        num_kv_heads = num_kv_heads or num_heads
        head_dim = head_dim or dim // num_heads
        hidden_dim = hidden_dim or -(-8 * dim // 3 // 64) * 64
        if num_heads % num_kv_heads or head_dim % 2 or head_dim < 2:
            raise ValueError(
                f"num_heads={num_heads} must be a multiple of num_kv_heads={num_kv_heads}, and head_dim={head_dim} even"
            )
        self.along = _along(target_positions, list(modalities))
        self._config = {
            "dim": dim, "depth": depth, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
            "hidden_dim": hidden_dim, "rope_theta": rope_theta, "norm_eps": norm_eps, "qk_norm": qk_norm,
            "dropout": dropout, "layer_dropout": layer_dropout, "tie_embeddings": tie_embeddings,
            "target_positions": target_positions if isinstance(target_positions, str) else dict(target_positions),
        }  # fmt: skip
        self.dim, self.head_dim, self.rope_theta, self.layer_dropout = dim, head_dim, rope_theta, layer_dropout
        self.condition_ids = {name: number for number, name in enumerate(conditions)}
        self.front_ends: Any = nn.ModuleDict({name: modality.front_end(dim) for name, modality in modalities.items()})
        self.source_embedding = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in modalities})
        self.condition_embedding = nn.Embedding(len(conditions), dim)
        self.targets: Any = nn.ModuleDict({name: Target(it, dim, tie_embeddings) for name, it in modalities.items()})
        self.blocks: Any = nn.ModuleList(
            Block(dim, num_heads, num_kv_heads, head_dim, hidden_dim, norm_eps, dropout, qk_norm) for _ in range(depth)
        )
        self.norm = RMSNorm(dim, norm_eps)
        self.decode_step: Any = None  # a compiled one: see `anyxform.compiled`
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal with deviation 0.02; what a block adds to the stream is scaled by 1/sqrt(2·depth).

        Front ends keep the initialisation that their modality gave them.
        """
        for module in [self.condition_embedding, *self.blocks.modules(), *self.targets.modules()]:
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            for projection in (block.attention.out, block.mlp.down):
                nn.init.normal_(projection.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)
        for parameter in [
            *self.source_embedding.values(),
            *(p for t in self.targets.values() for p in (t.embedding, t.head)),
        ]:
            nn.init.normal_(parameter, std=0.02)

    def config(self) -> dict[str, Any]:
        """The constructor's numbers, plain."""
        return dict(self._config)

    def embed(self, batch: Batch) -> Tensor:
        """The packed row's embeddings ``[N, D]``; padding is zero."""
        indices, parts = [batch.condition_index], [self.condition_embedding(batch.condition_ids)]
        for name, sources in batch.sources.items():
            indices.append(sources.index)
            parts.append(self.front_ends[name](sources.values, sources.lengths) + self.source_embedding[name])
        for name, targets in batch.targets.items():
            indices.append(targets.index)
            parts.append(self.targets[name].embed(targets.inputs))
        # under autocast the stream is in fp32, though FSDP hands out weights in bf16
        dtype = torch.float32 if torch.is_autocast_enabled(parts[0].device.type) else parts[0].dtype
        x = torch.zeros(batch.size, self.dim, dtype=dtype, device=parts[0].device)
        return x.index_copy(0, torch.cat(indices), torch.cat([part.to(x.dtype) for part in parts]))

    def run_blocks(
        self,
        x: Tensor,
        angles: Rope,
        attends: Sequence[Attend],
        exits: Sequence[int] = (),
        skips: Sequence[int] = (),
    ) -> list[Tensor]:
        """The normalised states after each number of blocks in `exits`, then after all but the blocks in `skips`."""
        states = []
        for number, (block, attend) in enumerate(zip(self.blocks, attends, strict=True)):
            if number not in skips:
                x = block(x, angles, attend)
            if number + 1 in exits:
                states.append(self.norm(x))
        return [*states, self.norm(x)]

    def states(self, batch: Batch, exits: Sequence[int] = (), skips: Sequence[int] = ()) -> list[Tensor]:
        """States ``[N, D]`` of a packed row: after `exits` blocks each, then after all but the blocks in `skips`."""
        x = self.embed(batch)
        angles = rope(batch.along(self.along), self.head_dim, self.rope_theta)
        attend = packed_attention(batch.segments, batch.size, x.device)
        return self.run_blocks(x, angles, [attend] * len(self.blocks), exits, skips)

    def read(self, states: Tensor, targets: Mapping[str, PackedTargets]) -> dict[str, Tensor]:
        """Each modality's fp32 logits ``[m, K, V + 1]`` at its labels."""
        chosen = {name: states.index_select(0, target.label_index) for name, target in targets.items()}
        return {name: self.targets[name].logits(part) for name, part in chosen.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each target modality's logits ``[m, K, V + 1]``, one row for each label of the batch."""
        return self.read(self.states(batch)[-1], batch.targets)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _along(chosen: str | Mapping[str, str], modalities: Sequence[str]) -> frozenset[str]:
    """The modalities whose targets run along their sources. ValueError: a choice or a modality that there is not."""
    if not isinstance(chosen, str | Mapping):
        raise ValueError(f"target_positions={chosen}: give after, along, or a choice by modality: {{audio: along}}")
    given = dict.fromkeys(modalities, chosen) if isinstance(chosen, str) else chosen
    for choice in [chosen] if isinstance(chosen, str) else given.values():
        if choice not in TARGET_POSITIONS:
            raise ValueError(f"target_positions={choice}: {did_you_mean(str(choice), TARGET_POSITIONS)}")
    for name in given:
        if name not in modalities:
            raise ValueError(f"target_positions of {name!r}: {did_you_mean(name, modalities)}")
    return frozenset(name for name, choice in given.items() if choice == "along")


def compile_blocks(model: Transformer, whole: bool | None = None) -> None:
    """Compile the blocks in place: `whole`, on CUDA, or what is computed token by token, as elsewhere the shapes of
    attention change. None: as fits where the model is.

    Rows must have one fixed size (`rows.Rows(pad=True)`), else every row is compiled anew.
    """
    for block in model.blocks:
        if model.norm.weight.is_cuda if whole is None else whole:
            block.compiled = torch.compile(block._forward, dynamic=False)
        else:
            block.attention.project = torch.compile(block.attention.project, dynamic=False)
            block.mlp.compile(dynamic=False)
