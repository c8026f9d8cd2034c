"""Likelihoods equal what a forward of each answer alone says."""

import pytest
import torch

from anyxform import likelihood as module
from anyxform.generate import generate
from anyxform.likelihood import likelihoods
from tests.toy import toys
from tests.toy_generation import decided_model, full_logits, toy_request, toy_requests


@pytest.fixture(scope="module")
def model():
    return decided_model()


def test_left_to_right_it_is_that_of_every_token_and_of_the_end(model):
    requests = [it for it in toy_requests() if it.target.modality == "text"]
    codes = [torch.randint(27, (3 + number, 1)) for number in range(len(requests))]
    for request, answer, value in zip(requests, codes, likelihoods(model, toys(), requests, codes)):
        logits = full_logits(model, request, answer, causal=True)[:, 0]
        labels = torch.cat([answer[:, 0], torch.tensor([27])])
        assert value == pytest.approx(float(logits.log_softmax(dim=-1)[range(len(labels)), labels].sum()), abs=1e-3)


def test_masked_it_counts_what_is_hidden_for_all_tokens(model):
    request = toy_request(["text"], "sound", 3)
    codes = torch.randint(8, (5, 2), generator=torch.Generator().manual_seed(0))
    logits = full_logits(model, request, torch.full((5, 2), 8), causal=False)[1:]
    expected = logits.log_softmax(dim=-1).gather(2, codes[..., None]).sum()
    (value,) = likelihoods(model, toys(), [request], [codes], views=1)  # one view hides all of it
    assert value == pytest.approx(float(expected), abs=1e-3)


def test_a_row_changes_nothing(model, monkeypatch):
    requests = [it for it in toy_requests() if it.sources]
    codes = [answer.codes for answer in generate(model, toys(), requests)]
    together = likelihoods(model, toys(), requests, codes)
    assert len(set(together)) == len(requests)
    monkeypatch.setattr(module, "TOKENS", 1)
    assert likelihoods(model, toys(), requests, codes) == pytest.approx(together, abs=1e-3)
    assert likelihoods(model, toys(), [], []) == []


def test_either_way_of_decoding_can_be_asked_for(model):
    request = toy_request(["text"], "image", 1)
    codes = torch.arange(6)[:, None]
    logits = full_logits(model, request, codes, causal=True)[:-1]
    expected = float(logits.log_softmax(dim=-1).gather(2, codes[..., None]).sum())
    (value,) = likelihoods(model, toys(), [request], [codes], decoding="autoregressive")
    assert value == pytest.approx(expected, abs=1e-3)
