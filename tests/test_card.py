"""The model card: everything in it was recorded."""

import json
import shutil
from pathlib import Path

import pytest

from anyxform.card import model_card
from anyxform.cli import main


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


REPORT = {
    "settings": {"split": "instance", "limit": 50, "seed": 0},
    "summary": [
        {
            "direction": "image>text", "n": 9, "headline": "exact", "lower_is_better": ["wer"],
            "systems": {
                "model": {"exact": interval(0.5), "wer": interval(0.4)},
                "nearest": {"exact": interval(0.6)}, "most frequent": {"exact": interval(0.1)},
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
    assert "| **image>text** | 9 | exact ↑ | 0.5 [0.4, 0.6] | 0.6 (nearest) | worse | wer 0.4 |" in card
    assert "not clearly better than every baseline: image>text (exact, worse)" in card
    assert card.endswith("Shapes are mine.\n")
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"| 6 | {losses[-1]['loss']:.2f} | {losses[-1]['val_loss']:.2f} |" in card


def test_a_checkpoint_alone_has_a_card(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir / "checkpoints" / "step-00000006", tmp_path / "alone")
    assert main(["card", str(folder), "--title", "Alone", "-o", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text().startswith("# Alone\n")


def test_little_recorded_is_little_said() -> None:
    config = {"model": {"depth": 2, "dim": 32}, "modalities": {"text": {}}, "conditions": ["to:text"]}
    assert "no other attributes than: none" in model_card("Bare", config)


@pytest.mark.parametrize("content", ["[]", '{"summary": []}', "{"])
def test_what_is_no_report_is_one_line(run_dir: Path, tmp_path: Path, content: str, capsys) -> None:
    (tmp_path / "report.json").write_text(content)
    assert main(["card", str(run_dir), "--report", str(tmp_path / "report.json"), "-o", str(tmp_path / "c.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "c.md").exists()
