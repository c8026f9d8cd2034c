"""Generation equals loops that compute the whole forward each time, alone and in any batch."""

import math
from dataclasses import replace

import pytest
import torch

from anyxform import generate as module
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.request import Request
from anyxform.sampling import Sampling, draw
from tests.toy import toys
from tests.toy_generation import decided_model, full_logits, marker_state, toy_request, toy_requests


@pytest.fixture(scope="module")
def model():
    return decided_model()


def codes_of(answers):
    return [answer.codes.tolist() for answer in answers]


def of(target):
    """The toy requests for a modality."""
    return [request for request in toy_requests() if request.target.modality == target]


def without_sources(request):
    return replace(request, sources=())


def guided_logits(model, request, codes, causal, guidance):
    """By the formula, from two forwards."""
    given = full_logits(model, request, codes, causal)
    without = full_logits(model, without_sources(request), codes, causal)
    return without + guidance * (given - without)


# Left to right


def naive_left_to_right(model, request, temperature=0.0, seed=0, guidance=1.0):
    """Codes and their log-probability, by a forward of everything for each token."""
    modality = toys()[request.target.modality]
    generator = torch.Generator().manual_seed(seed)
    codes, total = torch.zeros(0, modality.num_codebooks, dtype=torch.long), 0.0
    while len(codes) < modality.max_length:
        logits = guided_logits(model, request, codes, True, guidance)[-1]
        if len(codes) == 0 or modality.fixed_length:
            logits = logits[:, :-1]
        chosen = draw(logits, temperature, Sampling(), torch.rand(len(logits), generator=generator))
        total += float(logits.log_softmax(dim=-1).gather(1, chosen[:, None]).sum())
        if (chosen == modality.vocab_size).any():
            break
        codes = torch.cat([codes, chosen[None]])
    return codes.tolist(), total


@pytest.mark.parametrize("target", ["text", "image", "sound"])
@pytest.mark.parametrize(("temperature", "guidance"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.5)])
def test_left_to_right_equals_the_full_forward_of_every_token(model, target, temperature, guidance):
    options = Sampling(decoding="autoregressive", temperature=temperature, guidance=guidance, seed=3)
    requests = of(target)
    answers = generate(model, toys(), requests, options)
    expected = [
        naive_left_to_right(model, request, temperature, 3 + number, guidance)
        for number, request in enumerate(requests)
    ]
    assert codes_of(answers) == [codes for codes, _ in expected]
    assert [answer.logprob for answer in answers] == pytest.approx([total for _, total in expected], abs=1e-3)
    assert len({str(codes) for codes in codes_of(answers)}) == len(requests)  # they do listen to what is asked


def test_answers_end_where_the_model_says_so_or_at_the_longest(model):
    lengths = {len(answer.codes) for answer in generate(model, toys(), of("text") * 8, Sampling(temperature=1.0))}
    assert min(lengths) < 32
    assert max(lengths) <= 32
    assert len(lengths) > 3


@torch.no_grad()
def test_text_is_never_empty():
    model, request = decided_model(), of("text")[0]
    embedding = model.targets["text"].embedding[0]
    embedding[:-1] *= 1e-3
    embedding[-1] = marker_state(model, request)
    assert int(full_logits(model, request, torch.zeros(0, 1, dtype=torch.long), True)[0, 0].argmax()) == 27  # the end
    for num_beams in (1, 4):
        assert len(generate(model, toys(), [request], Sampling(num_beams=num_beams))[0].codes) >= 1


@pytest.mark.parametrize("size", [1, 2])
def test_no_run_comes_twice(model, size):
    def repeated(options):
        sequences = [[code for (code,) in codes] for codes in codes_of(generate(model, toys(), of("text"), options))]
        runs = [[tuple(it[i : i + size]) for i in range(len(it) - size + 1)] for it in sequences]
        return any(len(set(it)) < len(it) for it in runs)

    free = Sampling(temperature=0.4, length=20)
    assert repeated(free)
    assert not repeated(replace(free, no_repeat=size))


# Masked


