"""Reports: the truth scores perfectly, systems are compared on equal items, pooling counts samples once."""

import json
from dataclasses import replace

import pytest
import torch

from anyxform.evaluate import Item, evaluate
from anyxform.field import Direction
from anyxform.heatmap import draw_heatmap
from anyxform.modality import Score
from tests.toy import ToyText, toys


def make_items(directions=("image>text:fr", "sound>text:fr"), count=12) -> list[Item]:
    modalities, generator = toys(), torch.Generator().manual_seed(0)
    items = []
    for name in directions:
        direction = Direction.parse(name)
        for number in range(count):
            sources = tuple(modalities[field.modality].example(generator) for field in direction.sources)
            reference = modalities[direction.target.modality].example(generator)
            items.append(Item(f"k{number}", direction, sources, reference, text=f"thing {number}"))
    return items


def truth(items):
    return [item.reference for item in items]


class Judged(ToyText):
    """A text whose judge counts letters, and wants less of them."""

    lower_is_better = frozenset({"letters"})

    def judge(self, predicted, references, texts):
        assert len(predicted) == len(references) == len(texts)
        return {"letters": [Score(float(len(value))) for value in predicted]}


def test_the_truth_is_perfect_and_better_than_nonsense():
    items = make_items()
    report = evaluate(items, {"model": truth(items), "nonsense": ["zz"] * len(items)}, toys())
    assert [row.direction for row in report.directions] == ["image>text:fr", "sound>text:fr"]
    for row in report.directions:
        assert row.n == 12 and row.headline == "exact"
        assert row.systems["model"]["exact"].value == row.systems["model"]["exact"].low == 1.0
        assert row.against["nonsense"]["exact"].wins == 1.0 and row.verdict("exact") == "better"


def test_the_same_answers_are_undecided_and_worse_ones_worse():
    items = make_items()
    same = evaluate(items, {"model": truth(items), "same": truth(items)}, toys())
    assert {row.verdict("exact") for row in same.directions} == {"undecided"}
    worse = evaluate(items, {"model": ["zz"] * len(items), "right": truth(items), "worse": ["zz"] * len(items)}, toys())
    assert {row.verdict("exact") for row in worse.directions} == {"worse"}


def test_the_nearest_of_all_references_counts():
    items = make_items(("image>text:fr",), count=2)
    items = [replace(item, reference="aa", alternatives=("bbb",) if item.key == "k0" else ()) for item in items]
    (row,) = evaluate(items, {"model": ["bbb", "bbb"]}, toys()).directions
    assert row.systems["model"]["exact"].value == 0.5
    lower = {**toys(), "text": type("Lower", (ToyText,), {"lower_is_better": frozenset({"exact"})})()}
    (row,) = evaluate(items, {"model": ["aa", "zz"]}, lower).directions
    assert row.systems["model"]["exact"].value == 0.0


def test_pooled_rows_keep_samples_together():
    items = make_items(("image>text:fr", "image>text:de", "sound>text:fr"))
    report = evaluate(items, {"model": truth(items)}, toys())
    assert [(row.direction, row.n) for row in report.summary] == [("image>text", 12), ("sound>text", 12)]


def test_a_system_without_an_answer_is_left_out_there_only():
    items = make_items()
    partial = [item.reference if item.direction.sources[0].modality == "image" else None for item in items]
    by_image, by_sound = evaluate(items, {"model": truth(items), "partial": partial}, toys()).directions
    assert "partial" in by_image.against and "partial" not in by_sound.against


def test_a_judge_gives_the_headline_only_where_every_sample_has_a_text():
    modalities = {**toys(), "text": Judged()}
    items = make_items(("image>text:fr",))
    answers = {"model": ["a"] * len(items), "long": ["aaaa"] * len(items)}
    (row,) = evaluate(items, answers, modalities).directions
    assert (row.headline, row.lower_is_better, row.verdict("letters")) == ("letters", {"letters"}, "better")
    assert row.systems["long"]["letters"].value == 4.0 and row.strongest("letters") == "long"
    assert evaluate(items, answers, modalities, judges=False).directions[0].headline == "exact"
    untold = [Item(item.key, item.direction, item.sources, item.reference) for item in items]
    assert evaluate(untold, answers, modalities).directions[0].headline == "exact"


def test_the_models_own_other_answers_are_no_baselines():
    items = make_items(("image>text:fr",))
    answers = {"model": ["zz"] * len(items), "via text:en": truth(items), "best of 4 by back": truth(items)}
    (row,) = evaluate(items, answers, toys()).directions
    assert row.strongest("exact") is None and not row.to_dict()["verdicts"]
    assert row.against["via text:en"]["exact"].verdict == "worse"
    (row,) = evaluate(items, {**answers, "nearest": ["yy"] * len(items)}, toys()).directions
    assert row.strongest("exact") == "nearest" and row.verdict("exact") == "undecided"


def test_a_report_is_plain_json():
    items = make_items()
    report = evaluate(items, {"model": truth(items), "nonsense": ["zz"] * len(items)}, toys())
    read = json.loads(json.dumps(report.to_dict()))
    assert read["directions"][0]["verdicts"]["exact"] == "better"
    assert read["summary"][0]["systems"]["nonsense"]["exact"]["n"] == 12


@pytest.mark.parametrize("baseline", [True, False])
def test_the_heat_map_is_a_picture(tmp_path, baseline):
    pytest.importorskip("matplotlib")
    items = make_items(("image>text:fr", "text:fr>image", "sound+image>text:fr"))
    answers = {"model": truth(items)} | ({"first": [items[0].reference] * 12 + truth(items)[12:]} if baseline else {})
    draw_heatmap(evaluate(items, answers, toys()).directions, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
