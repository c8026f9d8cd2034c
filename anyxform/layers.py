"""The parts of a Transformer block: RMSNorm, multi-axis rotary positions, grouped-query attention, SwiGLU.

With positions of one axis this is exactly a Qwen3 block. Letters: N tokens, H heads, G key/value heads, C head size.
How attention reaches other tokens (a packed row, a cache) is an argument: see `anyxform.attention`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, each ``[..., N, 1, C]``: those of all pairs twice, the first time the sines with a minus."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries ``[..., N, H, C]``, keys and values ``[..., N, G, C]`` to outputs ``[..., N, H, C]``."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), in the dtype of its input."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if _is_small(x):
            return _small_rms_norm(x, self.weight, self.eps)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            if not torch.is_grad_enabled():
                return _normalise(x, self.weight, self.eps)[0]
            return _Normalised.apply(x, self.weight, self.eps)  # type: ignore[return-value]
        # a weight of another dtype than x leaves the fused kernel
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


SMALL = 2**14
"""Numbers up to which, on CPUs, calls of operators take longer than what they compute."""


def _is_small(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # a graph is for all sizes, and asks for none
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() <= SMALL


def _small_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in fewer calls: torch has no kernel for it on CPUs, but one for sums of squares."""
    rows = x.reshape(-1, 1, x.shape[-1])
    scale = (rows @ rows.mT).div_(x.shape[-1]).add_(eps).rsqrt_()
    return (rows * scale * weight).view(x.shape)


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same on CPUs, where torch has no kernel for it, in fewer passes, in fp32 inside; and by what was scaled."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x.to(precise) * scale).mul_(weight).to(x.dtype), scale  # a product of two dtypes would be slow


class _Normalised(torch.autograd.Function):
    """`_normalise` with a backward in fewer passes too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        shape, size, scale = x.shape, x.shape[-1], scale.flatten()
        gradient, rows = (it.reshape(-1, size).to(scale.dtype) for it in (gradients[0], x))
        weight_here, product = weight.to(scale.dtype), gradient * rows
        along = (product @ weight_here) * scale**3 / size  # of the gradient, what would only change the length
        to_x = (gradient * weight_here).mul_(scale[:, None]).addcmul_(rows, along[:, None], value=-1)
        return to_x.view(shape).to(x.dtype), (scale @ product).to(weight.dtype), None


def rope(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Rotary angles (arXiv 2104.09864) of positions ``[..., N, A]``: frequency i turns with axis i mod A.

    Interleaving gives each axis both slow and fast frequencies; equal axes give the ordinary one-axis rotation.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    axis = torch.arange(head_dim // 2, device=positions.device) % positions.shape[-1]
    angles = positions[..., axis].float() * theta**-exponents  # [..., N, C/2]
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn queries or keys ``[..., N, H, C]`` by their positions' angles."""
    cos, sin = (part.to(x.dtype) for part in rope)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class Linear(nn.Linear):
    """A linear layer without bias: of ``[..., I]``, ``[..., O]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if compiled_for(x, SUMMED):
            return summed_products(x, self.weight)
        return F.linear(x, self.weight)


SUMMED = 4
"""Tokens up to which, on CPUs, the compiler's own loop over weights is faster than a library's product of matrices: of
one token a step is then half as long (docs/speed.md)."""


def compiled_for(x: Tensor, most: int) -> bool:
    """Whether this is being compiled, for a CPU and `most` tokens at most."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or x.device.type != "cpu":
        return False
    return x.numel() <= most * x.shape[-1]


def summed_products(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``, in fp32 inside, for a compiler that makes one loop of it."""
    return (computed_once(x.float()).unsqueeze(-2) * weight.float()).sum(-1).to(x.dtype)


def computed_once(x: Tensor) -> Tensor:
    """The same numbers, for a compiler that would else compute them anew for each that reads them."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())  # for which it has to be in memory


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys: mixed modalities diverge without (arXiv 2405.09818).

    Without `qk_norm` it is that of a Llama.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        norm_eps: float = 1e-6,
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        self.head_dim = head_dim
        self.qkv = Linear(dim, sum(self.sizes))
        self.q_norm = RMSNorm(head_dim, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, norm_eps) if qk_norm else nn.Identity()
        self.out = Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        return self.out(attend(*self.project(x, rope)).flatten(-2))

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[..., N, H, C]`` and keys, normalised and turned, and values ``[..., N, G, C]``."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv(x).split(self.sizes, dim=-1))
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v


class SwiGLU(nn.Module):
    """Gated MLP without biases (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm residual block.

    Where it `recomputes`, it keeps its input alone for the backward pass and computes all else anew: less memory, more
    time.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        hidden_dim: int,
        norm_eps: float,
        dropout: float,
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, norm_eps)
        self.attention = Attention(dim, num_heads, num_kv_heads, head_dim, norm_eps, qk_norm)
        self.norm2 = RMSNorm(dim, norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.recomputes = False
        self.compiled: Any = None  # see `anyxform.model.compile_blocks`

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        packed = x.ndim == 2  # of one size; what is generated comes in ever others
        run = self.compiled if packed and self.compiled is not None else self._forward
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(run, x, rope, attend, use_reentrant=False)
        return run(x, rope, attend)

    def _forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), rope, attend))
        return x + self.dropout(self.mlp(self.norm2(x)))