def cosine(done):
    return math.cos(math.pi / 2 * done)


def naive_masked(model, request, length, steps, guidance=1.0, share=cosine):
    """The likeliest codes, of which the least certain are hidden again, with no noise in the choice."""
    modality = toys()[request.target.modality]
    mask = modality.vocab_size
    codes = torch.full((length, modality.num_codebooks), mask)
    if request.known is not None:
        codes[request.keep] = request.known[request.keep]
    hidden = [i for i in range(length) if codes[i, 0] == mask]
    first, certainty = len(hidden), {}
    for step in range(1, steps + 1):
        logits = guided_logits(model, request, codes, False, guidance)[1:, :, :mask]
        best = logits.log_softmax(dim=-1).max(dim=-1)
        for i in hidden:
            codes[i], certainty[i] = best.indices[i], float(best.values[i].sum())
        remain = min(math.floor(first * share(step / steps)), len(hidden) - 1)
        if step == steps or remain <= 0:
            return codes.tolist(), sum(certainty.values())
        hidden = sorted(hidden, key=lambda i: certainty[i])[:remain]
        codes[hidden] = mask
    raise AssertionError


PLAIN = Sampling(temperature=0, choice_temperature=0, guidance=1, decoding="masked")


@pytest.mark.parametrize("target", ["text", "image", "sound"])
@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (4, 1.0), (50, 1.0), (4, 3.0)])
def test_masked_refinement_equals_the_full_forward_of_every_step(model, target, steps, guidance):
    requests = of(target)
    answers = generate(model, toys(), requests, replace(PLAIN, steps=steps, guidance=guidance))
    for request, answer in zip(requests, answers):
        codes, total = naive_masked(model, request, len(answer.codes), steps, guidance)
        assert answer.codes.tolist() == codes
        assert answer.logprob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize(("schedule", "share"), [("linear", lambda it: 1 - it), ("square", lambda it: 1 - it * it)])
def test_a_schedule_says_how_many_stay_hidden(model, schedule, share):
    requests, other = of("image") + of("sound"), 0
    for request, answer in zip(requests, generate(model, toys(), requests, replace(PLAIN, steps=5, schedule=schedule))):
        codes, total = naive_masked(model, request, len(answer.codes), 5, share=share)
        assert (answer.codes.tolist(), answer.logprob) == (codes, pytest.approx(total, abs=1e-3))
        other += codes != naive_masked(model, request, len(answer.codes), 5)[0]
    assert other  # than by the default


def test_one_step_is_one_argmax(model):
    """And no noise, since nothing is left to be chosen."""
    request = of("image")[0]
    (answer,) = generate(model, toys(), [request], Sampling(steps=1, temperature=0, guidance=1, choice_temperature=9))
    logits = full_logits(model, request, torch.full((6, 1), 8), causal=False)[1:, :, :8]
    assert answer.codes.tolist() == logits.argmax(dim=-1).tolist()


def test_steps_change_the_answer(model):
    """Else the test against the naive loop would show little."""
    one, four = (generate(model, toys(), of("image") + of("sound"), replace(PLAIN, steps=n)) for n in (1, 4))
    assert codes_of(one) != codes_of(four)


@torch.no_grad()
def test_a_masked_length_is_read_from_the_marker_or_given():
    model, requests = decided_model(), of("sound")
    model.targets["sound"].length.bias[0] = 100  # there are no targets of no length
    answers = generate(model, toys(), requests)
    for request, answer in zip(requests, answers):
        scores = model.targets["sound"].length(marker_state(model, request))
        assert len(answer.codes) == 1 + int(scores[1:].argmax())
    assert len({len(answer.codes) for answer in answers}) > 1
    assert {len(it.codes) for it in generate(model, toys(), requests, Sampling(length=7))} == {7}


def calls(function, monkeypatch):
    """The arguments of each call of what `module` imports by that name, from now on."""
    called, original = [], getattr(module, function)
    monkeypatch.setattr(module, function, lambda *arguments: called.append(arguments) or original(*arguments))
    return called


