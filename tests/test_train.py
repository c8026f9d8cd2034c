import math
from itertools import count, groupby, islice, product
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anyxform.checkpoint import model_tensors
from anyxform.loss import MOST_LOGITS, Z_LOSS, _losses, alike, batch_loss, head_losses
from anyxform.optim import adamw, muon
from anyxform.sequence import Example, Source, Target, marker, pack
from anyxform.train import averaged, fetch, rotating_exit, skipped_blocks, train, train_step, validation_loss
from tests.toy import toys
from tests.toy_training import CONDITIONS, DIRECTIONS, toy_example, toy_model, toy_row, toy_rows, toy_state

CONSTANT = {"lr": lambda step: 3e-3}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("most", [10, 10_000])
def test_the_losses_and_their_gradient_are_those_of_their_definition(monkeypatch, most):
    monkeypatch.setitem(MOST_LOGITS, "cpu", most)
    generator = torch.Generator().manual_seed(0)
    states, table = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (2, 7, 3))
    )
    labels = torch.randint(7, (5, 2), generator=generator)

    def defined():
        logits = torch.einsum("md,kvd->mkv", states, table)
        entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (entropy + Z_LOSS * logits.logsumexp(dim=-1).square()).mean(dim=-1)

    total, losses = head_losses(SimpleNamespace(head=table), states, labels)
    torch.testing.assert_close(losses, defined().detach())
    found, expected = (torch.autograd.grad(3 * it, (states, table)) for it in (total, defined().sum()))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(head_losses(SimpleNamespace(head=table), states, labels)[0], total.detach())


def test_what_is_frozen_gets_no_gradient():
    states, table = torch.randn(5, 3, requires_grad=True), torch.randn(2, 7, 3)
    total, _ = head_losses(SimpleNamespace(head=table), states, torch.zeros(5, 2, dtype=torch.long))
    total.backward()
    assert table.grad is None and states.grad.any()
    total, _ = head_losses(SimpleNamespace(head=table), states.detach(), torch.zeros(5, 2, dtype=torch.long))
    assert not total.requires_grad


def test_a_step_reports_every_direction_and_its_loss():
    model = toy_model()
    metrics = train_step(model, sgd(model), [toy_row(0)])
    assert list(metrics["directions"]) == sorted(f"{source}>{target}" for source, target in DIRECTIONS)
    assert not metrics["skipped"]
    assert metrics["grad_norm"] > 0
    expected, directions = validation_loss(toy_model(), [toy_row(0)])
    assert metrics["loss"] == pytest.approx(expected)
    assert metrics["directions"] == pytest.approx(directions)


