from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn

from anyxform.loss import batch_loss
from anyxform.optim import EMA, Muon, clip_gradients, learning_rate, muon, parameter_groups
from tests.toy_training import toy_model, toy_row


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, kept = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert len(kept["params"]) == 3
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_schedules():
    for schedule in ("cosine", "wsd"):
        rates = [learning_rate(step, steps=100, warmup=10, schedule=schedule, final=0.1) for step in range(101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[9] == 1.0
        assert rates[100] == pytest.approx(0.1)
        assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(79, steps=100, warmup=10, schedule="wsd", decay=0.2) == 1.0
    assert learning_rate(50, steps=100, warmup=0, schedule="cosine", final=0.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="cosine, wsd or constant"):
        learning_rate(0, steps=1, schedule="linear")


def test_the_average_follows_the_weights():
    model = nn.Linear(2, 2, bias=False)
    ema = EMA(model, decay=0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    ema.update(model, step=10**6)
    torch.testing.assert_close(ema.weights["weight"], start + 0.1)


def test_clipping_reports_the_norm_before():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-4)


def test_together_saves_and_loads_as_one():
    model, other = toy_model(), toy_model()
    optimizers = [muon(it, lr=1e-2) for it in (model, other)]

    def step(it, optimizer, number):
        loss, _ = batch_loss(it, toy_row(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step(model, optimizers[0], 0) for _ in range(5)]
    assert losses[-1] < losses[0]
    other.load_state_dict(model.state_dict())
    saved = optimizers[0].state_dict()
    optimizers[1].load_state_dict(deepcopy(saved))  # torch does not copy the tensors
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    assert sorted(numbers) == list(range(len(list(model.parameters()))))
    for it, optimizer in zip((model, other), optimizers):
        step(it, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_muon_of_all_matrices_at_once_is_that_of_torch_one_by_one():
    chance = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16), (8, 24)]
    mine, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, reference = Muon(mine, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(4):
        for number, (one, other) in enumerate(zip(mine, theirs)):
            one.grad = None if number == 4 else torch.randn(shapes[number], generator=chance)
            other.grad = None if number == 4 else one.grad.clone()
        ours.step()
        reference.step()
    for one, other in zip(mine, theirs):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)  # steps of 0.1 · 0.2 · √24, computed in bf16
    assert torch.equal(mine[4], torch.ones(shapes[4]))
    state, expected = ours.state_dict(), reference.state_dict()
    assert state["state"].keys() == expected["state"].keys() and state["param_groups"] == expected["param_groups"]
    for number, kept in expected["state"].items():
        torch.testing.assert_close(state["state"][number], kept)


def test_muon_takes_the_matrices_of_the_blocks():
    model = toy_model()
    first, *rest = muon(model).param_groups
    assert {id(p) for p in first["params"]} == {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    assert sum(len(group["params"]) for group in (first, *rest)) == len(list(model.parameters()))
