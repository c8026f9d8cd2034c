"""Baselines: each is what it says, on toy data where the right answer is known."""

import pytest
import torch

from anyxform.baselines import TrainingSet, copied, features, shuffled
from anyxform.evaluate import Item, evaluate
from anyxform.field import Direction, Field
from tests.toy import toys

TEXT, FRENCH, IMAGE, SOUND = Field("text", "en"), Field("text", "fr"), Field("image"), Field("sound")
GRIDS = [(0, 0, 0, 1, 1, 1), (7, 7, 7, 6, 6, 6), (3, 4, 3, 4, 3, 4)]
NAMES = ["apple", "cat", "dog"]


def training(names=NAMES):
    samples = [{IMAGE: grid, TEXT: name, FRENCH: f"{name} {name}"} for grid, name in zip(GRIDS, names)]
    return [*samples, {IMAGE: (5, 5, 5, 5, 5, 5), SOUND: ((1, 2), (3, 4))}]  # samples may lack fields


def item(direction, *sources, reference="dog", key="k"):
    return Item(key, Direction.parse(direction), sources, reference)


def find(names=NAMES, directions=("image>text:en",)):
    return TrainingSet(training(names), toys(), [Direction.parse(direction) for direction in directions])


def test_the_nearest_neighbour_of_a_training_source_is_itself():
    items = [item("image>text:en", grid) for grid in GRIDS]
    assert find().nearest(items) == NAMES
    assert find(directions=["text:en>image"]).nearest([item("text:en>image", name) for name in NAMES]) == GRIDS


def test_the_nearest_neighbour_of_something_alike_is_what_it_is_like():
    assert find().nearest([item("image>text:en", (0, 0, 0, 1, 1, 2))]) == ["apple"]
    assert find(directions=["text:en>image"]).nearest([item("text:en>image", "catt")]) == [GRIDS[1]]


def test_only_samples_that_hold_the_target_can_be_neighbours():
    assert find().nearest([item("image>text:en", (5, 5, 5, 5, 5, 5))])[0] in NAMES


def test_every_variant_of_a_source_is_looked_at():
    """A text in a language that no target was paired with still finds the sample by another language's text."""
    found = find(directions=["text:de>image"]).nearest([item("text:de>image", "cat cat")])
    assert found == [GRIDS[1]]


def test_several_sources_vote_together():
    items = [item("image+text:fr>text:en", GRIDS[0], "apple apple"), item("image+text:fr>text:en", GRIDS[1], "cat cat")]
    assert find(directions=["image+text:fr>text:en"]).nearest(items) == ["apple", "cat"]


def test_the_most_frequent_target():
    assert find(["cat", "cat", "dog"]).most_frequent([item("image>text:en", GRIDS[2])] * 2) == ["cat", "cat"]


def test_a_target_field_that_training_lacks_is_answered_by_another_variant():
    assert find(directions=["image>text:de"]).most_frequent([item("image>text:de", GRIDS[0])])[0] is not None
    assert find(directions=["image>sound:x"]).nearest([item("image>sound:x", GRIDS[0])]) == [((1, 2), (3, 4))]


def test_what_cannot_be_read_is_passed_over():
    """A sample, or one of its values."""

    class Broken(dict):
        def __getitem__(self, field):
            if field == IMAGE:
                raise ValueError("undecodable")
            return super().__getitem__(field)

    class Some(list):
        def __getitem__(self, number):
            if number == 1:
                raise ValueError("no JSON")
            return super().__getitem__(number)

    samples = training()
    known = TrainingSet(Some([Broken(samples[0]), *samples[1:]]), toys(), [Direction.parse("image>text:en")])
    assert known.nearest([item("image>text:en", grid) for grid in GRIDS]) == ["dog"] * 3


def test_shuffled_answers_move_within_their_direction():
    items = [item("image>text:en", GRIDS[0], key=str(n)) for n in range(5)]
    items += [item("image>text:fr", GRIDS[0], key=str(n)) for n in range(5)]
    answers = list(range(10))
    moved = shuffled(items, answers, seed=3)
    assert sorted(moved[:5]) == answers[:5] and sorted(moved[5:]) == answers[5:]
    assert all(a != b for a, b in zip(moved, answers))
    assert moved == shuffled(items, answers, seed=3)


def test_shuffled_is_worse_than_exact():
    items = [item("image>text:en", GRIDS[0], reference=word, key=word) for word in ("a", "b", "c", "d", "e", "f")]
    exact = [item.reference for item in items]
    (row,) = evaluate(items, {"model": exact, "shuffled": shuffled(items, exact)}, toys()).directions
    assert row.systems["shuffled"]["exact"].value == 0.0 and row.verdict("exact") == "better"


def test_copies_are_made_where_source_and_target_are_alike():
    items = [
        item("text:en>text:fr", "a"),
        item("image+text:en>text:fr", GRIDS[0], "b"),
        item("image>text:fr", GRIDS[0]),
    ]
    assert copied(items) == ["a", "b", None]


@pytest.mark.parametrize("length", [1, 3, 50])
def test_features_have_one_size(length):
    generator = torch.Generator().manual_seed(0)
    assert features(torch.rand(length, 3, 40, 5, generator=generator)).shape == (8 * 3 * 16 * 5,)
    assert features(torch.randint(9, (length,), generator=generator)).shape == features(torch.tensor([1])).shape


def test_features_keep_the_order_of_ids():
    assert not torch.equal(features(torch.tensor([1, 2, 3])), features(torch.tensor([3, 2, 1])))
