"""Drawing follows the softmax; each option does what it says, or is refused by name."""

import math
from typing import get_type_hints

import pytest
import torch

from anyxform.sampling import Options, Sampling, draw, log_probability, permitted, repeats, truncate, uniforms

LOGITS = torch.tensor([0.3, -1.2, 1.5, 0.0, -3.0, 0.9])
NEARLY_ONE = 1 - 2**-24  # the largest that torch.rand gives


def drawn(logits, temperature, count=20_000, **options):
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    return draw(logits.expand(count, -1), temperature, Sampling(**options), uniform)


def distance(codes, probabilities):
    """The chi-square statistic of draws under what was to be expected."""
    expected = probabilities * len(codes)
    return float(((codes.bincount(minlength=len(probabilities)) - expected).square() / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_distributed_as_the_softmax(temperature):
    codes = drawn(LOGITS, temperature)
    assert distance(codes, (LOGITS / temperature).softmax(dim=0)) < 20.5  # 99.9 % of chi-square with 5 degrees
    assert distance(codes, (LOGITS / (1.1 * temperature)).softmax(dim=0)) > 20.5


def test_temperature_0_takes_the_likeliest():
    assert set(drawn(LOGITS, 0.0, count=50).tolist()) == {2}


@pytest.mark.parametrize("uniform", [0.0, NEARLY_ONE])
def test_what_has_no_probability_is_never_drawn(uniform):
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -math.inf])
    assert int(draw(logits, 1.0, Sampling(), torch.tensor(uniform))) == (1 if uniform == 0 else 3)


def test_top_k_leaves_the_k_likeliest():
    assert set(drawn(LOGITS, 1.0, top_k=3).tolist()) == {0, 2, 5}
    assert set(drawn(LOGITS, 1.0, top_k=1).tolist()) == {2}
    assert set(drawn(LOGITS, 1.0, top_k=100).tolist()) == set(range(6))
    assert truncate(torch.zeros(5), 2, 1.0).isfinite().sum() == 2  # however many are equally likely


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.01, {2}), (0.49, {2}), (0.51, {0, 2}), (0.85, {0, 2, 3}), (0.99, {0, 1, 2, 3})]
)
def test_top_p_leaves_the_fewest_that_reach_it(top_p, left):
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    assert set(truncate(logits, 0, top_p).isfinite().nonzero().flatten().tolist()) == left


def test_top_p_counts_what_top_k_leaves():
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    assert truncate(logits, 2, 0.6).isfinite().tolist() == [False, False, True, False]  # 0.5 of 0.8 is 0.625
    assert truncate(logits, 2, 0.7).isfinite().tolist() == [True, False, True, False]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeats_are_the_codes_that_would_end_a_run_a_second_time(size):
    codes = torch.randint(4, (30, 2, 9), generator=torch.Generator().manual_seed(0))
    forbidden = repeats(codes, size, 4)
    assert forbidden.any()
    for sequence, row in zip(codes.flatten(0, 1).tolist(), forbidden.flatten(0, 1).tolist()):
        runs = {tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1)}
        expected = [(*sequence[len(sequence) - size + 1 :], code) in runs for code in range(4)]
        assert row == ([False] * 4 if all(expected) else expected)


def test_nothing_repeats_where_there_is_no_run_yet():
    assert not repeats(torch.zeros(2, 1, 2, dtype=torch.long), 3, 4).any()
    assert not repeats(torch.zeros(2, 1, 5, dtype=torch.long), 0, 4).any()


def test_what_may_not_follow_has_no_probability():
    codes = torch.tensor([[[0, 2], [1, 2]]])  # two tokens of two codes
    logits = permitted(torch.zeros(1, 2, 4), codes, no_repeat=1, never_ends=True)
    assert logits.isfinite().tolist() == [[[False, False, True, False], [True, True, False, False]]]
    assert permitted(torch.zeros(1, 2, 4), codes, no_repeat=0, never_ends=False).isfinite().all()


def test_log_probabilities_are_those_of_the_chosen():
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    expected = torch.stack([LOGITS.softmax(dim=0)[2], LOGITS.softmax(dim=0)[5]]).log()
    torch.testing.assert_close(log_probability(logits, torch.tensor([2, 0])), expected)


def test_a_request_draws_the_same_numbers_in_any_batch():
    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = uniforms(seeded(5, 6), [2, 4], 4, columns=3)
    assert both.shape == (2, 4, 3)
    assert torch.equal(both[0, :2], uniforms(seeded(5), [2], 2, columns=3)[0])
    assert torch.equal(both[1], uniforms(seeded(6), [4], 4, columns=3)[0])
    assert not both[0, 2:].any()


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": -0.1}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0},
        {"top_p": 1.1}, {"no_repeat": -1}, {"num_beams": 0}, {"length_penalty": -1}, {"steps": 0}, {"length": 0},
        {"choice_temperature": -1}, {"guidance": -1}, {"decoding": "diffusion"}, {"num_beams": 2, "temperature": 1.0},
        {"schedule": "sine"}, {"schedule": None},
        {"num_beams": 2, "guidance": 3.0}, {"num_beams": 2, "decoding": "masked"}, {"draft": -1}, {"draft_layers": 0},
        {"effort": -0.1}, {"effort": 1.1}, {"effort": math.nan}, {"draft": 2, "decoding": "masked"},
        {"draft": 2, "effort": 0.5}, {"align_weight": 1.1}, {"align_weight": 0.5, "temperature": 1.0},
        {"align_weight": 0.5, "length": 3}, {"align_weight": 1, "effort": 0.5},
        {"num_beams": 2, "draft": 2}, {"num_beams": 2, "effort": 0.5},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"^{name}={value!r} "):
        Sampling(**option)


def test_each_way_of_decoding_has_defaults_of_its_own():
    assert (Sampling().temperature_for("autoregressive"), Sampling().temperature_for("masked")) == (0.0, 0.5)
    assert (Sampling().guidance_for("autoregressive"), Sampling().guidance_for("masked")) == (1.0, 1.5)
    assert Sampling(temperature=0).temperature_for("masked") == 0
    assert Sampling(guidance=0).guidance_for("masked") == 0
    Sampling(num_beams=3, temperature=0, guidance=1.0)  # said aloud, what beams need anyway


def test_keywords_are_those_of_the_options():
    """So that editors and type checkers know them."""
    known = get_type_hints(Sampling)
    assert get_type_hints(Options) == {name: known[name] for name in Sampling.__dataclass_fields__}
