"""Early exits: all layers are plain decoding, no effort is a shallower model, and less effort costs less."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from anyxform.effort import WHOLE_PREFIX, exits_of
from anyxform.estimate import operations
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.loss import batch_loss
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import Source, pack
from anyxform.stream import Stream
from tests.test_speculative import with_parts_kept
from tests.toy import toys
from tests.toy_generation import decided_model, full_example, toy_request, toy_requests
from tests.toy_training import CONDITIONS, toy_model

NEARLY_ALL = 1 - 1e-15
"""An effort that no confidence of this model reaches, yet not the plain way."""


def codes_of(answers):
    return [it.codes.tolist() for it in answers]


def unsure_model(depth=6, seed=0):
    """Its heads are of small numbers, so that it is never quite sure."""
    model = decided_model(seed=seed, depth=depth)
    with torch.no_grad():
        for target in model.targets.values():
            target.head *= 0.1
    return model


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
@pytest.mark.parametrize("more", [{}, {"guidance": 2.0, "temperature": 0.7, "seed": 4}])
def test_where_nothing_is_sure_enough_it_is_plain_decoding(decoding, more):
    model, requests = unsure_model(), [*toy_requests(), *with_parts_kept()[: 3 if decoding == "autoregressive" else 2]]
    options = Sampling(decoding=decoding, **more)
    plain = generate(model, toys(), requests, options)
    found = generate(model, toys(), requests, replace(options, effort=NEARLY_ALL))
    assert codes_of(found) == codes_of(plain)
    assert [it.logprob for it in found] == pytest.approx([it.logprob for it in plain], abs=1e-3)
    assert all(set(it.layers.tolist()) <= {0.0, 6.0} and len(it.layers) == len(it.codes) for it in found)
    assert all(it.layers is None for it in plain)


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_no_effort_is_a_model_of_the_first_layers(decoding):
    model, options = decided_model(depth=6), Sampling(decoding=decoding, length=6)
    found = generate(model, toys(), toy_requests(), replace(options, effort=0.0))
    model.blocks = nn.ModuleList(model.blocks[:3])
    assert codes_of(found) == codes_of(generate(model, toys(), toy_requests(), options))
    assert all(set(it.layers.tolist()) == {3.0} for it in found)


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_keeping_everything_gives_it_back(decoding):
    known = torch.arange(6)[:, None]
    request = replace(toy_request(["text"], "image"), known=known, keep=torch.ones(6, dtype=torch.bool))
    (found,) = generate(decided_model(depth=3), toys(), [request], Sampling(decoding=decoding, effort=0.5))
    assert torch.equal(found.codes, known) and found.logprob == 0 and not found.layers.any()


def test_the_length_of_a_masked_answer_is_read_behind_all_layers():
    """Where nothing else was it learnt."""
    model, requests = decided_model(depth=6), [toy_request(["text"], "sound", seed) for seed in range(6)]
    lengths = [
        [len(it.codes) for it in generate(model, toys(), requests, Sampling(effort=effort))] for effort in (0, 1)
    ]
    assert lengths[0] == lengths[1] and len(set(lengths[0])) > 1


@pytest.mark.parametrize("decoding", ["autoregressive", "masked"])
def test_less_effort_takes_fewer_layers_and_operations(decoding):
    model = unsure_model()
    layers, counts = [], []
    for effort in (0.0, 0.15, NEARLY_ALL):
        with operations() as counted:
            found = generate(model, toys(), toy_requests()[:3], Sampling(decoding=decoding, length=6, effort=effort))
        layers.append(float(torch.stack([it.layers for it in found]).mean()))
        counts.append(counted.get_total_flops())
    assert 3 == layers[0] < layers[1] < layers[2] == 6
    assert counts[0] < 0.9 * counts[1] and counts[0] < 0.7 * counts[2]


def taught_model(steps=120):
    """It has learnt, behind the exit too, that an "a" is answered by "bcdef", and a "z" by any five letters."""
    model, generator = toy_model(depth=4), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        answers = [(EASY, torch.arange(2, 7).expand(8, 5)), (HARD, torch.randint(27, (8, 5), generator=generator))]
        examples = [full_example(it, codes[:, None], causal=True) for it, own in answers for codes in own]
        batch = pack(examples, CONDITIONS)
        loss, _ = batch_loss(model, batch, exits=exits_of(4)[:1], exit_weight=0.5)
        (loss / batch.num_labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def letters(given):
    text = toys()["text"]
    values = text.preprocess(given)
    return Request((Source("text", values, text.source_positions(values)),), Field("text"))


EASY, HARD = letters("a"), letters("z")


def test_an_easy_answer_takes_less_than_a_hard_one():
    """Of one model: what is known leaves half way, what cannot be known goes through all layers."""
    options, model = Sampling(effort=0.8, length=5), taught_model()
    easy, hard = (generate(model, toys(), [it], options)[0] for it in (EASY, HARD))
    assert easy.codes.flatten().tolist() == [2, 3, 4, 5, 6]
    assert (easy.layers == 2).all() and (hard.layers == 4).all()


@torch.no_grad()
def test_those_that_go_on_see_those_that_left_as_they_were():
    """Keys and values of a layer that a token has not gone through are made of the state that it left with."""
    model, embeddings = decided_model(depth=3), torch.randn(1, 2, 32)
    prefix = _prefix(toy_request(["image"], "text"))
    stream = Stream(model, [prefix], causal=True)
    stream.grow(torch.arange(4)[:, None].expand(-1, 3))
    stream.put(embeddings[:, :1])
    left = stream.run(range(1), slice(0, 1))
    stream.put(embeddings[:, 1:], 1)
    stream.run(range(3), slice(1, 2))
    slot, block = slice(stream.start, stream.start + 1), model.blocks[2]
    _, keys, values = block.attention.project(block.norm1(stream.x[:, slot]), stream._rope(slot))
    torch.testing.assert_close(stream.keys[2][:, slot], keys)
    torch.testing.assert_close(stream.values[2][:, slot], values)
    torch.testing.assert_close(model.norm(stream.x[:, slot]), left)


@torch.no_grad()
def test_a_prefix_that_leaves_is_seen_as_it_left():
    """All but its last token, which goes on; prefixes of other lengths beside it change nothing."""
    model = decided_model(depth=4)
    prefixes = [_prefix(toy_request(sources, "text")) for sources in (["image", "text"], [])]
    both = Stream(model, prefixes, causal=True, prefix_depth=2)
    markers = both.marker(range(4))
    for row, prefix in enumerate(prefixes):
        alone, left = (Stream(model, [prefix], causal=True, prefix_depth=2) for _ in range(2))
        torch.testing.assert_close(alone.marker(range(4)), markers[row : row + 1])
        left.marker(range(2))
        last, block = alone.start - 1, model.blocks[3]
        assert last == 0 or torch.equal(alone.x[:, :last], left.x[:, :last])
        assert not torch.allclose(alone.x[:, last], left.x[:, last])
        _, keys, _ = block.attention.project(block.norm1(left.x[:, :last]), alone._rope(slice(0, last)))
        torch.testing.assert_close(alone.keys[3][:, :last], keys)


def test_the_prefix_leaves_half_way_where_the_effort_is_low():
    """Where nothing is sure, so that all target tokens go through all layers."""
    model, counts = unsure_model(), []
    for effort in (WHOLE_PREFIX, WHOLE_PREFIX - 0.01):
        with operations() as counted:
            (found,) = generate(model, toys(), [toy_request(["image"], "text")], Sampling(length=3, effort=effort))
        assert (found.layers == 6).all()
        counts.append(counted.get_total_flops())
    assert counts[1] < 0.8 * counts[0]


def _prefix(request):
    return full_example(request, torch.zeros(0, 1, dtype=torch.long), causal=True)


def test_tokens_may_leave_half_way():
    assert [exits_of(depth) for depth in (1, 2, 3, 6, 28)] == [[1], [1, 2], [2, 3], [3, 6], [14, 28]]


def test_weights_in_bf16_leave_early_too():
    model = decided_model(depth=3).to(torch.bfloat16)
    for options in (Sampling(effort=0.5), Sampling(decoding="autoregressive", draft=2, temperature=1.0)):
        assert all(len(it.codes) for it in generate(model, toys(), toy_requests(), options))
