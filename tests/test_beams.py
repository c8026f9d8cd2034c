"""With room for all sequences, beam search finds the best of them; with one beam, what greedy decoding finds."""

from itertools import product

import pytest
import torch

from anyxform import beams
from anyxform.cache import prefill
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import Source, to_axes
from tests.toy import ToyText, toys
from tests.toy_generation import decided_model, full_example, full_states, toy_request


class Tiny(ToyText):
    """Three codes, at most four tokens: 120 sequences."""

    vocab_size, max_length = 3, 4


TINY = {"text": Tiny()}
SEQUENCES = [codes for length in (1, 2, 3, 4) for codes in product(range(3), repeat=length)]
ENOUGH = 4 * 27  # candidates of the last token
SEEDS = range(12)


def tiny_model(seed):
    return decided_model(TINY, seed=seed)


def tiny_request(seed):
    values = torch.randint(3, (1 + seed % 4,), generator=torch.Generator().manual_seed(seed))
    return Request((Source("text", values, torch.arange(len(values))[:, None]),), Field("text", "fr"))


def every_sequence(model, request):
    """Each sequence's log-probability by the full forward, and how many choices it took; the end is one of them."""
    examples = [full_example(request, torch.tensor(codes)[:, None], causal=True) for codes in SEQUENCES]
    result = {}
    for codes, (prefix, target) in zip(SEQUENCES, full_states(model, examples)):
        logits = model.targets["text"].logits(torch.cat([prefix[-1:], target])).detach()[:, 0]
        logits[0, 3] = -torch.inf  # never empty
        ids = torch.tensor(codes if len(codes) == 4 else [*codes, 3])
        result[codes] = (float(logits[: len(ids)].log_softmax(dim=-1).gather(1, ids[:, None]).sum()), len(ids))
    return result


def found(model, request, **options):
    (answer,) = generate(model, TINY, [request], Sampling(**options))
    return tuple(answer.codes[:, 0].tolist()), answer.logprob


def best_of(sequences, length_penalty):
    return max(sequences, key=lambda codes: sequences[codes][0] / sequences[codes][1] ** length_penalty)


def test_the_probabilities_of_all_sequences_sum_to_one():
    """So that the enumeration that the others rely on is whole."""
    sequences = every_sequence(tiny_model(0), tiny_request(0))
    assert len(sequences) == 120
    assert sum(torch.tensor(log_p).exp() for log_p, _ in sequences.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 3.0])
def test_enough_beams_find_the_best_of_all(length_penalty):
    better_than_greedy = 0
    for seed in SEEDS:
        model, request = tiny_model(seed), tiny_request(seed)
        sequences = every_sequence(model, request)
        codes, log_p = found(model, request, num_beams=ENOUGH, length_penalty=length_penalty)
        assert codes == best_of(sequences, length_penalty)
        assert log_p == pytest.approx(sequences[codes][0], abs=1e-4)
        better_than_greedy += codes != found(model, request)[0]
    assert better_than_greedy > 0


def test_the_penalty_favours_length():
    lengths = [
        sum(len(found(tiny_model(seed), tiny_request(seed), num_beams=ENOUGH, length_penalty=it)[0]) for seed in SEEDS)
        for it in (0.0, 1.0, 3.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("num_beams", [2, 3])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_stopping_early_changes_nothing(num_beams, length_penalty, monkeypatch):
    options = {"num_beams": num_beams, "length_penalty": length_penalty}
    early = [found(tiny_model(seed), tiny_request(seed), **options) for seed in SEEDS]
    monkeypatch.setattr(beams._Beams, "_settled", lambda _: False)
    assert [found(tiny_model(seed), tiny_request(seed), **options) for seed in SEEDS] == early


def test_an_end_takes_no_beam_from_those_that_go_on(monkeypatch):
    rows, advance = [], beams.advance
    monkeypatch.setattr(
        beams, "advance", lambda model, cache, x, *rest: rows.append(len(x)) or advance(model, cache, x, *rest)
    )
    for seed in SEEDS:
        found(tiny_model(seed), tiny_request(seed), num_beams=3)
    assert set(rows) == {3}


def one_beam(model, modality, request):
    """A search with one beam, for the likeliest sequence without regard to its length."""
    offsets = to_axes(modality.code_positions(modality.max_length))
    prefix = full_example(request, torch.zeros(0, 1, dtype=torch.long), causal=True)
    (found,) = beams.search(
        model,
        model.targets[modality.name],
        prefill(model, [prefix], len(offsets)),
        offsets,
        end=modality.vocab_size,
        never_ends=lambda place: place == 0,
        options=Sampling(num_beams=1, length_penalty=0),
    )
    return found


@torch.no_grad()
def test_one_beam_is_greedy():
    """Only there: with a length penalty, a search goes on behind the first end, for a longer and better answer."""
    model, text = decided_model(), toys()["text"]
    lengths = set()
    for seed in range(8):
        request = toy_request(["text"], "text", seed)
        codes, log_p = one_beam(model, text, request)
        (greedy,) = generate(model, toys(), [request])
        assert codes.tolist() == greedy.codes.tolist()
        assert log_p == pytest.approx(greedy.logprob, abs=1e-3)
        lengths.add(len(codes))
    assert len(lengths) > 1


@pytest.mark.parametrize("batch_size", [64, 7])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "align_weight": 0.5}, {"align_weight": 0.5}])
def test_a_batch_gives_what_each_request_gives_alone(options, batch_size):
    model, requests = tiny_model(0), [tiny_request(seed) for seed in SEEDS]
    together = generate(model, TINY, requests, Sampling(**options), batch_size=batch_size)
    answers = [(tuple(answer.codes[:, 0].tolist()), answer.logprob) for answer in together]
    assert len({len(codes) for codes, _ in answers}) > 1  # some end before others
    for answer, request in zip(answers, requests):
        codes, log_p = found(model, request, **options)
        assert answer == (codes, pytest.approx(log_p, abs=1e-4))


def test_beams_keep_the_length_that_is_asked_for():
    for seed in SEEDS:
        assert len(found(tiny_model(seed), tiny_request(seed), num_beams=3, length=3)[0]) == 3


def test_beams_repeat_nothing_that_is_forbidden():
    options = {"num_beams": 4, "length": 3}
    free = [found(tiny_model(seed), tiny_request(seed), **options)[0] for seed in SEEDS]
    assert any(len(set(codes)) < 3 for codes in free)
    for seed in SEEDS:
        assert len(set(found(tiny_model(seed), tiny_request(seed), **options, no_repeat=1)[0])) == 3


@pytest.mark.parametrize(("target", "decoding"), [("image", None), ("sound", None), ("sound", "autoregressive")])
def test_only_one_code_at_a_time_can_be_searched_for(target, decoding):
    with pytest.raises(ValueError, match=f"num_beams=2 is not possible: {target} is not decoded one code at a time"):
        generate(decided_model(), toys(), [toy_request(["text"], target)], Sampling(num_beams=2, decoding=decoding))


def test_a_picture_can_be_searched_for_left_to_right():
    options = Sampling(num_beams=2, decoding="autoregressive")
    (answer,) = generate(decided_model(), toys(), [toy_request(["text"], "image")], options)
    assert answer.codes.shape == (6, 1)
