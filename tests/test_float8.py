"""Training in float8, as far as it can be seen without a GPU that has it."""

import pytest
import torch

from anyxform.float8 import to_float8
from anyxform.optim import adamw
from anyxform.train import train_step
from tests.toy_training import toy_model, toy_row


def test_it_trains_nearly_the_same_with_the_same_names() -> None:
    pytest.importorskip("torchao.float8")
    plain, model = toy_model(), toy_model()
    names = list(model.state_dict())
    to_float8(model, emulate=True)
    assert list(model.state_dict()) == names
    assert type(model.blocks[0].mlp.down).__name__ == "Float8Linear"
    losses = []
    for each in (plain, model):
        optimizer = adamw(each, lr=3e-3)
        losses.append([train_step(each, optimizer, [toy_row(0)])["loss"] for _ in range(5)])
    assert losses[0] != losses[1] and losses[1][-1] < losses[1][0]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0.02, atol=0)


def test_a_device_without_float8_is_refused() -> None:
    pytest.importorskip("torchao.float8")
    with pytest.raises(ValueError, match=r"train\.float8=true needs a GPU that multiplies in float8"):
        to_float8(toy_model())


def test_the_device_is_that_where_the_model_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is moved there part by part when it is divided among processes."""
    pytest.importorskip("torchao.float8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    to_float8(model := toy_model(), device=torch.device("cuda"))
    assert type(model.blocks[0].mlp.down).__name__ == "Float8Linear"