def test_no_step_goes_by_without_a_token(model, monkeypatch):
    advances = calls("advance", monkeypatch)
    generate(model, toys(), [of("image")[0]], Sampling(steps=50))
    assert len(advances) <= 6


def test_noise_in_the_choice_is_what_a_seed_changes_at_temperature_0(model):
    def answers(seed, noise):
        options = replace(PLAIN, steps=4, seed=seed, choice_temperature=noise)
        return codes_of(generate(model, toys(), of("image") + of("sound"), options))

    assert answers(0, 0.0) == answers(100, 0.0)
    assert answers(0, 5.0) != answers(100, 5.0)


def kept(request, length, seed=0):
    """The request with random known codes, of which every other one is kept."""
    modality = toys()[request.target.modality]
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(modality.vocab_size, (length, modality.num_codebooks), generator=generator)
    return replace(request, known=known, keep=torch.arange(length) % 2 == 1)


@pytest.mark.parametrize(("target", "length"), [("image", 6), ("sound", 9), ("text", 5)])
def test_what_is_kept_stays_and_only_that(model, target, length):
    requests = [kept(request, length, seed) for seed, request in enumerate(of(target))]
    answers = generate(model, toys(), requests, Sampling(decoding="masked", seed=1, steps=3))
    changed = 0
    for request, answer in zip(requests, answers):
        assert answer.codes.shape == request.known.shape
        assert torch.equal(answer.codes[request.keep], request.known[request.keep])
        changed += int((answer.codes != request.known)[~request.keep].sum())
    assert changed
    for request, answer in zip(requests, generate(model, toys(), requests, replace(PLAIN, steps=3))):
        codes, total = naive_masked(model, request, length, 3)
        assert (answer.codes.tolist(), answer.logprob) == (codes, pytest.approx(total, abs=1e-3))


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_keeping_everything_gives_it_back(model, decoding):
    request = kept(of("image")[0], 6)
    request = replace(request, keep=torch.ones(6, dtype=torch.bool))
    (answer,) = generate(model, toys(), [request], Sampling(decoding=decoding))
    assert torch.equal(answer.codes, request.known)
    assert answer.logprob == 0


@pytest.mark.parametrize(("target", "length"), [("image", 6), ("sound", 9), ("text", 5)])
def test_left_to_right_what_is_kept_stays_in_its_place(model, target, length):
    """And what lies between follows from what lies before it, as the full forward of every token says."""
    requests = [kept(request, length, seed) for seed, request in enumerate(of(target))]
    requests = [replace(it, keep=torch.arange(length) != 2) for it in requests]
    for request, answer in zip(requests, generate(model, toys(), requests, Sampling(decoding="autoregressive"))):
        logits = full_logits(model, request, request.known[:2], causal=True)[2, :, : toys()[target].vocab_size]
        expected = request.known.clone()
        expected[2] = logits.argmax(dim=-1)
        assert answer.codes.tolist() == expected.tolist()


@pytest.mark.parametrize(("target", "decoding"), [("text", None), ("sound", "autoregressive")])
def test_left_to_right_goes_on_behind_what_is_kept(model, target, decoding):
    """By at least one token, and as it would have gone on by itself."""
    free, keep = Sampling(decoding=decoding), torch.tensor([True, True, False])
    pairs = [pair for pair in zip(of(target), generate(model, toys(), of(target), free)) if len(pair[1].codes) >= 3]
    assert pairs
    for request, answer in pairs:
        (again,) = generate(model, toys(), [replace(request, known=answer.codes[:3], keep=keep)], free)
        assert torch.equal(again.codes, answer.codes)
        other = (answer.codes[:3] + 1) % toys()[target].vocab_size
        (turned,) = generate(model, toys(), [replace(request, known=other, keep=keep)], free)
        assert torch.equal(turned.codes[:2], other[:2]) and len(turned.codes) >= 3


