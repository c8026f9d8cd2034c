"""Many processes that train one model: which of them this is, and how they share gradients or weights.

torch does the work: DDP keeps the whole model in every process, FSDP2 (`fully_shard`) a part of it in each. What
decides the result, which rows a step has and which blocks it skips, never depends on the number of processes.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from anyxform.loss import batch_loss
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.sequence import Batch
from anyxform.sharding import whole

Strategy = Literal["ddp", "fsdp"]
Shares = Mapping[str, tuple[Tensor, int]]


@dataclass(frozen=True)
class World:
    """The processes of a run, and which this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's plain value, in the order of their ranks; all of them must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return any(self.gather(flag))

    def first(self, value: Any) -> Any:
        """The value of the process that leads."""
        return self.gather(value)[0]


ALONE = World()


@contextmanager
def joined(timeout: float = 600) -> Iterator[World]:
    """The world that torchrun describes in the environment, for as long as the context lasts; alone without it.

    Tensors travel by NCCL where there is CUDA, else by gloo. `timeout`: seconds that another process is waited for;
    `Lost` is raised where it does not answer.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout))
    world = World(dist.get_rank(), dist.get_world_size())
    try:
        yield world
        world.gather(None)  # none goes before the others are done
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0]  # without its place in gloo's sources
            raise Lost(f"process {world.rank} of {world.size} has lost another one ({reason})") from error
        raise
    finally:
        dist.destroy_process_group()


class Lost(RuntimeError):
    """Another process of the run has ended or does not answer."""


class Parallel:
    """A model as this process trains it: alone, as one of many replicas (ddp), or as a part of the whole (fsdp).

    To be made before the optimizer, as FSDP2 replaces the parameters. The model is moved to `device`, if one is given:
    a sharded one part by part, as the whole may be larger than that.
    """

    def __init__(
        self,
        model: Transformer,
        world: World = ALONE,
        strategy: Strategy = "ddp",
        *,
        bf16: bool = False,
        device: torch.device | None = None,
    ) -> None:
        if strategy not in ("ddp", "fsdp"):
            raise ValueError(f"distributed.strategy={strategy!r} is unknown: use ddp or fsdp")
        self.model, self.world = model, world
        self.sharded = strategy == "fsdp" and world.size > 1
        self.objective: Any = _Objective(model, touches=world.size > 1, inside_blocks=not self.sharded)
        if self.sharded:
            _shard(self.objective, bf16, device)
            return
        self.objective.to(device)
        if world.size > 1:
            self.objective = DistributedDataParallel(self.objective, gradient_as_bucket_view=True)

    def loss(self, batch: Batch, *, sync: bool = True, **options: Any) -> tuple[Tensor, Shares]:
        """`batch_loss`, to be scaled and given to `backward` with the same `sync`."""
        with self._syncing(sync):
            return self.objective(batch, **options)

    def backward(self, loss: Tensor, *, sync: bool = True) -> None:
        """Add the loss's gradients to those that are there; where `sync`, sum these over all processes."""
        with self._syncing(sync):
            (loss * self.world.size).backward()  # as torch averages over processes

    def _syncing(self, sync: bool) -> Any:
        # sharded ones are summed after each row: kept until the last, they would be whole in every process
        if self.world.size > 1 and not self.sharded and not sync:
            return self.objective.no_sync()
        return nullcontext()

    def evaluate(self, batch: Batch) -> Shares:
        """Each direction's share of the loss, without gradients."""
        objective = self.objective.module if isinstance(self.objective, DistributedDataParallel) else self.objective
        shares: Shares = objective(batch)[1]
        if self.sharded:
            self.objective.reshard()  # else the outermost weights, which are gathered now, would be used again
        return shares

    def idle(self, batches: Sequence[Batch], skips: Sequence[int]) -> set[str]:
        """What this process says to `forget_idle`: the parameters that it does not use in a step."""
        return idle_parameters(self.model, batches, skips) if self.world.size > 1 else set()

    def forget_idle(self, idle: Sequence[set[str]]) -> None:
        """Take the gradients, all zero, from parameters that no process used: as on one process, they do not move."""
        if self.world.size > 1:
            unused = set.intersection(*idle)
            for name, parameter in self.model.named_parameters():
                if name in unused:
                    parameter.grad = None


def whole_model(model: Transformer, modalities: Mapping[str, Modality], wanted: bool = True) -> Transformer | None:
    """A copy of a sharded model that one process can use alone, in those where it is wanted; all take part in it."""
    copy = None
    if wanted:
        copy = Transformer(modalities=modalities, conditions=list(model.condition_ids), **model.config())
        copy.to(next(model.parameters()).device)
    into = {} if copy is None else copy.state_dict()
    for name, tensor in model.state_dict().items():
        found = whole(tensor.detach())
        if into:
            into[name].copy_(found)
    return copy


class _Objective(nn.Module):
    """A model's losses as the forward pass of a module, which is what DDP and FSDP2 wrap.

    Collectives wait for a gradient of every parameter from every process, also of a modality that its row lacks. So
    where `touches`, parameters that a row leaves idle are given one of zero. Blocks that are skipped are so in every
    process: FSDP2 then knows nothing of them (`inside_blocks` false), DDP wants their gradients too.
    """

    def __init__(self, model: Transformer, *, touches: bool, inside_blocks: bool) -> None:
        super().__init__()
        self.model, self.touches, self.inside_blocks = model, touches, inside_blocks

    def forward(self, batch: Batch, skips: Sequence[int] = (), **options: Any) -> tuple[Tensor, Shares]:
        total, shares = batch_loss(self.model, batch, skips=skips, **options)
        if self.touches and torch.is_grad_enabled():
            names = idle_parameters(self.model, [batch], skips)
            for name, parameter in self.model.named_parameters():
                if name in names and parameter.requires_grad and (self.inside_blocks or not name.startswith("blocks.")):
                    total = total + 0 * parameter.flatten()[:1].sum()
        return total, shares


def _shard(objective: nn.Module, bf16: bool, device: torch.device | None) -> None:
    size = dist.get_world_size()
    mesh = init_device_mesh((device or next(objective.parameters()).device).type, (size,))
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

    def placement(parameter: nn.Parameter) -> Shard | None:
        """Tables of few codebooks are divided by their width: by the first axis one process would have them whole."""
        divides = parameter.ndim == 3 and parameter.shape[0] < size and parameter.shape[2] % size == 0
        return Shard(2) if divides else None

    options: dict[str, Any] = {
        "mesh": mesh, "mp_policy": precision if bf16 else MixedPrecisionPolicy(), "shard_placement_fn": placement,
    }  # fmt: skip
    for block in objective.model.blocks:  # type: ignore[union-attr]
        fully_shard(block.to(device), **options)
    fully_shard(objective.to(device), **options)


def idle_parameters(model: Transformer, batches: Sequence[Batch], skips: Sequence[int] = ()) -> set[str]:
    """The names of the parameters that have no part in the losses of these rows."""
    used = {f"blocks.{number}." for number in range(len(model.blocks)) if number not in skips} | {"norm."}
    for batch in batches:
        used |= {f"{part}.{name}." for name in batch.sources for part in ("front_ends", "source_embedding")}
        used |= {"condition_embedding."} if len(batch.condition_ids) else set()
        for name, target in batch.targets.items():
            used |= {f"targets.{name}.embedding.", f"targets.{name}.head."}
            used |= {f"targets.{name}.length."} if len(target.length_index) else set()
    return {name for name, _ in model.named_parameters() if not f"{name}.".startswith(tuple(used))}
