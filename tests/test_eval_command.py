"""`anyxform eval`: a report with intervals beside the baselines, on what was asked for; mistakes are one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyxform.cli import main
from anyxform.cli.build import prepared, typed
from anyxform.cli.conf import compose
from anyxform.cli.eval import suited, with_own_data
from anyxform.dataset import open_datasets
from anyxform.field import Direction, Field
from anyxform.pipeline import load
from anyxform.selection import choose_items, texts_of
from tests.tiny import Tiny, tone, write_shard

TRAINED = {
    "image>text:en", "image>text:fr", "audio>text:en", "text:en>image", "text:fr>image", "text:en>audio",
    "text:fr>audio",
}  # fmt: skip
BASELINES = {"most frequent", "nearest", "shuffled"}


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["direction"]: row for row in report(folder)["directions"]}


@pytest.fixture(scope="module")
def done(tiny: Tiny, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "out"
    assert main(tiny.evaluate(run_dir, f"out={out}", "limit=6")) == 0
    return out


def test_every_trained_direction_with_new_media_is_judged(done: Path) -> None:
    """Texts alone are the same in every split, and what is held out in training is not asked for by default."""
    assert set(rows(done)) == TRAINED
    assert {row["direction"] for row in report(done)["summary"]} == {
        "image>text",
        "audio>text",
        "text>image",
        "text>audio",
    }


def test_what_has_no_compiled_step_is_named(tiny: Tiny, run_dir: Path, tmp_path: Path, capsys) -> None:
    words = ["compile=true", "limit=1", "baselines=false", f"out={tmp_path}", "directions=[image>text:en]"]
    assert main(tiny.evaluate(run_dir, *words, "sampling={num_beams: 2}")) == 0
    assert "not compiled, as there is no compiled step for num_beams=2\n" in capsys.readouterr().err


def test_a_run_is_judged_on_its_own_data(tiny: Tiny, run_dir: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Which its config.yaml names; and on the first of the splits that these have."""
    monkeypatch.chdir(run_dir / "checkpoints")
    for number, folder in enumerate((run_dir, run_dir / "checkpoints", "step-00000006")):
        out = tmp_path / str(number)
        assert main(["eval", str(folder), "limit=1", "baselines=false", "judges=false", f"out={out}"]) == 0
        assert set(rows(out)) == TRAINED and report(out)["settings"]["split"] == "instance"
        assert f"on the data that it was trained with: {tiny.root}" in capsys.readouterr().err


def test_a_checkpoint_without_a_manifest_is_judged(tiny: Tiny, checkpoint: Path, tmp_path: Path) -> None:
    """As it can be used."""
    assert not (checkpoint / "manifest.json").exists()
    arguments = ("limit=1", "baselines=false", "directions=[image>text:en]", f"out={tmp_path}")
    assert main(tiny.evaluate(checkpoint, *arguments)) == 0
    assert "weights" not in report(tmp_path)["settings"]


