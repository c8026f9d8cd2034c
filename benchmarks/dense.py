"""A training step of text alone, all sequences of one length, against transformers and x-transformers.

    python -m benchmarks.dense [preset]

Language models of equal dimensions (x-transformers' lacks nothing of ours but the multi-axis positions), AdamW, one
thread, in fp32 and in bf16 autocast. Nothing can be gained here by packing: this is the stack alone. Last, the share of
this machine's matrix products that our step reaches, by the operations that `anyxform plan` counts.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyxform.estimate import estimate
from anyxform.model import PRESETS, Transformer
from anyxform.optim import adamw
from anyxform.sequence import Example, Target, marker, pack
from anyxform.train import train_step
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

SEQUENCES, LENGTH = 8, 512
PAIRS = 6


def qwen3(vocab_size: int, size: dict[str, int], hidden: int) -> nn.Module:
    """transformers' language model of the same block."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=size["dim"], intermediate_size=hidden, num_hidden_layers=size["depth"],
        num_attention_heads=size["num_heads"], num_key_value_heads=size["num_kv_heads"],
        head_dim=size["dim"] // size["num_heads"], tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def x_transformers(vocab_size: int, size: dict[str, int], hidden: int) -> nn.Module:
    """The same of x-transformers."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=size["dim"], depth=size["depth"], heads=size["num_heads"], attn_kv_heads=size["num_kv_heads"],
        attn_dim_head=size["dim"] // size["num_heads"], attn_flash=True, attn_qk_norm=True, rotary_pos_emb=True,
        rotary_emb_dim=size["dim"] // size["num_heads"], use_rmsnorm=True, ff_glu=True, ff_swish=True,
        ff_no_bias=True, ff_mult=hidden / size["dim"],
    )  # fmt: skip
    wrapped = TransformerWrapper(
        num_tokens=vocab_size, max_seq_len=LENGTH, attn_layers=layers, tie_embedding=True, use_abs_pos_emb=False
    )
    return AutoregressiveWrapper(wrapped)


def peer_step(model: nn.Module, loss: Callable[[Tensor], Tensor], ids: Tensor, bf16: bool) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = loss(ids)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return ids.numel()

    return step


def main(preset: str = "mini") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before, size = calibration(2048), PRESETS[preset]
    text = {"text": starter.modalities()["text"]}
    vocab_size, ids = text["text"].vocab_size, {marker("text"): 0}
    codes = torch.randint(vocab_size, (SEQUENCES, LENGTH))
    batch = pack([example(row, vocab_size) for row in codes], ids)
    results, shares, sizes = [], {}, {}
    for bf16 in (False, True):
        name = "bf16" if bf16 else "fp32"
        model = Transformer(modalities=text, conditions=list(ids), **size)  # type: ignore[arg-type]
        ours = our_step(model, batch, bf16)
        hidden = model.config()["hidden_dim"]
        peers: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
            "transformers": (qwen3(vocab_size + 1, size, hidden), lambda it, x: it(x, labels=x, use_cache=False).loss),
            "x-transformers": (x_transformers(vocab_size + 1, size, hidden), lambda it, x: it(x)),
        }
        for peer, (it, loss) in peers.items():
            sizes[peer] = sum(p.numel() for p in it.parameters())
            theirs = peer_step(it, lambda x, it=it, loss=loss: loss(it, x), codes, bf16)  # type: ignore[misc]
            results.append(compare(f"{preset}, {name}, {peer}", ours, theirs, unit="tokens/s", pairs=PAIRS))
        cost = estimate(model.config(), text, list(ids), [batch], bf16=bf16)
        shares[name] = (cost.forward + cost.backward) / seconds(ours) / 1e9 / before[f"{name}_gflops"]
        print(f"{name}: {shares[name]:.2f} of the matrix products of 2048²")
    sizes["ours"] = sum(p.numel() for p in model.blocks.parameters()) + vocab_size * size["dim"]
    report(results, before, preset=preset, share_of_peak=shares, parameters=sizes)


def example(codes: Tensor, vocab_size: int) -> Example:
    positions = torch.arange(len(codes))[:, None]
    return Example("text", "text>text", (), (), Target("text", codes[:, None], positions, vocab_size, False))


def our_step(model: Transformer, batch: Any, bf16: bool) -> Callable[[], float]:
    optimizer = adamw(model, lr=1e-4)

    def step() -> float:
        train_step(model, optimizer, [batch], bf16=bf16)
        return batch.num_tokens

    return step


def seconds(work: Callable[[], float], times: int = 5) -> float:
    """The shortest of some."""

    def one() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(one() for _ in range(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
