"""On a CUDA device: the same as on the CPU, nothing compiled twice, no row waits for the device, and a step once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anyxform.compiled import CompiledStep
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.likelihood import likelihoods
from anyxform.loss import batch_loss
from anyxform.model import compile_blocks
from anyxform.optim import EMA, adamw, muon
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import pack
from anyxform.spelling import spelt
from anyxform.train import TrainState, fetch, train, train_step
from tests.toy import toys
from tests.toy_training import DIRECTIONS, toy_example, toy_model, toy_row, toy_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = toy_model().to(device)
        total, _ = batch_loss(model, toy_row(0).to(torch.device(device)))
        total.backward()
        gradients = {name: it.grad.cpu() for name, it in model.named_parameters() if it.grad is not None}
        found.append((total.detach().cpu(), gradients))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_compiled_blocks_have_the_losses_and_gradients_of_plain_ones() -> None:
    row, found = toy_row(0).to(torch.device("cuda")), []
    for compiles in (False, True):
        model = toy_model().cuda()
        if compiles:
            compile_blocks(model)
        total, _ = batch_loss(model, row)
        total.backward()
        found.append((total.detach(), {name: it.grad for name, it in model.named_parameters() if it.grad is not None}))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiles", [False, True])
def test_rows_of_one_size_are_compiled_once(compiles: bool) -> None:
    from torch._dynamo.utils import counters

    model = toy_model().cuda()
    if compiles:
        compile_blocks(model)
    optimizer, device = adamw(model), torch.device("cuda")
    train_step(model, optimizer, [toy_row(0).to(device)], bf16=True)
    before = counters["stats"]["unique_graphs"]
    for number in range(1, 6):
        assert not train_step(model, optimizer, [toy_row(number).to(device)], bf16=True)["skipped"]
    assert counters["stats"]["unique_graphs"] == before


def test_no_row_waits_for_the_device(no_waiting: None) -> None:
    model, device = toy_model().cuda(), torch.device("cuda")
    rows = [toy_row(number).to(device) for number in range(3)]
    for number, row in enumerate(rows):
        if number:  # the first compiles
            torch.cuda.set_sync_debug_mode("error")
        with torch.autocast("cuda", torch.bfloat16):
            total, _ = batch_loss(model, row)
        total.backward()


@pytest.mark.parametrize("make", [adamw, muon])
def test_a_step_waits_for_the_device_once(
    make: Callable[..., Any], no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows to the device, losses, gradients, update and average: where it reads what it decides by, not elsewhere."""
    model, fetched = toy_model().cuda(), []

    def allowed(numbers: Sequence[Tensor]) -> list[float]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        fetched.append(fetch(numbers))
        torch.cuda.set_sync_debug_mode(before)
        return fetched[-1]

    monkeypatch.setattr("anyxform.train.fetch", allowed)
    state = TrainState(model, make(model), EMA(model, 0.99))
    steps = train(state, toy_rows(), steps=5, lr=lambda step: 1e-3, rows_per_step=2, bf16=True)
    next(steps), next(steps)  # these compile
    torch.cuda.set_sync_debug_mode("error")
    assert [metrics["skipped"] for metrics in steps] == 3 * [False]
    assert len(fetched) == 5


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_what_is_generated_is_what_the_cpu_generates(decoding: str) -> None:
    modalities, generator = toys(), torch.Generator().manual_seed(0)
    examples = [toy_example(*pair, generator) for pair in DIRECTIONS]
    requests = [
        Request(it.sources, Field(it.target.modality))
        for it in examples
        if modalities[it.target.modality].decoding == decoding
    ]
    options = Sampling(temperature=0.0, seed=1)
    answers = [
        [it.codes.tolist() for it in generate(toy_model().to(device), modalities, requests, options)]
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == answers[1]


def test_a_compiled_step_answers_as_a_plain_one_does() -> None:
    """As CUDA graphs, over caches of several sizes, and again when they are replayed."""
    modalities, generator = toys(), torch.Generator().manual_seed(0)
    examples = [toy_example("image", "text", generator) for _ in range(5)]
    requests = [Request(it.sources, Field("text")) for it in examples]
    options, model = Sampling(temperature=0.0, seed=1), toy_model().to("cuda")
    expected = [it.codes.tolist() for it in generate(model, modalities, requests, options)]
    model.decode_step = CompiledStep(model)
    for _ in range(3):
        assert [it.codes.tolist() for it in generate(model, modalities, requests, options)] == expected


@pytest.mark.parametrize("align_weight", [0.0, 2.0])
def test_alignments_have_the_losses_and_gradients_of_the_cpu(align_weight: float) -> None:
    generator, found = torch.Generator().manual_seed(3), []
    examples = [replace(toy_example("sound", "text", generator), aligned=True) for _ in range(7)]
    for device in ("cpu", "cuda"):
        model = toy_model().to(device)
        row = pack(examples, model.condition_ids, 256).to(torch.device(device))
        total, _ = batch_loss(model, row, align_weight=align_weight)
        total.backward()
        gradients = {name: it.grad.cpu() for name, it in model.named_parameters() if it.grad is not None}
        found.append((total.detach().cpu(), gradients))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_rows_of_any_length_are_scored_and_spelt_by_few_kernels() -> None:
    """As the CPU scores and spells them, though each call has another number of tokens."""
    from torch._dynamo.utils import counters

    modalities, generator = toys(), torch.Generator().manual_seed(0)
    examples = [toy_example("sound", "text", generator) for _ in range(12)]
    requests, codes = [Request(it.sources, Field("text")) for it in examples], [it.target.codes for it in examples]
    found = []
    for device in ("cpu", "cuda"):
        model, before = toy_model().to(device).eval(), counters["stats"]["unique_graphs"]
        scores = [likelihoods(model, modalities, requests[:count], codes[:count]) for count in range(1, 13)]
        spellings = [[*spelt(model, modalities, requests[:count])] for count in range(1, 13)]
        assert counters["stats"]["unique_graphs"] - before <= 4
        found.append((scores, spellings))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
