"""The contract, held against every registered modality: ours, and those of any installed package.

A plug-in's author runs it with ``pytest --pyargs`` or copies it: nothing here knows a modality's name.
"""

import math

import pytest
import torch

from anyxform.data import conditions, source, target
from anyxform.field import Field
from anyxform.loss import batch_loss
from anyxform.modality import Modality, Score, registry
from anyxform.model import Transformer
from anyxform.sequence import Example, marker, pack

SEEDS = range(4)
PAIRS = [(one, other) for one in sorted(registry()) for other in sorted(registry())]


@pytest.fixture(scope="module", params=sorted(registry()))
def modality(request: pytest.FixtureRequest) -> Modality:
    return registry()[request.param]()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_examples_come_from_the_generator_alone(modality: Modality) -> None:
    first, again = (modality.preprocess(modality.example(seeded(1))) for _ in range(2))
    assert torch.equal(first, again)


def test_identity(modality: Modality) -> None:
    assert registry()[modality.name] is type(modality)
    assert modality.position_axes in (1, 2, 3)
    assert modality.decoding in ("autoregressive", "masked")
    assert modality.vocab_size > 0 and modality.num_codebooks > 0 and modality.max_length > 0
    assert all(ending == ending.lower().strip(".") for ending in modality.extensions)


def test_extensions_belong_to_one_modality() -> None:
    endings = [ending for plugin in registry().values() for ending in plugin.extensions]
    assert len(endings) == len(set(endings))


@pytest.mark.parametrize("seed", SEEDS)
def test_file_round_trip(modality: Modality, seed: int) -> None:
    value = modality.example(seeded(seed))
    once = modality.load(modality.save(value))
    twice = modality.load(modality.save(once))
    assert torch.equal(modality.preprocess(once), modality.preprocess(twice))


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_fit_the_vocabulary(modality: Modality, seed: int) -> None:
    codes = modality.codes(modality.preprocess(modality.example(seeded(seed))))
    assert codes.dtype == torch.int64
    assert codes.shape[1:] in ((), (modality.num_codebooks,)) and (codes.ndim == 2 or modality.num_codebooks == 1)
    assert 0 < len(codes) <= modality.max_length
    assert not modality.fixed_length or len(codes) == modality.max_length
    assert codes.min() >= 0 and codes.max() < modality.vocab_size


def test_codes_can_be_decoded_to_a_value(modality: Modality) -> None:
    codes = modality.codes(modality.preprocess(modality.example(seeded(0))))
    value = modality.load(modality.save(modality.from_codes(codes)))
    if modality.fixed_length:
        assert modality.codes(modality.preprocess(value)).shape == codes.shape


def test_what_fits_is_one_piece_and_joined_alone_it_is_itself(modality: Modality) -> None:
    value = modality.example(seeded(0))
    (piece,) = modality.split(value)
    assert torch.equal(modality.preprocess(piece.value), modality.preprocess(value))
    (merged,) = modality.merge([value], [piece])
    assert modality.save(modality.join([merged], [piece])) == modality.save(value)
    if not modality.joins:
        with pytest.raises(ValueError, match="cannot be joined"):
            modality.join([value, value], [piece, piece])


def test_words_take_all_codes_in_their_order(modality: Modality) -> None:
    codes = modality.codes(modality.preprocess(modality.example(seeded(0))))
    words = modality.words_of(codes)
    assert words and all(count > 0 for _, count in words) and sum(count for _, count in words) == len(codes)


