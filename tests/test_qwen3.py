"""With text alone the stack is a Qwen3: logits equal those of transformers, an independent reference."""

from itertools import pairwise

import pytest
import torch

from anyxform.cache import advance, prefill
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.layers import Block
from anyxform.model import Transformer
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import Example, Target, marker, pack, to_axes
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
        modalities={"text": text}, conditions=[marker("text")], dim=DIM, depth=DEPTH, num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, hidden_dim=HIDDEN, rope_theta=THETA, tie_embeddings=False,
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


def begin_with(model, reference, token):
    """Make the marker, the one token of our prefix, the reference's first token."""
    model.condition_embedding.weight[0] = reference.model.embed_tokens.weight[token]


@torch.no_grad()
def test_cached_logits_equal_qwen3(both):
    """A prompt as target tokens, all at once into the cache, then more one by one; the marker is its first token."""
    model, reference, text = both
    codes = torch.randint(text.vocab_size, (17,), generator=torch.Generator().manual_seed(2))
    begin_with(model, reference, codes[0])
    empty = torch.zeros(0, dtype=torch.long)
    example = Example("key", ">text", (), (marker("text"),), language_modelling(empty, text).target)
    head, offsets = model.targets["text"], to_axes(text.code_positions(16))
    cache = prefill(model, [example], room=16)
    parts = [cache.marker[None]]
    cuts = [0, 6, *range(7, 17)]
    for start, stop in pairwise(cuts):
        sees = torch.ones(stop - start, stop, dtype=torch.bool).tril(diagonal=start)[None]
        x = head.embed(codes[1 + start : 1 + stop, None])[None]
        parts.append(advance(model, cache, x, offsets[start:stop], start, sees))
    ours = head.logits(torch.cat(parts, dim=1))[0, :, 0]
    torch.testing.assert_close(ours, reference(codes[None]).logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 4])
@torch.no_grad()
def test_generated_text_equals_qwen3(both, num_beams):
    """Greedy and by beams the answers of transformers' `generate`; the marker is the first token of its prompt."""
    model, reference, text = both
    lengths = []
    for token in range(0, text.vocab_size, 3):
        begin_with(model, reference, token)
        (answer,) = generate(model, {"text": text}, [Request((), Field("text"))], Sampling(num_beams=num_beams))
        theirs = reference.generate(
            torch.tensor([[token]]), do_sample=False, num_beams=num_beams, min_new_tokens=1,
            max_new_tokens=text.max_length, eos_token_id=text.vocab_size, pad_token_id=text.vocab_size,
            early_stopping="never",
        )[0, 1:]  # fmt: skip
        assert answer.codes[:, 0].tolist() == [code for code in theirs.tolist() if code != text.vocab_size]
        lengths.append(len(answer.codes))
    assert min(lengths) < text.max_length  # some end
