"""The model card: everything in it was recorded."""

import json
import shutil
from pathlib import Path

import pytest

from anyxform.card import model_card
from anyxform.checkpoint import digest_of_weights, find
from anyxform.cli import main
from tests.tiny import Tiny


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


REPORT = {
    "settings": {"split": "instance", "limit": 50, "seed": 0},
    "summary": [
        {
            "direction": "image>text", "n": 9, "headline": "exact", "lower_is_better": ["wer"],
            "systems": {
                "model": {"exact": interval(0.5), "wer": interval(0.4)},
                "nearest": {"exact": interval(0.6), "wer": interval(0.7)}, "most frequent": {"exact": interval(0.1)},
                "truth": {"exact": interval(1.0)},
            },
            "verdicts": {"exact": "worse"},
        }
    ],
    "directions": [],
}  # fmt: skip


def test_the_card_of_a_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(run_dir, tmp_path / "mine")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "sources.md").write_text("Shapes are mine.")
    options = ["--report", str(tmp_path / "report.json"), "--licences", str(tmp_path / "sources.md")]
    assert main(["card", str(run), *options]) == 0
    assert capsys.readouterr().out.strip() == str(run / "MODEL_CARD.md")
    card = (run / "MODEL_CARD.md").read_text()
    facts = json.loads((run / "checkpoints" / "step-00000006" / "config.json").read_text())["facts"]
    assert card.startswith("# mine\n") and facts["command"] in card and "| steps | 6 |" in card
    assert "| image → text | 2 | image | text:en, text:fr |" in card
    assert "Held out of training: `audio>text:fr`." in card
    assert "| **image>text** | 9 | exact ↑ | 0.5 [0.4, 0.6] | 0.6 (nearest) | worse |" in card
    assert "| wer 0.4 [0.3, 0.5], beside 0.7 (nearest) |" in card
    assert "not clearly better than every baseline: image>text (exact, worse)" in card
    assert card.endswith("Shapes are mine.\n")
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"| 6 | {losses[-1]['loss']:.2f} | {losses[-1]['val_loss']:.2f} |" in card


def test_a_checkpoint_alone_has_a_card(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir / "checkpoints" / "step-00000006", tmp_path / "alone")
    assert main(["card", str(folder), "--title", "Alone", "-o", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text().startswith("# Alone\n")


def test_a_folder_of_reports_is_read_whole(run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    for part in ("captions", "unseen-names"):
        (tmp_path / part).mkdir()
        settings = {"part": part, "split": "test"}
        (tmp_path / part / "report.json").write_text(json.dumps({**REPORT, "settings": settings}))
    assert main(["card", str(run), "--report", str(tmp_path), "-o", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert "## Captions, on the split `test`" in card and "## Unseen names, on the split `test`" in card


def test_what_it_was_trained_with_before_is_named(run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "mine")
    (run / "config-until-00000004.yaml").write_text("{}")
    assert main(["card", str(run)]) == 0
    card = (run / "MODEL_CARD.md").read_text()
    assert "- Up to step 4 it was trained as `config-until-00000004.yaml` says." in card


def test_the_card_of_an_earlier_checkpoint_tells_of_no_later_training(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(tiny.train(run, "train.checkpoint_every=3")) == 0
    (early, *_) = sorted((run / "checkpoints").glob("step-*"))
    steps = int(early.name.removeprefix("step-"))
    last = max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
    assert steps < last
    for before, text in ((steps - 1, "first"), (steps + 1, "second")):
        (run / f"config-until-{before:08d}.yaml").write_text(f"experiment: {text}\n")
    for name, checkpoint in (("early", early), ("late", run)):
        assert main(["card", str(checkpoint), "-o", str(tmp_path / f"{name}.md")]) == 0
    early_card, late_card = ((tmp_path / f"{name}.md").read_text() for name in ("early", "late"))
    assert "](early.svg)" in early_card and "](late.svg)" in late_card
    assert (tmp_path / "early.svg").read_text() != (tmp_path / "late.svg").read_text()
    later = f"config-until-{steps + 1:08d}.yaml"
    assert later in late_card and later not in early_card and f"config-until-{steps - 1:08d}.yaml" in early_card
    assert main(["export", str(early), str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "config.yaml").read_text() == "experiment: second\n"
    assert not (tmp_path / "exported" / later).exists()


def test_little_recorded_is_little_said() -> None:
    config = {"model": {"depth": 2, "dim": 32}, "modalities": {"text": {}}, "conditions": ["to:text"]}
    assert "no other attributes than: none" in model_card("Bare", config)


def test_a_report_on_other_weights_is_refused(run_dir: Path, tmp_path: Path, capsys) -> None:
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    report = {"settings": {"weights": "0" * 16}, "summary": [], "directions": []}
    (tmp_path / "report.json").write_text(json.dumps(report))
    arguments = ["card", str(run_dir), "--report", str(tmp_path / "report.json"), "-o", str(tmp_path / "c.md")]
    assert main(arguments) == 2
    assert "report.json is about other weights than those in" in capsys.readouterr().err
    report["settings"]["weights"] = digest_of_weights(find(run_dir))
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main(arguments) == 0


@pytest.mark.parametrize("content", ["[]", '{"summary": []}', "{", '{"summary": [{}], "directions": []}', None])
def test_what_is_no_report_is_one_line(run_dir: Path, tmp_path: Path, content: str | None, capsys) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["card", str(run_dir), "--report", str(tmp_path / "report.json"), "-o", str(tmp_path / "c.md")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "report.json" in said and not (tmp_path / "c.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "missing"], "there is no checkpoint at missing"),
        (["card", "empty"], "empty holds no checkpoint"),
        (["card", "tokenizer"], "is not that of a model: give the folder of a run"),
        (["card", "run", "--licences", "nope.md"], "there is no file 'nope.md'"),
        (["card", "run", "-o", "nope/card.md"], "there is no folder 'nope' to write card.md into"),
        (["card", "run", "--report", "empty"], "the folder 'empty' holds no report.json"),
        (["card", "damaged"], "metrics.jsonl is damaged"),
    ],
)
def test_a_mistake_is_one_line(run_dir: Path, tmp_path: Path, monkeypatch, arguments, message, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/config.json").write_text('{"modality": "text", "config": {}}')
    for name in ("run", "damaged"):
        shutil.copytree(run_dir, tmp_path / name)
    (tmp_path / "damaged/metrics.jsonl").write_text('{"step": 1, oops}\n')
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("anyxform: error: ") and said.count("\n") == 1


def test_the_card_is_written_from_within_the_checkpoint(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    run = shutil.copytree(run_dir, tmp_path / "mine")
    monkeypatch.chdir(run / "checkpoints" / "step-00000006")
    assert main(["card", "."]) == 0
    assert (run / "checkpoints/step-00000006/MODEL_CARD.md").read_text().startswith("# mine\n")


def test_the_card_tells_of_a_run_before_what_was_shipped_of_it(run_dir: Path) -> None:
    config = json.loads((run_dir / "checkpoints" / "step-00000006" / "config.json").read_text())
    before = {"name": "first", "steps": 9, "averaged": {"share": 0.85, "with": ["other"]}}
    config["facts"]["began_with"] = [before]
    assert "- It began with the weights of first: 9 steps, a mean: 0.85 of its own, the rest of other.\n" in model_card(
        "Mine", config
    )