def test_left_to_right_what_comes_first_can_be_limited(model):
    """Only behind what is kept, and only there."""
    known, keep = torch.tensor([[3], [4], [0]]), torch.tensor([True, True, False])
    first = torch.zeros(27, dtype=torch.bool)
    first[[5, 9]] = True
    plain = [replace(it, known=known, keep=keep) for it in of("text")]
    limited = [replace(it, first=first) for it in plain]
    free, chosen = (generate(model, toys(), some, Sampling(temperature=1.0)) for some in (plain, limited))
    assert {int(it.codes[2]) for it in chosen} <= {5, 9} and not {int(it.codes[2]) for it in free} <= {5, 9}
    assert all(it.codes[:2, 0].tolist() == [3, 4] for it in chosen)
    assert {int(code) for it in chosen for code in it.codes[3:]} - {5, 9}


# Both ways


@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 1.0, "top_p": 0.9}, {"guidance": 2.0, "temperature": 0.7}, {"no_repeat": 1},
        {"decoding": "autoregressive", "temperature": 1.0}, {"decoding": "masked", "steps": 5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch_size", [64, 2])
def test_a_batch_gives_what_each_request_gives_alone(model, options, batch_size):
    requests = toy_requests()
    together = generate(model, toys(), requests, Sampling(seed=5, **options), batch_size=batch_size)
    alone = [
        generate(model, toys(), [request], Sampling(seed=5 + number, **options))[0]
        for number, request in enumerate(requests)
    ]
    assert codes_of(together) == codes_of(alone)
    assert [it.logprob for it in together] == pytest.approx([it.logprob for it in alone], abs=1e-3)


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_the_seed_decides(model, decoding):
    first, again, other = (
        codes_of(generate(model, toys(), toy_requests(), Sampling(seed=seed, temperature=1.0, decoding=decoding)))
        for seed in (0, 0, 100)
    )
    assert first == again
    assert sum(a != b for a, b in zip(first, other)) > 0.5 * len(first)


@pytest.mark.parametrize("decoding", ["autoregressive", "masked", None])
def test_answers_are_valid_values(model, decoding):
    """In either way of decoding, whatever the modality's own: a picture is whole, a code in the vocabulary."""
    requests = toy_requests()
    for request, answer in zip(requests, generate(model, toys(), requests, Sampling(decoding=decoding, temperature=1))):
        modality = toys()[request.target.modality]
        assert answer.codes.shape[1] == modality.num_codebooks
        assert len(answer.codes) == 6 if modality.fixed_length else 1 <= len(answer.codes) <= modality.max_length
        assert answer.codes.min() >= 0
        assert answer.codes.max() < modality.vocab_size
        assert answer.codes.device.type == "cpu"


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_the_length_can_be_asked_for(model, decoding):
    requests = of("text") + of("sound")
    answers = generate(model, toys(), requests, Sampling(decoding=decoding, length=9))
    assert [len(answer.codes) for answer in answers] == [9] * len(requests)


@pytest.mark.parametrize(("decoding", "rows"), [("autoregressive", 1), ("masked", 1), ("masked", 2)])
def test_guidance_costs_a_second_row_only_where_it_guides(model, decoding, rows, monkeypatch):
    prefills = calls("prefill", monkeypatch)
    generate(model, toys(), of("image")[:1], Sampling(decoding=decoding, guidance=float(rows)))
    generate(model, toys(), [without_sources(of("image")[0])], Sampling(decoding=decoding, guidance=3.0))
    assert [len(examples) for _, examples, _ in prefills] == [rows, 1]  # without sources, nothing to be guided by


@pytest.mark.parametrize(
    ("target", "options", "computed"),
    [
        ("image", {"guidance": 1.0}, 3),
        ("image", {"guidance": 2.0}, 3),  # one has no sources, and guides the others as well
        ("sound", {"guidance": 2.0, "temperature": 1.0}, 6),  # three fields, each guided by a prefix of its own
        ("text", {"num_beams": 3}, 4),
    ],
)
def test_samples_of_a_request_share_its_prefix(model, target, options, computed, monkeypatch):
    """Masked and in beams; left to right: tests/test_continuous.py."""
    asked = [replace(it, seed=seed) for it in of(target) for seed in range(4)]
    prefills = calls("prefill", monkeypatch)
    together = generate(model, toys(), asked, Sampling(**options))
    assert sum(len(examples) for _, examples, _ in prefills) == computed
    alone = [generate(model, toys(), [it], Sampling(**options))[0] for it in asked]
    assert codes_of(together) == codes_of(alone)
    assert [it.logprob for it in together] == pytest.approx([it.logprob for it in alone], abs=1e-3)


def test_guidance_0_forgets_the_sources(model):
    request = of("text")[0]
    (forgotten,) = generate(model, toys(), [request], Sampling(guidance=0))
    assert codes_of([forgotten]) == codes_of(generate(model, toys(), [without_sources(request)]))
    assert codes_of([forgotten]) != codes_of(generate(model, toys(), [request]))


def test_weights_in_bf16_generate():
    model = decided_model().to(torch.bfloat16)
    for answer in generate(model, toys(), toy_requests(), Sampling(guidance=2.0)):
        assert math.isfinite(answer.logprob)


def test_training_goes_on_as_it_was():
    model = decided_model()
    for training in (True, False):
        model.train(training)
        generate(model, toys(), of("text"))
        assert model.training == training
    model.train()
    with pytest.raises(ValueError, match="length=33"):
        generate(model, toys(), of("text"), Sampling(length=33))
    assert model.training


def test_nothing_is_dropped_out():
    model = decided_model(dropout=0.5, layer_dropout=0.5).train()
    first, second = (codes_of(generate(model, toys(), toy_requests())) for _ in range(2))
    assert first == second


def test_no_requests_no_answers(model):
    assert generate(model, toys(), []) == []


# What is refused


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("text", {"length": 33}, "length=33 is not possible: text has 1 to 32 tokens"),
        ("image", {"length": 4}, "length=4 is not possible: image has always 6 tokens"),
        ("image", {"length": 4, "decoding": "autoregressive"}, "length=4 is not possible: image has always 6 tokens"),
        ("image", {"num_beams": 2}, "num_beams=2 is not possible: image is not decoded one code at a time"),
    ],
)
def test_what_a_modality_cannot_serve(model, target, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, toys(), of(target), Sampling(**options))