def test_one_key_of_its_own_data_can_be_another(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(run_dir), "judges=false", f"out={tmp_path / 'out'}"]
    assert main([*arguments, f"data.root={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main([*arguments, "data.rot=elsewhere"]) == 2
    said = capsys.readouterr().err
    assert "no config key is called 'data.rot': did you mean 'data.root'?" in said and said.count("\n") == 1
    assert main(["eval", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("anyxform: error: there is no checkpoint at")


@pytest.mark.parametrize("text", ["data: {root: '${oc.env:HOME}'}", "data: [", "- data", "data: none"])
def test_a_config_beside_a_checkpoint_looks_nothing_up(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert with_own_data(str(tmp_path), ["limit=1"]) == (["limit=1"], False)


def test_values_come_with_their_number_and_interval(done: Path) -> None:
    for name, row in rows(done).items():
        assert row["n"] == 6, name
        for metrics in row["systems"].values():
            for it in metrics.values():
                assert it["low"] <= it["value"] <= it["high"] and it["n"] == 6
    assert {"exact", "wer", "chrf"} <= set(rows(done)["image>text:en"]["systems"]["model"])


def test_baselines_answer_the_same_items(done: Path) -> None:
    for name, row in rows(done).items():
        assert {"model"} | BASELINES == set(row["systems"]), name
        assert set(row["against"]) == BASELINES and set(row["verdicts"].values()) <= {"better", "worse", "undecided"}
    nearest = rows(done)["text:en>image"]["systems"]["nearest"]["psnr"]
    assert nearest["value"] > rows(done)["text:en>image"]["systems"]["model"]["psnr"]["value"], "six steps teach little"


def test_tables_are_printed(tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("limit=2", f"out={tmp_path}", "baselines=false", "split=val", "directions=[image>text:*]", "seed=7")
    assert main(tiny.evaluate(run_dir, *arguments)) == 0
    said = capsys.readouterr()
    lines = [line.split("│") for line in said.out.splitlines() if "image>text:" in line]
    assert [cells[1].strip() for cells in lines] == ["image>text:en", "image>text:fr"]
    value = rows(tmp_path)["image>text:en"]["systems"]["model"]["exact"]
    expected = f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    assert [cell.strip() for cell in lines[0][2:5]] == ["2", "exact ↑", expected]
    assert f"written to {tmp_path}" in said.err
    assert report(tmp_path)["settings"]["split"] == "val" and report(tmp_path)["settings"]["seed"] == 7


def test_directions_that_were_never_trained_can_be_asked_for(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    patterns = "directions=[audio>text:fr, image>audio, image+text:en>text:fr, text>text]"
    assert main(tiny.evaluate(run_dir, patterns, "limit=2", f"out={tmp_path}", "hold_out=[audio>text:en]")) == 0
    assert set(rows(tmp_path)) == {"audio>text:fr", "image>audio", "image+text:en>text:fr"}


def test_options_of_generation_and_the_seed_change_answers(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    common = ("directions=text:en>image", "baselines=false", "limit=4")
    for name, changes in (("a", ()), ("again", ()), ("b", ("sampling={guidance: 5}", "sampling.steps=1"))):
        assert main(tiny.evaluate(run_dir, *common, *changes, f"out={tmp_path / name}")) == 0
    values = {name: rows(tmp_path / name)["text:en>image"]["systems"] for name in ("a", "again", "b")}
    assert values["a"] == values["again"] != values["b"]


def test_without_baselines_no_training_data_are_needed(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    arguments = ("limit=1", "directions=text:en>image", "baselines_split=none", f"out={tmp_path}")
    assert main(tiny.evaluate(run_dir, *arguments, "baselines=false")) == 0
    assert set(rows(tmp_path)["text:en>image"]["systems"]) == {"model"}


def test_the_heat_map_is_a_picture(done: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    assert min(Image.open(done / "heatmap.png").size) > 200


def test_without_matplotlib_all_but_the_picture_is_there(
    tiny: Tiny, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [it for it in sys.modules if it.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(tiny.evaluate(run_dir, "limit=1", "baselines=false", f"out={tmp_path}")) == 0
    assert "the heat map needs matplotlib: pip install 'anyxform[eval]'\n" in capsys.readouterr().err
    assert rows(tmp_path) and not (tmp_path / "heatmap.png").exists()


def test_results_go_beside_those_of_other_runs(
    tiny: Tiny, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(tiny.evaluate(run_dir, "limit=1", "baselines=false", "directions=image>text:en")) == 0
    assert rows(Path("eval/tiny/step-00000006"))["image>text:en"]["n"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=tset"], "no dataset has shards of the split 'tset' under"),
        (["baselines_split=none"], "no dataset has shards of the split 'none' under"),
        (["limit=0"], "candidates=1, limit=0: give 1 or more"),
        (["candidates=0"], "candidates=0, limit=1: give 1 or more"),
        (["rank=bakc"], "rank='bakc' is"),
        (["split=2024"], "no dataset has shards of the split '2024' under"),
        (["suite=tiny", "suite.captions.limit=all"], "suite.captions.limit=all is not possible: give a number"),
        (["suite=tiny", "suite.captions=some"], "suite.captions=some is not possible: give keys and values"),
        (["sampling={align_weight: 0.5}"], "align_weight=0.5 is not possible: this model has learnt"),
        (["data.datasets.shapes={shard: x}"], "data.datasets.shapes"),
        (["directions=[text>text]"], "the split 'instance' holds nothing to judge this model on"),
        (["directions=[image>text:de]"], "holds nothing to judge this model on"),
        (["directions=[image]"], "'image' is not a pattern of directions: write source>target"),
        (["limit=some"], "limit=some is not possible: give a number"),
        (["sampling={stesp: 3}"], "no option is called 'stesp': did you mean 'steps'?"),
        (["sampling={steps: 0}"], "steps=0 is not possible: give 1 or more"),
        (["sampling={steps: ten}"], "steps='ten' is not possible: give a whole number"),
        (["sampling={steps: 2.5}"], "steps=2.5 is not possible: give a whole number"),
        (["sampling={temperature: hot}"], "temperature='hot' is not possible: give a number"),
        (["device=gpu"], "the device 'gpu' cannot be used"),
        (["data.root=/nowhere"], "there is no folder '/nowhere' of shards"),
        (["suite=wrong"], "suite.captions.splti is unknown: did you mean 'split'?"),
        (["suite=tyni"], "there is no config 'suite/tyni': known: starter, tiny, wrong"),
        (["datasets=[shaeps]"], "have no 'shaeps': did you mean 'shapes'?; see data="),
        (["via=video"], "this model makes no 'video'"),
        (["lmit=3"], "no config key is called 'lmit': did you mean 'limit'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    overrides: list[str], message: str, tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.evaluate(run_dir, "limit=1", f"out={tmp_path / 'out'}", *overrides)) == 2
    said = capsys.readouterr()
    *_, last = said.err.splitlines()
    assert last.startswith("anyxform: error: ") and message in last and "Traceback" not in said.err and not said.out
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_is_named_before_the_data_are_read(
    tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.evaluate(run_dir, "suite=tiny", "+suite.untrained.sampling={stesp: 3}", f"out={tmp_path}")) == 2
    assert "reading the training data" not in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_not_there_is_named(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tiny.evaluate(Path("nowhere"))) == 2
    assert capsys.readouterr().err.startswith("anyxform: error: there is no checkpoint at nowhere: give the folder")


def test_a_checkpoint_may_have_any_name(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my run, (dim=32)"
    odd.symlink_to(run_dir)
    assert main(tiny.evaluate(odd, "limit=1", "baselines=false", "directions=image>text:en", f"out={tmp_path}")) == 0
    assert report(tmp_path)["settings"]["checkpoint"] == str(odd)


# Suites


def test_each_part_of_a_suite_has_a_report_of_its_own(
    tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.evaluate(run_dir, "suite=tiny", f"out={tmp_path}")) == 0
    captions, untrained = report(tmp_path / "captions"), report(tmp_path / "untrained")
    assert {row["direction"]: row["n"] for row in captions["directions"]} == {"image>text:en": 3, "image>text:fr": 3}
    assert captions["settings"]["part"] == "captions" and captions["settings"]["limit"] == 3
    (row,) = untrained["directions"]
    assert row["direction"] == "audio>text:fr" and set(row["systems"]) == {"model", "via text:en"}
    assert "untrained, split instance" in capsys.readouterr().out


def test_a_part_on_data_that_are_not_there_is_left_out(
    tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not all of the starter's datasets are in the repository."""
    elsewhere = "+data.datasets.far={shards: 'far/{split}-*.tar'}"
    arguments = ("suite=tiny", elsewhere, f"out={tmp_path}", "baselines=false")
    assert main(tiny.evaluate(run_dir, "+suite.captions.datasets=[far]", *arguments)) == 0
    assert "without captions: no shards of far in" in capsys.readouterr().err
    assert (tmp_path / "untrained").is_dir() and not (tmp_path / "captions").exists()
    both = ("+suite.captions.datasets=[far]", "+suite.untrained.datasets=[far]")
    assert main(tiny.evaluate(run_dir, *both, *arguments)) == 2
    assert "no dataset has shards of the split" in capsys.readouterr().err


def test_by_way_of_another_field_is_two_steps_of_the_same_model(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    """By way of itself: what came out first is translated once more, and scored like any other answer."""
    arguments = ("directions=[audio>text:fr]", "via=text:en", "baselines=false", "limit=4", f"out={tmp_path}")
    assert main(tiny.evaluate(run_dir, *arguments)) == 0
    data, ax = tiny.root / "shapes/instance-000000.tar", load(run_dir)
    datasets = {"shapes": {"shards": [str(data)], "fields": {"text:*": "json.text.*"}}}
    items = choose_items(
        open_datasets(datasets, ax.modalities, root=str(tiny.root), split="instance"), ax.modalities,
        patterns=["audio>text:fr"], limit=4,
    ).items  # fmt: skip
    first = ax.answer(
        [Direction(it.direction.sources, Field("text", "en")) for it in items], [i.sources for i in items]
    )
    second = ax.answer([Direction.parse("text:en>text:fr")] * 4, [(text,) for text in first])
    scores = [ax.modalities["text"].metrics(answer, item.reference)["cer"] for answer, item in zip(second, items)]
    expected = sum(it.value * it.weight for it in scores) / sum(it.weight for it in scores)
    assert rows(tmp_path)["audio>text:fr"]["systems"]["via text:en"]["cer"]["value"] == pytest.approx(expected)


def test_texts_of_the_training_data_can_be_left_out(tiny: Tiny, run_dir: Path, tmp_path: Path, capsys) -> None:
    """Also those that are written in another way; not those of another language."""
    texts = {"a": {"en": "A RED SQUARE."}, "b": {"en": "a brown square"}, "c": {"fr": "a red square"}}
    wav = tone("red", "disc", torch.Generator())
    made = [{"__key__": k, "en.wav": wav, "json": json.dumps({"text": t}).encode()} for k, t in texts.items()]
    write_shard(tmp_path / "own.tar", made)
    ax, fields = load(run_dir), {"text:*": "json.text.*"}
    train, test = (
        open_datasets({"it": {"shards": str(shards), "fields": fields}}, ax.modalities)
        for shards in (tiny.root / "shapes/train-*.tar", tmp_path / "own.tar")
    )
    seen = texts_of(train, ax.modalities)
    assert ("en", "aredsquare") in seen and len(seen) == 24
    for known, keys in (((), {"a", "b", "c"}), (seen, {"b", "c"})):
        found = choose_items(test, ax.modalities, patterns=["audio:en>text"], seen=known)
        assert {item.key.removeprefix("it/") for item in found.items} == keys
    assert main(tiny.evaluate(run_dir, "unseen_texts=true", "directions=[audio>text]", f"out={tmp_path}")) == 2
    assert "holds nothing to judge this model on" in capsys.readouterr().err


def test_the_shipped_checkpoint_is_judged_on_its_suite() -> None:
    assert set(compose("eval", ["suite=starter"])["suite"]) == set(compose("eval", suited("starter", []))["suite"])
    assert "suite" not in compose("eval", suited("runs/mine", [])) and suited("starter", ["split=test"]) == [
        "split=test"
    ]
    assert suited("starter", ["sampling.steps=4"]) == ["suite=starter", "sampling.steps=4"]


# What is done to overrides before hydra sees them, and to configs behind it


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("directions=[image>text:*, audio+text:en>text]", "directions=['image>text:*', 'audio+text:en>text']"),
        ("directions=image>text", "directions='image>text'"),
        ("directions=['image>text']", "directions=['image>text']"),
        ("hold_out=[]", "hold_out=[]"),
        ("sampling={steps: 3}", "++sampling={steps: 3}"),
        ("sampling.steps=3", "++sampling.steps=3"),
        ("~modality@modality.audio", "~modality@modality.audio"),
    ],
)
def test_overrides_need_no_quotes_or_pluses(override: str, expected: str) -> None:
    assert prepared([override]) == [expected]


def test_numbers_are_made_whole_or_refused() -> None:
    defaults = {"a": {"steps": 10, "rate": 0.1, "flag": True, "none": None}, "directions": {"x": 1}}
    given = {"a": {"steps": 1e4, "rate": 1, "flag": False, "none": "b"}, "directions": {"x": 0.5}, "new": "c"}
    assert typed(given, defaults) == given and type(typed(given, defaults)["a"]["steps"]) is int
    for bad, message in (({"steps": 1.5}, "a whole number"), ({"rate": "b"}, "a number"), ({"flag": 1}, "true or")):
        with pytest.raises(ValueError, match=rf"a\.{next(iter(bad))}=.* is not possible: give {message}"):
            typed({"a": bad}, defaults)
