"""The order of data: a pure function of (seed, index), exact in its weights and its epochs."""

import tracemalloc
from collections import Counter
from pickle import dumps, loads

import pytest

from anyxform.order import BLOCK, Near, Order

SIZES = {"big": 700, "small": 130, "one": 1}


def draws(order, count, first=0):
    return [order[index] for index in range(first, first + count)]


@pytest.mark.parametrize("weights", [None, {"big": 1.0, "small": 2.0, "one": 0.1}])
def test_every_sample_comes_exactly_once_an_epoch(weights):
    numbers = {name: [] for name in SIZES}
    for draw in draws(Order(SIZES, weights, seed=3), 5 * BLOCK):
        numbers[draw.dataset].append(draw.number)
    for name, size in SIZES.items():
        epochs = [numbers[name][start : start + size] for start in range(0, len(numbers[name]) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs), name
        assert size == 1 or epochs[0] != epochs[1]


def test_weights_are_kept_exactly_in_each_block():
    order = Order(SIZES, {"big": 5.0, "small": 2.0, "one": 1.0}, seed=1)
    for block in (0, 1, 7):
        counts = Counter(draw.dataset for draw in draws(order, BLOCK, block * BLOCK))
        assert counts == {"big": 640, "small": 256, "one": 128}


def test_weights_that_do_not_divide_a_block_are_kept_to_within_one_sample():
    order = Order(SIZES, {"big": 1.0, "small": 1.0, "one": 1.0})
    counts = Counter()
    for block in range(7):
        counts.update(draw.dataset for draw in draws(order, BLOCK, block * BLOCK))
        assert all(abs(counts[name] - (block + 1) * BLOCK / 3) < 1 for name in SIZES)


def test_a_dataset_weighs_its_size_unless_told_otherwise_and_nothing_at_0():
    counts = Counter(draw.dataset for draw in draws(Order({"a": 300, "b": 100}), BLOCK))
    assert counts == {"a": 768, "b": 256}
    assert {draw.dataset for draw in draws(Order({"a": 300, "b": 100}, {"a": 0}), BLOCK)} == {"b"}


def test_datasets_are_mixed_within_a_block():
    names = [draw.dataset for draw in draws(Order({"a": 300, "b": 300}), 64)]
    assert 16 < names.count("a") < 48 and names != sorted(names)


def test_random_access_equals_reading_on():
    reading = draws(Order(SIZES, seed=5), 3 * BLOCK)
    jumping = Order(SIZES, seed=5)
    for index in [3 * BLOCK - 1, 0, BLOCK, 2 * BLOCK + 17, 5, BLOCK - 1]:
        assert jumping[index] == reading[index]
    assert loads(dumps(jumping))[17] == reading[17]


def test_every_seed_is_another_order_and_every_index_has_a_seed_of_its_own():
    first, second = (draws(Order(SIZES, seed=seed), 2 * BLOCK) for seed in (0, 1))
    assert sum(a.number == b.number and a.dataset == b.dataset for a, b in zip(first, second)) < BLOCK / 20
    assert len({draw.seed for draw in first + second}) == 4 * BLOCK


@pytest.mark.parametrize("first", [3_579_133_952, 10**13 // BLOCK * BLOCK])
def test_far_away_indices(first):
    order = Order(dict.fromkeys("abcdefghijklm", 7), dict.fromkeys("abcdefghijklm", 0.1))
    for start in range(first, first + 9 * BLOCK, BLOCK):
        counts = Counter(order[start + place].dataset for place in range(BLOCK))
        assert set(counts.values()) <= {77, 78, 79, 80}


@pytest.mark.parametrize(
    "weights", [{"big": -1}, dict.fromkeys(SIZES, 0), {"one": float("nan")}, {"one": float("inf")}]
)
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match=r"weights of datasets must be 0 or more, and not all 0: .*'small'"):
        Order(SIZES, weights)


def test_what_is_remembered_does_not_grow_with_the_epochs():
    order = Order({"a": 100_000}, seed=1)
    tracemalloc.start()
    draws(order, 2)
    before, _ = tracemalloc.get_traced_memory()
    for epoch in range(1, 20):
        order[epoch * 100_000]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1_000_000


@pytest.mark.parametrize("at_once", [1, 3, 5])
def test_near_samples_come_once_an_epoch_from_few_shards_at_a_time(at_once):
    runs = [40, 10, 70, 30, 50, 0, 60, 40]
    order = Order({"a": 300}, seed=2, near={"a": Near(runs, at_once)})
    shard_of = [shard for shard, count in enumerate(runs) for _ in range(count)]
    for epoch in range(3):
        numbers = [draw.number for draw in draws(order, 300, 300 * epoch)]
        assert sorted(numbers) == list(range(300)) and numbers != sorted(numbers)
        shards = [shard_of[number] for number in numbers]
        first = {shard: shards.index(shard) for shard in shards}
        last = {shard: 299 - shards[::-1].index(shard) for shard in shards}
        open_at_once = [sum(first[s] <= place <= last[s] for s in first) for place in range(300)]
        assert sum(open_at_once) / 300 < at_once + 2.5
    assert [order[i] for i in range(600)] == [loads(dumps(order))[i] for i in range(600)]
