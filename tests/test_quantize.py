"""Weights for answering: int8 stays close to fp32, fp32 laid out anew is the same, and what cannot be is refused."""

import copy

import pytest
import torch

import anyxform
from anyxform.generate import generate
from anyxform.quantize import FEW, Int8Linear, by_columns, prepare
from anyxform.sampling import Sampling
from tests.toy import toys
from tests.toy_generation import decided_model, full_logits, toy_requests


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def weight():
    return torch.randn(37, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 37)[:, None]


@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_layer_is_close_to_the_layer(weight, tokens, dtype):
    """Each output, however small its weights are, by the kernel for few tokens and by the other."""
    x = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(1))
    found = Int8Linear(weight)(x.to(dtype))
    assert found.dtype == dtype and found.shape == (2, tokens, 37)
    error, scale = (found.float() - x @ weight.T).abs(), x.norm(dim=-1, keepdim=True) * weight.norm(dim=1)
    assert 0 < float((error / scale).max()) < 0.01


def test_each_weight_is_at_most_half_a_step_away(weight):
    layer = Int8Linear(weight)
    error = (layer.weight.float() * layer.scale.float()[:, None] - weight).abs()
    assert bool((error <= 0.501 * layer.scale.float()[:, None]).all())
    assert layer.weight.dtype == torch.int8 and bool((layer.weight.amax(dim=1).abs() <= 127).all())


def test_a_layer_of_zeros_gives_zeros():
    assert not Int8Linear(torch.zeros(4, 32))(torch.randn(3, 32)).any()


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-5), ("bf16", 0.05), ("int8", 0.05)])
def test_logits_stay_close(dtype, most):
    model = decided_model()
    prepared = prepare(copy.deepcopy(model), dtype)
    for request in toy_requests():
        name = request.target.modality
        codes = torch.zeros(4, toys()[name].num_codebooks, dtype=torch.long)
        expected = full_logits(model, request, codes, causal=True)
        assert relative(full_logits(prepared, request, codes, causal=True), expected) < most


def test_fp32_is_laid_out_by_columns_where_there_are_more_outputs():
    model = decided_model()
    prepared = prepare(copy.deepcopy(model), "fp32")
    for name, expected in model.state_dict().items():
        assert torch.equal(prepared.state_dict()[name], expected)
    attention, mlp = prepared.blocks[0].attention, prepared.blocks[0].mlp
    assert attention.qkv.weight.stride(0) == mlp.gate_up.weight.stride(0) == 1
    assert mlp.down.weight.stride(1) == 1
    assert by_columns(torch.randn(3, 5)).stride() == (5, 1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_every_way_of_decoding_works(dtype):
    model = prepare(decided_model(), dtype)
    for options in ({"temperature": 1.0}, {"decoding": "masked"}, {"decoding": "autoregressive", "guidance": 2.0}):
        answers = generate(model, toys(), toy_requests(), Sampling(**options), batch_size=3)
        assert all(len(it.codes) >= 1 for it in answers)


def test_int8_takes_a_quarter():
    def size(model):
        return sum(it.numel() * it.element_size() for it in [*model.blocks.parameters(), *model.blocks.buffers()])

    model = decided_model()
    before = size(model)
    assert size(prepare(model, "int8")) < 0.35 * before  # norms are small, and so is this model


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        ("int4", "cpu", "dtype='int4' is not possible: give fp32, bf16, int8"),
        ("fp16", "cpu", "dtype='fp16' is not possible: it is slow on CPUs, and large activations overflow: give bf16"),
        ("int8", "meta", "dtype=int8 is for CPUs, not for meta: give bf16, or the device cpu"),
    ],
)
def test_what_is_not_possible(dtype, device, message):
    with pytest.raises(ValueError, match=message):
        prepare(decided_model().to(device), dtype)


def test_a_width_that_the_kernel_would_read_beyond_is_refused():
    with pytest.raises(ValueError, match="int8 is not possible: a layer has 24 inputs, which is no multiple of 16"):
        prepare(decided_model(dim=24), "int8")


def test_a_checkpoint_answers_in_each(checkpoint):
    given = {"en": "a red disc", "fr": "un disque rouge"}
    for dtype in ("fp32", "bf16", "int8"):
        ax = anyxform.load(str(checkpoint), device="cpu", dtype=dtype)
        assert all(isinstance(ax(text, to=f"text:{code}"), str) for code, text in given.items())
    with pytest.raises(ValueError, match="dtype='fp16' is not possible"):
        anyxform.load(str(checkpoint), dtype="fp16")
