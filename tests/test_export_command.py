"""`anyxform export`: the same model in a smaller folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyxform import load
from anyxform.cli import main
from anyxform.progress import thinned


def exported(run_dir: Path, out: Path, *options: str) -> Path:
    assert main(["export", str(run_dir), str(out), *options]) == 0
    return out


def test_an_export_answers_as_the_checkpoint_does(run_dir: Path, tmp_path: Path, capsys) -> None:
    out = exported(run_dir, tmp_path / "small", "--dtype", "fp32")
    assert str(out) in capsys.readouterr().out
    first, second = load(run_dir), load(out)
    assert first("a red disc", to="text:fr") == second("a red disc", to="text:fr")
    assert first.facts == second.facts
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_half_the_size_is_as_near_as_bfloat16_is(run_dir: Path, tmp_path: Path) -> None:
    out = exported(run_dir, tmp_path / "small")
    for name in ("model", "modalities"):
        tensors = load_file(out / f"{name}.safetensors").values()
        assert {it.dtype for it in tensors if it.is_floating_point()} == {torch.bfloat16}
    own = load(run_dir).model.state_dict()
    for name, tensor in load(out).model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, own[name], rtol=2**-8, atol=0), name


def test_the_runs_losses_and_its_config_go_with_it(run_dir: Path, tmp_path: Path) -> None:
    out = exported(run_dir, tmp_path / "small")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(pair.count(":") == 0 for line in lines for pair in line["directions"])
    assert (out / "config.yaml").read_bytes() == (run_dir / "config.yaml").read_bytes()
    assert main(["card", str(out)]) == 0
    assert "![The loss of every pair of modalities](training.svg)" in (out / "MODEL_CARD.md").read_text()
    assert (out / "training.svg").read_text().startswith("<svg xmlns=")


def test_long_journals_are_thinned_to_means() -> None:
    journal = [
        {"step": n, "loss": float(n), "directions": {"image>text:en": n, "image>text:fr": n + 2}} for n in range(10)
    ]
    journal[3]["val_loss"], journal[4]["loss"] = 7.0, None
    lines = thinned(journal, points=3)
    assert [line["step"] for line in lines] == [3, 7, 9]
    assert lines[0] == {"step": 3, "loss": 1.5, "val_loss": 7.0, "directions": {"image>text": 2.5}}
    assert lines[1]["loss"] == 6.0 and "val_loss" not in lines[1]


def test_weights_are_averaged_with_those_of_another(run_dir: Path, tiny, tmp_path: Path) -> None:
    words = (f"model.init_from={run_dir}", "train.steps=2", "optim.lr=1e-2", "train.ema=null")
    assert main(tiny.train(tmp_path / "run", *words)) == 0
    out = exported(tmp_path / "run", tmp_path / "mean", "--dtype", "fp32", "--average", str(run_dir), "--share", "0.25")
    before, after, mean = (load(path).model.state_dict() for path in (run_dir, tmp_path / "run", out))
    assert before.keys() == after.keys() == mean.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.25 * after[name] + 0.75 * before[name])
    assert not torch.equal(before["blocks.0.mlp.down.weight"], after["blocks.0.mlp.down.weight"])
    assert main(["card", str(out)]) == 0
    assert f"a mean: 0.25 of its own, the rest of {run_dir.name}" in (out / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "out", "--share", "0.5"], "--share is for a mean: add --average OTHER"),
        (["run", "out", "--average", "run", "--format", "onnx"], "--average is for weights"),
        (["run", "out", "--average", "nowhere"], "there is no checkpoint at nowhere"),
        (["run", "out", "--average", "run", "--share", "2"], "a share of 2.0 is not possible"),
        (["run", "out", "--average", "starter"], "weights of other shapes have no mean"),
        (["nowhere", "out"], "there is no checkpoint at nowhere"),
        (["run", "there"], "there is 'there' already"),
        (["run", "out", "--dtype", "fp16"], "invalid choice: 'fp16'"),
    ],
)
def test_a_mistake_is_one_line(run_dir: Path, tmp_path: Path, monkeypatch, arguments, message, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to(run_dir)
    assert main(["export", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("anyxform: error: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
