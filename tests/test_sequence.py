"""Packing: tokens, positions, labels and segments, written out by hand."""

from dataclasses import replace

import pytest
import torch

from anyxform.sequence import Example, Source, Target, marker, pack, to_axes

IDS = {"fr": 0, marker("text"): 1, marker("image"): 2}


def line(n):
    return torch.arange(n)[:, None]


def caption(codes=(5, 6, 7)):
    grid = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    source = Source("image", torch.ones(1, 3, 4, 4), grid)
    target = Target("text", torch.tensor(codes)[:, None], line(len(codes)), special_id=9, fixed_length=False)
    return Example("k1", "image>text:fr", (source,), ("fr", marker("text")), target)


def drawing(hidden=(True, False, True, True), fixed=True):
    source = Source("text", torch.tensor([3, 4]), line(2))
    grid = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    target = Target("image", torch.tensor([[1], [2], [3], [4]]), grid, 8, fixed, torch.tensor(hidden))
    return Example("k2", "text>image", (source,), (marker("image"),), target)


def test_a_left_to_right_segment():
    batch = pack([caption()], IDS)
    assert (batch.size, batch.num_tokens, batch.segments.prefixes, batch.segments.targets) == (9, 9, [6], [3])
    assert batch.positions[:4].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert batch.positions[4:, 0].tolist() == [2, 3, 4, 5, 6]  # one past the largest of the picture
    text = batch.targets["text"]
    assert text.labels[:, 0].tolist() == [5, 6, 7, 9]  # and then the end
    assert text.label_index.tolist() == [5, 6, 7, 8]  # each is read from the token before it
    assert text.inputs[:, 0].tolist() == [5, 6, 7]


def test_targets_along_their_sources_begin_where_these_do():
    batch = pack([caption(), drawing(), caption((1,))], IDS, size=32)
    along = batch.along({"text", "image"})
    assert torch.equal(along[:6], batch.positions[:6])  # the picture, and what is asked for
    assert along[6:9].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert along[12:16].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert not along[batch.num_tokens :].any()


def test_targets_of_some_modalities_alone_run_along_their_sources():
    batch = pack([caption(), drawing()], IDS)
    assert torch.equal(batch.along(()), batch.positions) and torch.equal(batch.along({"audio"}), batch.positions)
    text = batch.along({"text"})
    assert text[6:9].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]] and torch.equal(text[9:], batch.positions[9:])


def test_a_masked_segment_hides_what_it_asks_for():
    image = pack([drawing()], IDS).targets["image"]
    assert image.inputs[:, 0].tolist() == [8, 2, 8, 8]
    assert image.labels[:, 0].tolist() == [1, 3, 4]
    assert image.label_index.tolist() == [3, 5, 6]
    assert len(image.length_index) == 0


def test_a_masked_target_of_variable_length_has_its_length_read_from_the_marker():
    image = pack([caption(), drawing(fixed=False)], IDS).targets["image"]
    assert image.length_index.tolist() == [9 + 2]
    assert image.length_labels.tolist() == [4]


def test_the_source_of_an_aligned_example_is_kept_beside_its_codes():
    batch = pack([caption(), replace(caption(), aligned=True), drawing(), replace(caption((1,)), aligned=True)], IDS)
    text = batch.alignments["text"]
    assert text.index.tolist() == [9, 10, 11, 12, 25, 26, 27, 28] and text.lengths == [4, 4]
    assert text.labels.tolist() == [5, 6, 7, 1] and text.label_lengths == [3, 1]
    assert pack([caption(), drawing()], IDS).alignments == {}


def test_segments_stand_side_by_side_and_padding_behind():
    batch = pack([caption(), drawing(), caption((1,))], IDS, size=32)
    assert batch.segments.starts == [0, 9, 16]
    assert (batch.size, batch.num_tokens, batch.positions.shape) == (32, 23, (32, 3))
    assert batch.directions == ["image>text:fr", "text>image"]
    assert batch.targets["text"].label_directions.tolist() == [0] * 6
    assert batch.num_labels == 4 + 3 + 2
    index = torch.cat([batch.condition_index, *(s.index for s in batch.sources.values())])
    index = torch.cat([index, *(t.index for t in batch.targets.values())])
    assert sorted(index.tolist()) == list(range(23))  # every token is filled exactly once


def test_what_does_not_fit_or_is_not_known_is_refused():
    with pytest.raises(ValueError, match="do not fit into a row of 10"):
        pack([caption(), drawing()], IDS, size=10)
    with pytest.raises(ValueError, match="knows no 'fr'"):
        pack([caption()], {marker("text"): 0})


def test_axes():
    assert to_axes(torch.tensor([[3]])).tolist() == [[3, 3, 3]]
    assert to_axes(torch.tensor([[3, 4]])).tolist() == [[0, 3, 4]]
    assert to_axes(torch.tensor([[2, 3, 4]])).tolist() == [[2, 3, 4]]