def test_an_attribute_that_was_never_trained(model):
    with pytest.raises(ValueError, match="knows no 'xx'"):
        generate(model, toys(), [Request((), Field("text", "xx"))])


IMAGE = kept(toy_request(["text"], "image"), 6)
SOUND = kept(toy_request(["text"], "sound"), 4)


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (
            kept(toy_request(["image"], "text"), 6),
            {"num_beams": 2},
            "num_beams=2 is not possible where a part of text is kept",
        ),
        (replace(IMAGE, keep=None), {}, r"known and keep of image are \[T, 1\] and \[T\], not \(6, 1\) and None"),
        (replace(IMAGE, known=None), {}, r"not None and \(6,\)"),
        (replace(IMAGE, known=IMAGE.known[:, 0]), {}, r"not \(6,\) and \(6,\)"),
        (replace(SOUND, keep=SOUND.keep[:3]), {}, r"not \(4, 2\) and \(3,\)"),
        (kept(IMAGE, 5), {}, "known of 5 tokens is not possible: image has always 6 tokens"),
        (SOUND, {"length": 5}, "length=5 is not possible: known has 4 tokens"),
        (replace(SOUND, known=SOUND.known + 8), {}, r"known of sound has codes outside of \[0, 8\)"),
    ],
)
def test_what_cannot_be_kept(model, request_, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, toys(), [request_], Sampling(**options))


def test_a_request_may_have_a_seed_of_its_own(model):
    """So its answer does not move when a request before it falls out."""
    options = Sampling(temperature=1.0, seed=5)
    first, second = toy_request(["image"], "text", 1), toy_request(["image"], "text", 2)
    both = generate(model, toys(), [first, second], options)
    (alone,) = generate(model, toys(), [replace(second, seed=6)], options)
    assert torch.equal(alone.codes, both[1].codes)
    assert codes_of(generate(model, toys(), [second], options)) != codes_of([alone])  # which has seed 5