def test_any_codes_can_be_decoded(modality: Modality) -> None:
    """A model may produce whatever it likes."""
    length = modality.max_length if modality.fixed_length else min(8, modality.max_length)
    codes = torch.randint(modality.vocab_size, (length, modality.num_codebooks), generator=seeded(0))
    modality.save(modality.from_codes(codes))
    if modality.num_codebooks == 1:
        modality.save(modality.from_codes(codes.squeeze(1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_positions(modality: Modality, seed: int) -> None:
    tensor = modality.preprocess(modality.example(seeded(seed)))
    length = len(modality.codes(tensor))
    for positions in (modality.source_positions(tensor), modality.code_positions(length)):
        assert positions.dtype == torch.int64
        assert positions.shape[1] == modality.position_axes
        assert positions.min() == 0
        assert len(positions.unique(dim=0)) == len(positions)
    assert len(modality.code_positions(length)) == length


def test_front_end_gives_a_token_for_each_position(modality: Modality) -> None:
    tensors = [modality.preprocess(modality.example(seeded(seed))) for seed in SEEDS]
    front_end = modality.front_end(32)
    embeddings = front_end(torch.cat(tensors), [len(tensor) for tensor in tensors])
    counts = [len(modality.source_positions(tensor)) for tensor in tensors]
    assert embeddings.shape == (sum(counts), 32) and embeddings.isfinite().all()
    alone = [front_end(tensor, [len(tensor)]) for tensor in tensors]
    torch.testing.assert_close(embeddings, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_augmentation_is_for_training_and_from_the_generator(modality: Modality) -> None:
    value = modality.example(seeded(0))
    plain = modality.preprocess(value)
    assert torch.equal(plain, modality.preprocess(value, train=False, generator=seeded(5)))
    torch.manual_seed(0)
    first = modality.preprocess(value, train=True, generator=seeded(5))
    torch.manual_seed(1)
    assert torch.equal(first, modality.preprocess(value, train=True, generator=seeded(5)))
    assert first.shape[1:] == plain.shape[1:] and first.dtype == plain.dtype
    assert torch.equal(plain, modality.preprocess(value)), "preprocessing changed the value"


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00 no file \x80\x81" * 9], ids=["empty", "broken"])
def test_bytes_that_cannot_be_read_are_one_clear_line(modality: Modality, data: bytes) -> None:
    with pytest.raises(ValueError) as error:
        modality.load(data)
    message = str(error.value)
    assert 10 < len(message) < 300 and "\n" not in message


def test_a_part_that_there_is_not_is_one_clear_line(modality: Modality) -> None:
    """Whether a modality has parts that can be edited or not."""
    for name_part in (modality.region, modality.extended):
        with pytest.raises(ValueError) as error:
            name_part("no such part", modality.example(seeded(0)))
        message = str(error.value)
        assert 10 < len(message) < 300 and "\n" not in message


@pytest.mark.parametrize("seed", SEEDS)
def test_a_value_is_a_perfect_prediction_of_itself(modality: Modality, seed: int) -> None:
    value, other = (modality.example(seeded(s)) for s in (seed, seed + len(SEEDS)))
    perfect, imperfect = modality.metrics(value, value), modality.metrics(other, value)
    assert perfect and perfect.keys() == imperfect.keys()
    for name, score in perfect.items():
        assert math.isfinite(score.value) and score.weight > 0
        if name in modality.lower_is_better:
            assert score.value == pytest.approx(0, abs=1e-6)
            assert imperfect[name].value >= score.value
        else:
            assert imperfect[name].value <= score.value


def test_the_judge_gives_one_verdict_a_prediction(modality: Modality) -> None:
    values = [modality.example(seeded(seed)) for seed in SEEDS]
    for scores in modality.judge(values, values, [f"thing {seed}" for seed in SEEDS]).values():
        assert len(scores) == len(values) and all(isinstance(score, Score) for score in scores)


def same_again(modality: Modality) -> Modality:
    again = type(modality)(**modality.config())
    again.load_state({name: tensor.clone() for name, tensor in modality.state().items()})
    return again


def test_config_and_state_rebuild_a_fitted_modality() -> None:
    for name, plugin in registry().items():
        fitted = plugin()
        values = [fitted.example(seeded(seed)) for seed in range(8)]
        progress = list(fitted.fit(values, steps=2, seed=0))
        assert progress and progress[-1]["step"] == progress[-1]["steps"], name
        again = same_again(fitted)
        assert again.config() == fitted.config() and again.vocab_size == fitted.vocab_size, name
        for value in values:
            tensor = fitted.preprocess(value)
            assert torch.equal(again.preprocess(value), tensor), name
            assert torch.equal(again.codes(tensor), fitted.codes(tensor)), name
        report = again.report(values)
        assert report and all(math.isfinite(value) for value in report.values()), name
        assert 0 < report["codebook_usage"] <= 1, name


def test_fitting_is_a_function_of_its_seed(modality: Modality) -> None:
    values = [modality.example(seeded(seed)) for seed in range(4)]

    def fit(seed: int) -> dict[str, torch.Tensor]:
        fresh = type(modality)(**modality.config())
        list(fresh.fit(values, steps=1, seed=seed))
        return fresh.state()

    first, again = fit(3), fit(3)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("wrong", [{"surely_not_a_tensor": torch.zeros(1)}], ids=["foreign"])
def test_a_foreign_state_is_refused(modality: Modality, wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        modality.load_state(wrong)


def example(origin: Modality, wanted: Modality, generator: torch.Generator) -> Example:
    codes = wanted.codes(wanted.preprocess(wanted.example(generator)))
    return Example(
        key="one",
        direction=f"{origin.name}>{wanted.name}",
        sources=(source(origin, origin.example(generator), wanted.name, train=True, generator=generator),),
        conditions=conditions(Field(wanted.name)),
        target=target(wanted, codes.reshape(len(codes), -1), generator),
    )


@pytest.mark.parametrize(("origin", "wanted"), PAIRS, ids=[f"{one}>{other}" for one, other in PAIRS])
def test_every_pair_trains(origin: str, wanted: str) -> None:
    modalities = {name: registry()[name]() for name in {origin, wanted}}
    torch.manual_seed(0)
    names = [marker(name) for name in modalities]
    model = Transformer(modalities=modalities, conditions=names, dim=32, depth=1, num_heads=2).train()
    generator = seeded(0)
    examples = [example(modalities[origin], modalities[wanted], generator) for _ in range(2)]
    batch = pack(examples, model.condition_ids)
    before = [parameter.clone() for parameter in model.front_ends[origin].parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(2):
        loss, _ = batch_loss(model, batch)
        optimizer.zero_grad()
        (loss / batch.num_labels).backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[0]) and losses[1] < losses[0]
    after = list(model.front_ends[origin].parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after)), "no gradient reaches the source"
