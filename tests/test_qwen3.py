"""With text alone the stack is a Qwen3: logits equal those of transformers, an independent reference."""

import pytest
import torch

from anyxform.layers import Block
from anyxform.model import Transformer
from anyxform.sequence import Example, Target, pack
from tests.toy import ToyText

transformers = pytest.importorskip("transformers")

DIM, DEPTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, THETA = 48, 3, 4, 2, 16, 80, 1e6


def copy_block(block: Block, layer: torch.nn.Module) -> None:
    attention = layer.self_attn
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    pairs = [
        (block.attention.qkv.weight, torch.cat(projections)),
        (block.attention.q_norm.weight, attention.q_norm.weight),
        (block.attention.k_norm.weight, attention.k_norm.weight),
        (block.attention.out.weight, attention.o_proj.weight),
        (block.mlp.gate_up.weight, torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])),
        (block.mlp.down.weight, layer.mlp.down_proj.weight),
        (block.norm1.weight, layer.input_layernorm.weight),
        (block.norm2.weight, layer.post_attention_layernorm.weight),
    ]
    for ours, theirs in pairs:
        ours.copy_(theirs)


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    text = ToyText()
    config = transformers.Qwen3Config(
        vocab_size=text.vocab_size + 1, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"}, tie_word_embeddings=False,
    )  # fmt: skip
    reference = transformers.Qwen3ForCausalLM(config).eval()
    for parameter in reference.parameters():  # norms of all ones would hide a norm that is left out
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = Transformer(
        modalities={"text": text}, conditions=[], dim=DIM, depth=DEPTH, num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM, hidden_dim=HIDDEN, rope_theta=THETA, tie_embeddings=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for block, layer in zip(model.blocks, reference.model.layers, strict=True):
            copy_block(block, layer)
        model.norm.weight.copy_(reference.model.norm.weight)
        model.targets["text"].embedding[0].copy_(reference.model.embed_tokens.weight)
        model.targets["text"].head[0].copy_(reference.lm_head.weight)
    return model, reference, text


def language_modelling(codes: torch.Tensor, text: ToyText) -> Example:
    target = Target("text", codes[:, None], torch.arange(len(codes))[:, None], text.vocab_size, fixed_length=False)
    return Example("key", "text>text", (), (), target)


@torch.no_grad()
def test_text_logits_equal_qwen3(both):
    model, reference, text = both
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(text.vocab_size, (n,), generator=generator) for n in (7, 1, 19)]
    batch = pack([language_modelling(codes, text) for codes in texts], model.condition_ids)
    ours = model(batch)["text"][:, 0]
    theirs = torch.cat([reference(codes[None]).logits[0] for codes in texts])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.abs().max() > 0.5  # not equal for being nothing
