"""Drafts change how an answer is found, never the answer: token for token at temperature 0, in distribution else."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch

from anyxform.generate import generate
from anyxform.refine import generate_refined
from anyxform.sampling import Sampling
from anyxform.speculative import verified
from tests.toy import toys
from tests.toy_generation import decided_model, full_logits, toy_request, toy_requests

PLAIN = Sampling(decoding="autoregressive", temperature=0)


def with_parts_kept():
    """Requests of which a part is given: what lies between is made, behind it, or what comes first is limited."""
    known = torch.tensor([[3], [4], [0], [6], [1]])
    first = torch.arange(27) % 5 == 0
    between, behind = torch.tensor([1, 1, 0, 0, 1]).bool(), torch.tensor([1, 1, 1, 1, 0]).bool()
    texts = [toy_request(["image"], "text", seed) for seed in range(3)]
    return [
        replace(texts[0], known=known, keep=between),
        replace(texts[1], known=known, keep=behind),
        replace(texts[2], known=known[:3], keep=behind[2:], first=first),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_drafts_give_what_plain_decoding_gives(seed):
    """Random models and prompts, in every kind of modality; some drafts are accepted, and some are not."""
    model = decided_model(seed=seed, depth=4)
    requests = [*toy_requests()[seed % 2 :: 2], *with_parts_kept()]
    drafted = accepted = 0
    for number, (draft, layers) in enumerate([(1, 1), (2, None), (3, 3), (9, 2)]):
        options = replace(PLAIN, guidance=(1.0, 2.0)[number % 2], no_repeat=(0, 3)[number // 2])
        plain = generate(model, toys(), requests, options)
        found = generate(model, toys(), requests, replace(options, draft=draft, draft_layers=layers))
        assert [it.codes.tolist() for it in found] == [it.codes.tolist() for it in plain]
        assert [it.logprob for it in found] == pytest.approx([it.logprob for it in plain], abs=1e-3)
        drafted, accepted = drafted + sum(it.drafted for it in found), accepted + sum(it.accepted for it in found)
    assert 30 < accepted < 0.9 * drafted


@torch.no_grad()
def test_drafts_of_a_model_whose_later_layers_say_nothing_are_all_accepted():
    """The bonus token makes every round one longer than its drafts."""
    model, request = decided_model(depth=4), toy_request(["image"], "text")
    for block in model.blocks[2:]:
        block.attention.out.weight.zero_(), block.mlp.down.weight.zero_()
    (found,) = generate(model, toys(), [request], Sampling(length=21, draft=4, draft_layers=2))
    assert (found.drafted, found.accepted) == (16, 16)  # 1 from the prefix, then 4 rounds of 4 and 1


P = torch.tensor([[0.40, 0.05, 0.30, 0.25, 0.0], [0.1, 0.2, 0.3, 0.2, 0.2]])
Q = torch.tensor([[0.10, 0.50, 0.30, 0.00, 0.1], [0.3, 0.1, 0.1, 0.1, 0.4]])


def distance(codes, probabilities):
    """The chi-square statistic of draws under what was to be expected; infinite if the impossible was drawn."""
    expected = probabilities * len(codes)
    difference = (codes.bincount(minlength=len(probabilities)) - expected).square()
    return float(torch.where(difference > 0, difference / expected, 0.0).sum())


def test_what_is_verified_is_distributed_as_if_it_had_not_been_drafted():
    chance = torch.Generator().manual_seed(0)
    drafts = torch.stack([torch.multinomial(q, 20_000, True, generator=chance) for q in Q], dim=1)
    codes = torch.stack([verified(P, Q, it, torch.rand(2, 2, generator=chance)) for it in drafts])
    for k in range(2):
        assert distance(codes[:, k], P[k]) < 18.5  # 99.9 % of chi-square with 4 degrees
        assert distance(drafts[:, k], P[k]) > 1000  # as they would be if all were accepted
    kept = (codes == drafts).float().mean(dim=0)
    torch.testing.assert_close(kept, torch.minimum(P, Q).sum(dim=1), rtol=0, atol=0.02)


def test_equal_distributions_always_agree():
    for draft in range(4):
        codes = torch.tensor([draft, draft])
        assert torch.equal(verified(P, P, codes, torch.full((2, 2), 1 - 2**-24)), codes)


def test_sampled_answers_are_distributed_as_without_drafts():
    """Whole sequences of three tokens, against their probabilities by the full forward."""
    model, request = decided_model(seed=3, depth=3), toy_request(["text"], "sound")
    options = Sampling(decoding="autoregressive", temperature=3.0, top_k=2, length=2)
    expected, count = {}, 600

    def choices(codes):
        """The two likeliest codes of each codebook of the next token, and their probabilities."""
        likeliest = (full_logits(model, request, codes, causal=True)[-1, :, :-1] / 3.0).topk(2, dim=-1)
        for places in product(range(2), repeat=2):
            picked = [(likeliest.indices[k, i], likeliest.values.softmax(dim=-1)[k, i]) for k, i in enumerate(places)]
            yield torch.stack([code for code, _ in picked]), math.prod(float(p) for _, p in picked)

    for first, p in choices(torch.zeros(0, 2, dtype=torch.long)):
        for second, q in choices(first[None]):
            expected[tuple(torch.cat([first, second]).tolist())] = p * q
    found = generate(model, toys(), [request] * count, replace(options, draft=2, draft_layers=1))
    counted = Counter(tuple(it.codes.flatten().tolist()) for it in found)
    assert counted.keys() <= expected.keys() and len(expected) == 16 and sum(expected.values()) == pytest.approx(1)
    assert 0.1 < sum(it.accepted for it in found) / sum(it.drafted for it in found) < 0.95
    assert sum((counted[it] - count * p) ** 2 / (count * p) for it, p in expected.items()) < 37.7  # 99.9 %, 15 degrees


def test_the_seed_decides_and_a_batch_changes_nothing():
    model, requests = decided_model(depth=3), toy_requests()[:1] * 4
    options = Sampling(temperature=1.0, draft=3, seed=5)
    first, again = (
        [it.codes.tolist() for it in generate(model, toys(), requests, options, batch_size=n)] for n in (64, 1)
    )
    (alone,) = generate(model, toys(), requests[:1], replace(options, seed=7))
    assert first == again and alone.codes.tolist() == first[2] and len({str(it) for it in first}) > 1


def test_refining_drafts_nothing():
    """It redoes tokens by masking, which goes not from left to right."""
    model, requests = decided_model(depth=3), toy_requests()[:1]
    plain, found = (generate_refined(model, toys(), requests, Sampling(refine=1, draft=draft))[0] for draft in (0, 2))
    assert torch.equal(plain.codes, found.codes)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("image", {"draft": 2}, "draft=2 is not possible: image is not decoded from left to right"),
        ("text", {"draft": 2, "draft_layers": 2}, "draft_layers=2 is not possible: the model has 2 layers"),
    ],
)
def test_what_cannot_be_drafted(target, options, message):
    with pytest.raises(ValueError, match=message):
        generate(decided_model(), toys(), [toy_request(["text"], target)], Sampling(**options))
