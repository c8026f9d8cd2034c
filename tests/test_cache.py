"""Prefill and advance equal the packed forward, whatever stands beside a row in its batch."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from anyxform.cache import advance, prefill
from anyxform.field import Field
from anyxform.request import Request
from anyxform.sequence import Source, to_axes
from tests.toy import ToyText, toys
from tests.toy_generation import decided_model, full_example, full_states, toy_requests

LONGEST = 7  # tokens of the longest target; the others are padded to it


def examples(causal):
    """A target of another length behind each prefix."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for number, request in enumerate(toy_requests()):
        modality = toys()[request.target.modality]
        length = 6 if modality.fixed_length else 1 + 2 * number % LONGEST
        codes = torch.randint(modality.vocab_size, (length, modality.num_codebooks), generator=generator)
        if not causal:
            codes[::2] = modality.vocab_size  # masks
        result.append(full_example(request, codes, causal))
    assert max(len(it.target.codes) for it in result) == LONGEST
    return result


def without_target(example):
    target = example.target
    return replace(example, target=replace(target, codes=target.codes[:0], positions=target.positions[:0], hidden=None))


def padded_targets(model, batch):
    """Embeddings ``[B, T, D]``, offsets ``[B, T, 3]`` and which of them are no padding ``[B, T]``."""
    x, offsets = torch.zeros(len(batch), LONGEST, model.dim), torch.zeros(len(batch), LONGEST, 3, dtype=torch.long)
    lengths = torch.tensor([len(example.target.codes) for example in batch])
    for row, example in enumerate(batch):
        x[row, : lengths[row]] = model.targets[example.target.modality].embed(example.target.codes)
        offsets[row, : lengths[row]] = to_axes(example.target.positions)
    return x, offsets, torch.arange(LONGEST) < lengths[:, None]


def prefilled(model, batch, room=LONGEST):
    return prefill(model, [without_target(example) for example in batch], room)


def seen(valid, causal):
    square = valid[:, None, :].expand(-1, LONGEST, -1)
    return torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril().expand_as(square) if causal else square


def cached_states(model, batch, causal, cache=None):
    x, offsets, valid = padded_targets(model, batch)
    return advance(model, cache or prefilled(model, batch), x, offsets, 0, seen(valid, causal)), valid


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("target_positions", ["after", "along", {"text": "along"}], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_cached_states_equal_the_packed_forward(causal, target_positions):
    model, batch = decided_model(target_positions=target_positions), examples(causal)
    expected = full_states(model, batch)
    cache = prefilled(model, batch)
    close(cache.marker, torch.stack([prefix[-1] for prefix, _ in expected]))
    states, valid = cached_states(model, batch, causal, cache)
    close(states[valid], torch.cat([target for _, target in expected]))
    assert cache.prefix.sum(dim=1).tolist() == [example.prefix_length for example in batch]
    assert len(set(cache.prefix.sum(dim=1).tolist())) > 4


def test_token_by_token_equals_all_at_once():
    model, batch = decided_model(), examples(causal=True)
    expected, valid = cached_states(model, batch, causal=True)
    cache = prefilled(model, batch)
    x, offsets, _ = padded_targets(model, batch)
    cuts = [0, 1, 2, 5, LONGEST]  # a chunk of several tokens among them
    parts = [
        advance(model, cache, x[:, a:b], offsets[:, a:b], a, seen(valid, causal=True)[:, a:b, :b])
        for a, b in pairwise(cuts)
    ]
    close(torch.cat(parts, dim=1)[valid], expected[valid])


def test_a_target_can_be_written_anew():
    """Masked refinement runs over the same slots again and again."""
    model, batch = decided_model(), examples(causal=False)
    cache = prefilled(model, batch)
    first, valid = cached_states(model, batch, False, cache)
    x, offsets, _ = padded_targets(model, batch)
    other = advance(model, cache, x.flip(0, 1), offsets, 0, seen(valid, False))
    assert not torch.allclose(other[valid], first[valid], atol=0.1)
    close(cached_states(model, batch, False, cache)[0], first)


def test_rows_may_come_in_any_order_and_several_times():
    model, batch = decided_model(), examples(causal=True)
    index = torch.tensor([4, 0, 9, 4])
    expected, valid = cached_states(model, batch, causal=True)
    cache = prefilled(model, batch).rows(index)
    states, _ = cached_states(model, [batch[i] for i in index], True, cache)
    close(states[valid[index]], expected[index][valid[index]])
    assert not torch.equal(cache.marker[0], cache.marker[1])
    assert torch.equal(cache.marker[0], cache.marker[3])


def test_copied_rows_do_not_share_memory():
    """Beams of one parent go different ways."""
    model, batch = decided_model(), examples(causal=True)[:1]
    cache = prefilled(model, batch).rows(torch.tensor([0, 0]))
    x, offsets = torch.randn(2, 1, model.dim), torch.zeros(1, 3, dtype=torch.long)
    both = advance(model, cache, x, offsets, 0, torch.ones(2, 1, 1, dtype=torch.bool))
    alone = [
        advance(model, prefilled(model, batch), row[None], offsets, 0, torch.ones(1, 1, 1, dtype=torch.bool))
        for row in x
    ]
    close(both, torch.cat(alone))
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_a_grown_cache_is_one_with_more_room():
    model, batch = decided_model(), examples(causal=False)
    cache = prefilled(model, batch, room=0).grown(LONGEST)
    assert cache.keys.shape == cache.values.shape == prefilled(model, batch).keys.shape
    close(cached_states(model, batch, False, cache)[0], cached_states(model, batch, False)[0])


def test_what_was_never_written_is_never_read(monkeypatch):
    model, batch = decided_model(), examples(causal=False)
    expected, _ = cached_states(model, batch, causal=False)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, shape: self.new_full(shape, math.nan))
    cache = prefilled(model, batch, room=1).grown(LONGEST - 1)
    assert cache.keys.isnan().any()
    close(cached_states(model, batch, False, cache)[0], expected)


class Waves(ToyText):
    """Sources of four real numbers a token."""

    name = "waves"

    def front_end(self, dim):
        return Projection(dim)


class Projection(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(4, dim)

    def forward(self, values, lengths):
        return self.linear(values)


def test_weights_in_bf16_take_sources_in_fp32():
    model = decided_model({**toys(), "waves": Waves()})
    waves = Source("waves", torch.randn(5, 4), torch.arange(5)[:, None])
    request = Request((waves, *toy_requests()[0].sources), Field("text"))
    batch = [full_example(request, torch.tensor([[1], [2], [3]]), causal=True), *examples(causal=True)]
    expected, valid = cached_states(model, batch, causal=True)
    model.to(torch.bfloat16)
    cache = prefilled(model, batch)
    x, offsets, _ = padded_targets(model, batch)
    states = advance(model, cache, x.to(torch.bfloat16), offsets, 0, seen(valid, causal=True))
    assert states.dtype == cache.keys.dtype == torch.bfloat16
    error = (states.float() - expected)[valid].square().mean().sqrt()
    assert 0 < error < 0.1 * expected[valid].square().mean().sqrt()
