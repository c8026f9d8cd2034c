"""Rows: one stream whatever the number of workers, exact from any position, nothing lost and nothing cut unsaid."""

import io
import json
import re
import tarfile
import tracemalloc
from itertools import islice

import pytest
import torch

from anyxform.data import OVERHEAD, Codes, Counts, Examples, condition_names, conditions, target
from anyxform.dataset import Dataset, extensions_of
from anyxform.directions import Directions
from anyxform.field import Field
from anyxform.order import Order
from anyxform.rows import Rows, balance, merged
from anyxform.sequence import marker
from tests.toy import ToyImage, ToySound, ToyText, toys

WORDS = ("frog", "blue fish", "a", "some rather long caption", "tiger")
ANY = {"*>*": 1.0}


def sample(number):
    """Members of a whole sample: a grid in one style, a sound of 1 to 9 pairs, texts in two languages."""
    word = WORDS[number % len(WORDS)]
    return {
        "json": {"text": {"en": word, "fr": word[::-1]}},
        "line.grid": [(number + place) % 8 for place in range(6)],
        "fr-phone.snd": [(number % 8, place % 8) for place in range(1 + number % 9)],
    }


def shard(path, samples):
    """A dataset of samples given as {ending: content}; strings are written as they are."""
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for ending, content in members.items():
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                info = tarfile.TarInfo(f"{path.stem}{number:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return Dataset(path.stem, [path], extensions=extensions_of(toys()), fields={"text:*": "json.text.*"})


@pytest.fixture
def datasets(tmp_path):
    return {
        "a": shard(tmp_path / "a.tar", [sample(number) for number in range(40)]),
        "b": shard(tmp_path / "b.tar", [{"json": {"text": {"en": "yes", "fr": "oui"}}} for _ in range(7)]),
    }


def rows(datasets, modalities=None, **options):
    found = modalities or toys()
    ids = {name: number for number, name in enumerate(condition_names(datasets, found))}
    chosen = {"directions": ANY, "tokens_per_row": 128, "pool": 16, "seed": 3}
    return Rows(datasets, found, ids, **(chosen | options))


def plain(value):
    """A row as nested lists, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return {name: plain(item) for name, item in vars(value).items()} if hasattr(value, "__dict__") else value


def stream(rows, count, position=None):
    return [(plain(batch), position) for batch, position in islice(rows.from_position(position), count)]


def examples(datasets, count=400, modalities=None, directions=ANY, **options):
    """The first examples and what was counted."""
    order = Order({name: len(dataset) for name, dataset in datasets.items()})
    made, counts = Examples(datasets, modalities or toys(), Directions(directions), order, **options), Counts()
    return [example for index in range(count) if (example := made(index, counts))], counts


# The stream


@pytest.mark.parametrize(("num_workers", "start"), [(1, 0), (2, 5)])
def test_workers_give_the_same_rows_in_the_same_order_from_any_position(datasets, num_workers, start):
    position = stream(rows(datasets), start)[-1][1] if start else None
    alone, shared = rows(datasets), rows(datasets, num_workers=num_workers)
    assert stream(shared, 16, position) == stream(alone, 16, position)
    assert (shared.counts, shared.padding) == (alone.counts, alone.padding)


def test_every_position_is_followed_by_the_rest_of_the_stream(datasets):
    expected = stream(rows(datasets), 14)
    assert len({position["pool"][0] for _, position in expected}) > 2
    assert all(position["row"][0] < len(rows(datasets).pool(position["pool"][0])[0]) for _, position in expected)
    assert any(position["row"][0] > 0 for _, position in expected)
    for number in range(13):
        assert stream(rows(datasets), 13 - number, expected[number][1]) == expected[number + 1 :]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_the_rows_of_a_step(datasets, num_workers):
    """Three lanes: in one process, and dealt to two; from the start and from a position that both have reached."""
    expected = stream(rows(datasets, lanes=3), 30)
    assert [batch for batch, _ in expected[:1]] == [batch for batch, _ in stream(rows(datasets), 1)]

    def shared(steps, position=None):
        options = {"lanes": 3, "num_workers": num_workers}
        first = stream(rows(datasets, own=[0, 2], **options), 2 * steps, position)
        return first, stream(rows(datasets, own=[1], **options), steps, position)

    first, second = shared(10)
    dealt = [[first[2 * step][0], second[step][0], first[2 * step + 1][0]] for step in range(10)]
    assert [batch for step in dealt for batch in step] == [batch for batch, _ in expected]
    assert merged([first[-1][1], second[-1][1]]) == expected[-1][1]
    first, second = shared(4, expected[17][1])
    assert [first[0][0], second[0][0], first[1][0]] == [batch for batch, _ in expected[18:21]]


def test_as_many_lanes_as_the_run_had(datasets):
    position = stream(rows(datasets, lanes=2), 1)[0][1]
    with pytest.raises(ValueError, match=r"the run had train\.rows_per_step=2, not 3: resume with that"):
        next(rows(datasets, lanes=3).from_position(position))


def test_a_position_behind_a_changed_pool_goes_on_with_the_next(datasets):
    """A mixture that is changed where a run goes on may give its pool fewer rows than the run had read of it."""
    found = rows(datasets)
    beyond = {"pool": [0], "row": [len(found.pool(0)[0])]}
    assert stream(found, 3, beyond) == stream(rows(datasets), 3, {"pool": [1], "row": [0]})


def test_another_seed_is_another_stream(datasets):
    assert stream(rows(datasets), 1) != stream(rows(datasets, seed=4), 1)


def test_augmentation_is_a_function_of_the_position_and_absent_from_validation(datasets):
    options = {"directions": {"image>text": 1}, "condition_dropout": 0}
    first, again, plain_rows = (rows(datasets, train=train, **options).pool(0)[0] for train in (True, True, False))
    values = [[row.sources["image"].values.tolist() for row in pool] for pool in (first, again, plain_rows)]
    assert values[0] == values[1] != values[2]
    shifted = [row for pool in values[2] for row in pool]
    assert all((row[place] + 1) % 8 == row[place + 1] for row in shifted for place in range(5))


# Pools and rows


def test_every_example_of_a_pool_is_in_exactly_one_row(datasets):
    stream = rows(datasets)
    batches, counts = stream.pool(2)
    made = [stream.examples(index, Counts()) for index in range(32, 48)]
    assert counts.samples == 16 and None not in made
    assert sorted(key for batch in batches for key in batch.keys) == sorted(example.key for example in made)
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, made))
    lengths = sorted(length for batch in batches for length in batch.segments.lengths)
    assert lengths == sorted(map(len, made))


@pytest.mark.parametrize("pad", [False, True])
def test_rows_are_padded_to_one_size_or_not_at_all(datasets, pad):
    batches, _ = rows(datasets, pad=pad).pool(0)
    assert len(batches) > 1
    for batch in batches:
        assert 0 < batch.num_tokens <= 128
        assert batch.size == len(batch.positions) == (128 if pad else batch.num_tokens)


def test_padding_is_what_full_rows_do_not_fill(datasets):
    found = rows(datasets, pool=256)
    assert found.padding == 1
    batches = [batch for batch, position in islice(found.from_position(), len(found.pool(0)[0]))]
    assert found.padding == pytest.approx(1 - sum(b.num_tokens for b in batches) / (128 * len(batches)))
    assert found.padding < 0.05


@pytest.mark.parametrize(
    ("lengths", "full"),
    [
        ([5], [5]),
        ([6] * 3, [6, 6, 6]),
        ([10, 1, 1, 1], [3, 10]),
        ([3, 7, 2, 8, 4, 6], [10, 10, 10]),
        ([1] * 21, [7, 7, 7]),
        ([4] * 5, [4, 8, 8]),
        ([5, 5, 4, 3, 3], [10, 10]),
    ],
)
def test_balance_fills_few_rows_evenly(lengths, full):
    found = balance(lengths, 10)
    assert sorted(number for row in found for number in row) == list(range(len(lengths)))
    assert sorted(sum(lengths[number] for number in row) for row in found) == full


# What is left out, and said


def test_a_broken_sample_is_skipped_counted_and_named(tmp_path):
    samples = [sample(number) for number in range(40)]
    samples[3] = {"json": '{"text": '}
    samples[5]["line.grid"] = "no grid"
    found = rows({"a": shard(tmp_path / "a.tar", samples)}, directions={"image>text": 1}, max_broken=1, pool=40)
    batches, counts = found.pool(0)
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == [f"a{number:03d}" for number in range(40) if number not in (3, 5)]
    assert (counts.samples, counts.broken, counts.without_direction) == (40, 2, 0)
    named = sorted(counts.reasons)
    assert named[0].startswith(f"{tmp_path / 'a.tar'}: a003: its .json is broken")
    assert named[1].startswith(f"{tmp_path / 'a.tar'}: a005 (image:line>text:") and "not a grid" in named[1]


def test_too_many_broken_samples_stop_the_run(tmp_path):
    samples = [sample(number) for number in range(40)]
    samples[5]["line.grid"] = samples[6]["line.grid"] = "no grid"
    datasets = {"a": shard(tmp_path / "a.tar", samples)}
    options = {"directions": {"image>text": 1}, "pool": 40}
    assert len(stream(rows(datasets, max_broken=0.06, **options), 60)) == 60
    with pytest.raises(
        ValueError, match=r"10 of 200 samples are broken, more than data\.max_broken=0\.04: .*not a grid"
    ):
        stream(rows(datasets, max_broken=0.04, **options), 60)


def test_samples_without_a_direction_are_counted_and_not_broken(datasets):
    found = rows(datasets, directions={"image>text": 1}, pool=47)
    batches, counts = found.pool(0)
    texts_only = sum(found.examples.order[index].dataset == "b" for index in range(47))
    assert (counts.samples, counts.without_direction, counts.broken) == (47, texts_only, 0)
    assert sum(len(batch.keys) for batch in batches) == 47 - texts_only < 47


def test_too_long_examples_are_counted_and_never_cut(datasets):
    whole, cut = rows(datasets, pool=47), rows(datasets, pool=47, tokens_per_row=20)
    all_keys = [key for batch in whole.pool(0)[0] for key in batch.keys]
    batches, counts = cut.pool(0)
    fitting = [e for index in range(47) if len(e := whole.examples(index, Counts())) <= 20]
    assert sorted(key for batch in batches for key in batch.keys) == sorted(example.key for example in fitting)
    assert counts.broken == len(all_keys) - len(fitting) > 0
    assert all("tokens are more than data.tokens_per_row=20" in reason for reason in counts.reasons)
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, fitting))


def test_nothing_to_train_on_in_a_row_of_pools_stops_the_run(datasets):
    found = rows(datasets, directions={"image>text": 1}, weights={"a": 1e-9, "b": 1})
    with pytest.raises(ValueError, match="160 samples in a row gave nothing to train on: no sample has a direction"):
        next(found.from_position())


def test_directions_that_no_sample_has(datasets):
    with pytest.raises(
        ValueError, match=r"fits data\.directions=\['image>video'\]: the data have \['image:line', 'sound"
    ):
        rows(datasets, directions={"image>video": 1})


def test_a_modality_that_is_left_out_is_no_field(datasets):
    modalities = {"text": ToyText(), "image": ToyImage()}
    found, counts = examples(datasets, modalities=modalities)
    assert counts.broken == 0
    assert {modality for example in found for modality in example.direction.split(">")} == {
        "image:line",
        "text:en",
        "text:fr",
    }


def test_damaged_shards_stop_the_run_unless_any_damage_is_taken(tmp_path):
    dataset = shard(tmp_path / "a.tar", [sample(0), sample(1)])
    dataset.damage += ["a.tar: broken header", "a.tar: no end"]
    with pytest.raises(
        ValueError, match=r"^a\.tar: broken header \(and 1 more\): copy the shard again .* data\.max_broken=1$"
    ):
        rows({"a": dataset})
    assert rows({"a": dataset}, max_broken=1).counts.reasons == dataset.damage


# Examples


def test_condition_names_are_all_attributes_and_markers(datasets):
    names = ["en", "fr", "line", "phone", "to:image", "to:sound", "to:text"]
    assert condition_names(datasets, toys()) == names
    assert conditions(Field("sound", "fr-phone")) == ("fr", "phone", marker("sound"))


def test_condition_dropout_leaves_the_sources_out(datasets):
    assert all(not e.sources for e in examples(datasets, condition_dropout=1)[0])
    assert all(len(e.sources) == 1 for e in examples(datasets, condition_dropout=0)[0])
    dropped = [not e.sources for e in examples(datasets, condition_dropout=0.25)[0]]
    assert 0.15 < sum(dropped) / len(dropped) < 0.35
    assert all(e.sources for e in examples(datasets, condition_dropout=1, train=False)[0])


def test_a_share_of_targets_learns_the_other_way_of_decoding(datasets):
    """And the rest of the data are what they were."""
    own, other = (examples(datasets, other_decoding=share)[0] for share in (0, 1))
    masked = {modality.name for modality in toys().values() if modality.decoding == "masked"}
    for one, turned in zip(own, other):
        assert (one.target.hidden is not None) == (one.target.modality in masked) != (turned.target.hidden is not None)
        assert torch.equal(one.target.codes, turned.target.codes) and one.conditions == turned.conditions
    some = [e.target.hidden is None for e in examples(datasets, other_decoding=0.3)[0] if e.target.modality in masked]
    assert 0.15 < sum(some) / len(some) < 0.45
    assert [e.target.hidden is None for e in examples(datasets, other_decoding=1, train=False)[0]] == [
        e.target.hidden is None for e in own
    ]
    with pytest.raises(ValueError, match=r"data\.other_decoding=2 is no share: give 0 to 1"):
        examples(datasets, other_decoding=2)
    (name, *_), others = sorted(masked), {modality for modality in toys() if modality not in masked}
    for each in examples(datasets, other_decoding={name: 1})[0]:
        assert (each.target.hidden is None) == (each.target.modality in {name} | others)
    with pytest.raises(ValueError, match=r"data\.other_decoding names 'imag': did you mean 'image'"):
        examples(datasets, other_decoding={"imag": 1})


def test_targets_are_aligned_with_a_source_that_is_there(datasets):
    made = examples(datasets, aligned=["sound:fr-phone>text:fr"], condition_dropout=0.5)[0]
    named = [e for e in made if e.direction == "sound:fr-phone>text:fr"]
    assert {bool(e.sources) for e in named} == {True, False}
    assert all(e.aligned == (bool(e.sources) and e.direction == "sound:fr-phone>text:fr") for e in made)


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("text", "write source>target"),
        (">text", "write source>target"),
        ("image+sound>text", "write source>target"),
        ("sound>txt", "did you mean 'text'"),
        ("text>sound", "sound is not a sequence of one code a token"),
        ("text>image", "image is not a sequence of one code a token"),
    ],
)
def test_only_sequences_of_one_code_a_token_are_aligned(datasets, pattern, reason):
    with pytest.raises(ValueError, match=f"data.aligned: '{re.escape(pattern)}' is not possible: {reason}"):
        examples(datasets, aligned=[pattern])


def test_attribute_dropout_keeps_the_marker_and_at_most_all_attributes_but_the_last(datasets):
    sounds = {"directions": {"*>sound": 1}}
    asked = {e.conditions for e in examples(datasets, attribute_dropout=1, **sounds)[0]}
    assert asked == {("fr", "to:sound"), ("to:sound",)}
    assert {e.conditions for e in examples(datasets, attribute_dropout=0, **sounds)[0]} == {("fr", "phone", "to:sound")}
    assert {e.conditions for e in examples(datasets, attribute_dropout=1, train=False, **sounds)[0]} == {
        ("fr", "phone", "to:sound")
    }


def test_an_example_holds_the_samples_own_values(datasets):
    found, _ = examples(datasets, directions={"image+text:en>text:fr": 1}, train=False)
    example = next(e for e in found if e.key == "a008")
    image, text = example.sources
    assert (image.modality, image.values.tolist()) == ("image", [[0, 1, 2, 3, 4, 5]])
    assert ToyText().from_codes(text.values) == "some rather long caption"
    assert ToyText().from_codes(example.target.codes[:, 0]) == "noitpac gnol rehtar emos"


def test_codes_are_kept_up_to_a_size():
    class Counting(ToyText):
        loaded = 0

        def load(self, data):
            type(self).loaded += 1
            return super().load(data)

    codes = Codes({"text": Counting()}, keep=2 * (3 + OVERHEAD))
    places = [("a", number, Field("text")) for number in range(3)]
    for number in (0, 1, 0, 2, 0):
        assert codes(places[number], lambda: b"bad").tolist() == [[2], [1], [4]]
    assert Counting.loaded == 3
    codes(places[1], lambda: b"bad")
    assert Counting.loaded == 4
    codes(places[2], lambda: b"abcdef")  # takes the place of two
    assert Counting.loaded == 5 and list(codes._kept) == [places[2]]
    small = Codes({"text": Counting()}, keep=OVERHEAD)
    assert small(places[0], lambda: b"bad").tolist() == [[2], [1], [4]] and not small._kept


@pytest.mark.parametrize("modality", [ToyImage(), ToySound()])
def test_a_masked_target_hides_at_least_one_token_and_sometimes_all(modality):
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(6)[:, None].expand(6, modality.num_codebooks)
    hidden = torch.stack([target(modality, codes, generator).hidden for _ in range(500)]).sum(dim=1)
    assert hidden.min() == 1 and hidden.max() == 6
    assert 3.8 < hidden.float().mean() < 4.8  # 6 · 2/π, rounded up to whole tokens
    assert int(target(modality, codes[:1], generator).hidden.sum()) == 1


def test_which_tokens_are_hidden_is_chosen_evenly():
    generator = torch.Generator().manual_seed(1)
    codes = torch.zeros(6, 1, dtype=torch.long)
    share = torch.stack([target(ToyImage(), codes, generator).hidden for _ in range(1000)]).float().mean(dim=0)
    assert share.max() - share.min() < 0.08


def test_a_target_is_described_by_its_modality(datasets):
    made = target(ToyText(), torch.tensor([[3], [4]]))
    assert (made.modality, made.special_id, made.fixed_length, made.hidden) == ("text", 27, False, None)
    assert made.positions.tolist() == [[0], [1]]
    assert target(ToyText(), torch.tensor([[3]]), masked=True).hidden.tolist() == [True]
    assert target(ToyImage(), torch.zeros(6, 1, dtype=torch.long), masked=False).hidden is None


def test_memory_does_not_grow_with_the_samples_that_are_read(datasets):
    stream = rows(datasets).from_position()
    for _ in range(60):
        next(stream)
    tracemalloc.start()
    for _ in range(30):
        next(stream)
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(150):
        next(stream)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000
