"""Refinement: the least certain tokens of a draft are redone, and taken only where the whole gets likelier."""

from dataclasses import replace

import pytest
import torch

from anyxform import refine as module
from anyxform.generate import generate
from anyxform.likelihood import likelihoods, token_likelihoods
from anyxform.refine import generate_refined
from anyxform.request import Generated
from anyxform.sampling import Sampling
from tests.toy import toys
from tests.toy_generation import decided_model, full_logits, toy_request, toy_requests

DRAFT = Sampling(temperature=1.5, seed=2)
TEXTS = [replace(toy_request(["image"], "text", seed), seed=seed) for seed in range(12)]


@pytest.fixture(scope="module")
def model():
    return decided_model()


def scores(model, answers):
    return likelihoods(model, toys(), TEXTS, [answer.codes for answer in answers], decoding="autoregressive")


def test_no_answer_gets_less_likely_and_some_get_likelier(model):
    drafts, refined = (
        generate(model, toys(), TEXTS, DRAFT),
        generate_refined(model, toys(), TEXTS, replace(DRAFT, refine=3)),
    )
    before, after = scores(model, drafts), scores(model, refined)
    assert (
        all(new >= old for new, old in zip(after, before))
        and sum(new > old + 1 for new, old in zip(after, before)) >= 2
    )
    assert [answer.logprob for answer in refined] == pytest.approx(after, abs=1e-3)
    assert [len(answer.codes) for answer in refined] == [len(draft.codes) for draft in drafts]


def test_the_least_certain_tokens_are_redone_and_no_others(model, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "generate", lambda *given, **more: asked.append(given[2]) or generate(*given, **more))
    generate_refined(model, toys(), TEXTS[:1], replace(DRAFT, refine=2))
    (draft, (first,), (second,)) = asked
    logits = full_logits(model, TEXTS[0], first.known, causal=True)[:-1, 0]
    certainty = logits.log_softmax(dim=-1).gather(1, first.known)[:, 0]
    assert draft == TEXTS[:1] and first.keep.sum() == len(first.keep) // 2
    assert certainty[first.keep].min() >= certainty[~first.keep].max()
    assert second.keep.sum() > first.keep.sum(), "each round hides fewer"


def test_what_a_request_keeps_stays(model):
    known = torch.tensor([[3], [4], [5], [0]])
    requests = [replace(it, known=known, keep=torch.tensor([True, False, True, False])) for it in TEXTS]
    for answer in generate_refined(model, toys(), requests, replace(DRAFT, refine=3)):
        assert answer.codes[[0, 2], 0].tolist() == [3, 5]


def test_masked_answers_and_no_rounds_are_left_alone(model):
    requests = toy_requests()
    for options in (Sampling(seed=3), Sampling(seed=3, refine=2)):
        for request, one, other in zip(
            requests, generate(model, toys(), requests, options), generate_refined(model, toys(), requests, options)
        ):
            if toys()[request.target.modality].decoding == "masked" or not options.refine:
                assert torch.equal(one.codes, other.codes) and isinstance(other, Generated)


def test_an_answer_without_tokens_is_left_alone(model, monkeypatch):
    """As of a source that spells nothing; those beside it are redone."""
    spelt = iter([torch.tensor([], dtype=torch.long), torch.tensor([3, 4, 5])])
    monkeypatch.setattr("anyxform.generate.likeliest", lambda log_p: (next(spelt), -2.0))
    nothing, more = generate_refined(model, toys(), TEXTS[:2], Sampling(align_weight=1, refine=2))
    assert (nothing.codes.shape, nothing.logprob) == ((0, 1), -2.0)
    (score,) = likelihoods(model, toys(), TEXTS[1:2], [more.codes])
    assert more.codes.shape == (3, 1) and more.logprob == pytest.approx(score, abs=1e-3)


def test_token_likelihoods_add_up(model):
    codes = [torch.randint(27, (5, 1), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    tokens = token_likelihoods(model, toys(), TEXTS[:3], codes)
    assert [len(it) for it in tokens] == [6] * 3
    assert [float(it.sum()) for it in tokens] == pytest.approx(likelihoods(model, toys(), TEXTS[:3], codes), abs=1e-3)


def test_effort_and_drafts_are_told_of_refined_answers(model):
    depth = len(model.blocks)
    options = replace(DRAFT, refine=2, effort=0.0)
    answers = generate_refined(model, toys(), TEXTS, options)
    assert all(len(it.layers) == len(it.codes) and (it.layers < depth).all() for it in answers)
    drafted = generate_refined(model, toys(), TEXTS, replace(DRAFT, refine=2, draft=2, draft_layers=1))
    assert sum(it.drafted for it in drafted) > 0