def test_training_ends_when_its_steps_have_taken_their_time(monkeypatch):
    ticks = count()
    monkeypatch.setattr("anyxform.train.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    state = toy_state()
    seconds = [metrics["seconds"] for metrics in train(state, toy_rows(), steps=100, seconds=7.0, **CONSTANT)]
    assert seconds == [2, 4, 6, 8]  # the clock is read thrice a step
    assert list(train(state, toy_rows(state.position), steps=100, seconds=8.0, **CONSTANT)) == []
    assert len(list(train(state, toy_rows(state.position), steps=5, seconds=100.0, **CONSTANT))) == 1


def test_accumulation_equals_one_large_row():
    """However the target tokens are spread over rows: the two halves hold different numbers of them."""
    generator = torch.Generator().manual_seed(0)
    examples = [toy_example(*pair, generator) for _ in range(2) for pair in DIRECTIONS]
    whole, split = toy_model(), toy_model()
    one = train_step(whole, sgd(whole), [pack(examples, CONDITIONS)])
    rows = [pack(examples[:3], CONDITIONS, size=100), pack(examples[3:], CONDITIONS)]
    two = train_step(split, sgd(split), rows)
    assert rows[0].num_labels != rows[1].num_labels
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    for a, b in zip(whole.parameters(), split.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_clipping_bounds_the_update():
    model = toy_model()
    before = [p.detach().clone() for p in model.parameters()]
    norm = train_step(model, sgd(model), [toy_row(0)], clip=1e-3)["grad_norm"]
    moved = torch.stack([(p.detach() - q).norm() for p, q in zip(model.parameters(), before)]).norm()
    assert norm > 1e-2
    assert float(moved) == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_bf16_is_near_fp32():
    losses = [train_step(model := toy_model(), sgd(model), [toy_row(0)], bf16=bf16)["loss"] for bf16 in (False, True)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_weights_scale_a_modality_and_nothing_else():
    gradients = {}
    for weight in (1.0, 0.0):
        model = toy_model()
        train_step(model, sgd(model), [toy_row(0)], weights={"sound": weight}, clip=1e9)
        gradients[weight] = {
            name: p.grad.abs().sum().item() for name, p in model.targets.named_parameters() if p.grad is not None
        }
    assert gradients[0.0]["sound.embedding"] < gradients[1.0]["sound.embedding"]
    assert gradients[0.0]["text.embedding"] == pytest.approx(gradients[1.0]["text.embedding"], rel=1e-4)


def test_training_learns():
    state = toy_state(ema=0.9)
    before = validation_loss(state.model, [toy_row(0)])[0]
    row = toy_row(0)
    metrics = list(train(state, ((row, 0) for _ in range(40)), steps=40, **CONSTANT))
    assert [m["step"] for m in metrics] == list(range(1, 41))
    assert validation_loss(state.model, [row])[0] < 0.7 * before
    assert state.tokens == 40 * row.num_tokens
    assert metrics[-1]["padding"] == pytest.approx(1 - row.num_tokens / row.size)


def test_a_nonfinite_step_is_skipped_and_counted():
    state = toy_state()
    stream = train(state, toy_rows(), steps=10, **CONSTANT)
    next(stream)
    weights = [p.detach().clone() for p in state.model.parameters()]
    average = {name: tensor.clone() for name, tensor in state.ema.weights.items()}
    with torch.no_grad():
        gain = state.model.norm.weight[0].clone()
        state.model.norm.weight[0] = torch.nan
    metrics = next(stream)
    with torch.no_grad():
        state.model.norm.weight[0] = gain
    assert metrics["skipped"]
    assert state.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, state.model.parameters()))
    assert all(torch.equal(average[name], tensor) for name, tensor in state.ema.weights.items())
    assert not next(stream)["skipped"]


@pytest.mark.parametrize("make", [adamw, muon])
def test_a_step_reads_what_it_decides_by_from_the_device_once(monkeypatch, make):
    """Elsewhere nothing becomes a plain value: on a GPU each of these would wait for all that was launched."""
    state, rows, fetched = toy_state(), list(islice(toy_rows(), 6)), []
    state.optimizer = make(state.model)
    monkeypatch.setattr("anyxform.train.fetch", lambda numbers: fetched.append(len(numbers)) or fetch(numbers))
    with Plain() as plain:
        steps = list(train(state, rows, steps=3, rows_per_step=2, **CONSTANT))
    assert not plain.calls and not any(metrics["skipped"] for metrics in steps)
    assert fetched == 3 * [1 + 2 + len(DIRECTIONS)]  # the gradient's norm, each row's objective, each direction's loss
    with Plain() as plain:
        bool(rows[0][0].positions.any())
    assert plain.calls  # it would be seen


class Plain(TorchDispatchMode):
    """Sees each tensor that becomes a number of Python's."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_too_many_nonfinite_steps_in_a_row_stop_the_run():
    state = toy_state()
    with torch.no_grad():
        state.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite for 4 steps in a row, up to step 4: lower optim\.lr"):
        list(train(state, toy_rows(), steps=100, max_nonfinite=3, **CONSTANT))


def test_data_that_end_are_named():
    with pytest.raises(ValueError, match="ended after 2 of 5 steps"):
        list(train(toy_state(), islice(toy_rows(), 2), steps=5, **CONSTANT))


def test_chance_depends_on_seed_and_step_alone():
    def losses(seed, disturb):
        state = toy_state(dropout=0.2, layer_dropout=0.5)
        found = []
        for metrics in train(state, toy_rows(), steps=4, seed=seed, **CONSTANT):
            found.append(metrics["loss"])
            torch.rand(disturb)
        return found

    assert losses(0, disturb=0) == losses(0, disturb=7)
    assert losses(0, disturb=0) != losses(1, disturb=0)


def test_the_last_blocks_are_skipped_most_and_the_first_never():
    skipped = [skipped_blocks(0, step, 3, 0.6) for step in range(400)]
    shares = [sum(block in it for it in skipped) / 400 for block in range(3)]
    assert shares[0] == 0 and 0.2 < shares[1] < 0.4 and 0.5 < shares[2] < 0.7
    assert skipped_blocks(0, 7, 3, 0.0) == ()


def test_logits_are_never_all_there(monkeypatch):
    """In chunks the losses and gradients are the same, and none of the logits are kept for the backward pass."""
    sizes = []

    def watched(logits, labels):
        sizes.append(logits.numel())
        return _losses(logits, labels)

    monkeypatch.setattr("anyxform.loss._losses", watched)

    def gone_through():
        model, kept = toy_model(), []
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            loss, shares = batch_loss(model, toy_row(0, repeats=8), exits=(1,))
        loss.backward()
        assert not [shape for shape in kept if shape and shape[-1] == 28]  # as many as there are subwords
        return loss, shares, {name: p.grad for name, p in model.named_parameters()}, max(sizes)

    loss, shares, gradients, most = gone_through()
    monkeypatch.setitem(MOST_LOGITS, "cpu", 100)
    chunked, their, same, fewer = gone_through()
    torch.testing.assert_close(chunked, loss)
    assert their.keys() == shares.keys() and all(torch.allclose(their[it][0], shares[it][0]) for it in shares)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, msg=name)
    assert most > 1000 and fewer <= 100


def aligned_row(words, lengths):
    """Texts whose letters a source of so many tokens, all alike, stands for."""
    made = []
    for word, length in zip(words, lengths, strict=True):
        codes = toys()["text"].codes(toys()["text"].preprocess(word))[:, None]
        source = Source("text", torch.ones(length, dtype=torch.long), torch.arange(length)[:, None])
        target = Target("text", codes, torch.arange(len(codes))[:, None], 27, False)
        made.append(Example("key", "text>text", (source,), (marker("text"),), target, aligned=True))
    return pack(made, CONDITIONS)


def test_aligned_sources_spell_their_targets():
    """The loss is the likelihood of all ways to say the target one letter, or nothing, a token.

    Of a model that knows nothing a token says nothing as often as something."""
    model, words = toy_model(), ["ab", "aa", "c"]
    row = aligned_row(words, lengths := [3, 3, 2])
    plain, found = (float(batch_loss(model, row, align_weight=weight)[0].detach()) for weight in (0.0, 2.0))
    (states, _), starts = model.states(row, exits=(2,)), row.segments.starts
    expected = 0.0
    for word, length, start in zip(words, lengths, starts, strict=True):
        logits = model.targets["text"].logits(states[start : start + length])[:, 0]
        p = (logits + torch.tensor([0.0] * 27 + [math.log(27)])).softmax(-1)
        ways = [way for way in product(range(28), repeat=length) if spelt(way) == word]
        expected -= math.log(sum(math.prod(float(p[t, code]) for t, code in enumerate(way)) for way in ways))
    assert found - plain == pytest.approx(2 * expected, rel=1e-4)


def test_aligned_sources_are_read_in_groups_of_about_one_length(monkeypatch):
    words, lengths = ["ab", "a", "abc", "ba", "c"], [9, 2, 5, 2, 3]
    assert alike(lengths, 8) == [[0], [2], [4, 1], [3]] and alike(lengths, 100) == [[0, 2, 4, 1, 3]]

    def gone_through():
        model = toy_model()
        loss = batch_loss(model, aligned_row(words, lengths), align_weight=1.0)[0]
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, gradients = gone_through()
    monkeypatch.setitem(MOST_LOGITS, "cpu", 8 * 28)
    parts, same = gone_through()
    torch.testing.assert_close(parts, whole)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, msg=name)


def spelt(way):
    """What a way to go through the codes says: of equal ones side by side one, and none of the ends between them."""
    return toys()["text"].from_codes(torch.tensor([code for code, _ in groupby(way) if code < 27], dtype=torch.long))


def test_alignment_trains_the_blocks_up_to_where_it_is_read():
    """A target that is longer than its source counts nothing."""
    for lengths, learns in (([4], True), ([1], False)):
        model = toy_model()
        loss = batch_loss(model, aligned_row(["abc"], lengths), align_weight=1.0)[0]
        loss = loss - batch_loss(model, aligned_row(["abc"], lengths))[0]
        loss.backward()
        gradients = [float(block.mlp.down.weight.grad.abs().sum()) for block in model.blocks]
        assert [it > 1e-6 for it in gradients] == [learns, learns, False]


def test_exits_rotate_through_the_early_layers():
    assert [rotating_exit(step, 2, 4) for step in range(8)] == [(1,), (), (2,), (), (3,), (), (1,), ()]
    assert rotating_exit(0, 0, 4) == rotating_exit(0, 1, 1) == ()


def test_early_exits_are_trained():
    """The state after the first block is read better where it was part of the loss."""

    def early_loss(exit_every):
        state, row = toy_state(), toy_row(0)
        for _ in train(
            state, ((row, 0) for _ in range(30)), steps=30, exit_every=exit_every, exit_weight=1.0, **CONSTANT
        ):
            pass
        early, _ = state.model.states(row, exits=(1,))
        target = row.targets["text"]
        return head_losses(state.model.targets["text"], early[target.label_index], target.labels)[1].mean()

    assert early_loss(1) < early_loss(0)


def test_validation_ignores_dropout_and_restores_the_mode():
    model = toy_model(dropout=0.5).train()
    assert validation_loss(model, [toy_row(0)]) == validation_loss(model, [toy_row(0)])
    assert model.training


def test_validation_uses_the_average_and_gives_the_weights_back():
    state = toy_state(ema=0.9)
    list(train(state, toy_rows(), steps=5, **CONSTANT))
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in state.ema.weights.items()}
    with averaged(state) as model:
        for name, tensor in model_tensors(model).items():
            assert torch.equal(tensor, average[name])
        inside = validation_loss(model, [toy_row(0)])[0]
    assert inside != validation_loss(state.model, [toy_row(0)])[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.model.state_dict().items())
    assert all(torch.equal(average[name], tensor) for name, tensor in state.ema.weights.items())
