"""Scaling laws: what made the points is found again, and the command reads runs as they lie on the disk."""

import json
from itertools import product
from pathlib import Path

import pytest

from anyxform.cli import main
from anyxform.scaling import Law, Point, fit_law
from tests.tiny import Tiny

TRUE = Law(floor=1.7, a=400, alpha=0.34, b=410, beta=0.28, error=0)
SIZES, TOKENS = {"small": 3e6, "middle": 11e6, "large": 30e6}, (2e6, 4e6, 8e6, 16e6)


def points(odd: float = 0.0) -> list[Point]:
    made = [Point(n, d, TRUE.loss(n, d)) for n, d in product(SIZES.values(), TOKENS)]
    return [Point(made[0].parameters, made[0].tokens, made[0].loss + odd), *made[1:]]


def test_a_law_is_found_again_from_its_points() -> None:
    law = fit_law(points())
    assert law.alpha == pytest.approx(TRUE.alpha, rel=0.02) and law.beta == pytest.approx(TRUE.beta, rel=0.02)
    assert law.floor == pytest.approx(TRUE.floor, rel=0.02) and law.error < 1e-4
    assert law.loss(7e6, 1e8) == pytest.approx(TRUE.loss(7e6, 1e8), rel=1e-3)


def test_one_odd_point_does_not_turn_it() -> None:
    law = fit_law(points(odd=0.5))
    assert law.loss(11e6, 16e6) == pytest.approx(TRUE.loss(11e6, 16e6), rel=0.01)


def test_the_best_size_is_the_bottom_of_the_valley() -> None:
    operations = 1e16
    parameters, tokens = TRUE.best_size(operations)
    assert 6 * parameters * tokens == pytest.approx(operations)
    for factor in (0.8, 1.25):
        other = parameters * factor
        assert TRUE.loss(other, operations / 6 / other) > TRUE.loss(parameters, tokens)
    assert TRUE.best_size(100 * operations)[0] > parameters


def test_too_little_to_fit_is_said() -> None:
    with pytest.raises(ValueError, match="2 sizes of model with at least 4 losses each are too few"):
        fit_law([point for point in points() if point.parameters < 20e6])


def run_folder(folder: Path, parameters: float, rate: float, steps: int = 20) -> Path:
    """A run whose losses are those of the law, without its weights."""
    last = folder / "checkpoints" / f"step-{steps:08d}"
    last.mkdir(parents=True)
    tokens = 1e6 * steps
    facts = {"parameters": int(parameters), "tokens": tokens, "steps": steps, "seconds": tokens / rate}
    (last / "config.json").write_text(json.dumps({"facts": facts}))
    lines = [{"step": step, "val_loss": TRUE.loss(parameters, 1e6 * step)} for step in range(1, steps + 1)]
    lines[4].pop("val_loss")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(run_folder(Path(name), size, 3e10 / size)) for name, size in SIZES.items()]


def test_the_command_states_the_right_size_and_how_many_tokens(
    runs: list[str], tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--fit", *runs, "--hours", "1", "1000"]) == 0
    plan = json.loads(Path("plan/plan.json").read_text())
    assert plan["law"]["alpha"] == pytest.approx(TRUE.alpha, rel=0.05)
    assert [len(run["points"]) for run in plan["runs"]] == [17, 17, 17], "without the first tenth and the one without"
    early, late = plan["advice"]
    # the rate of operations is the same for all sizes here, so the best size is the law's own
    for line in plan["advice"]:
        best, _ = TRUE.best_size(6 * 3e10 * 3600 * line["hours"])
        assert line["best_parameters"] == pytest.approx(best, rel=0.1)
        assert line["loss"] == pytest.approx(TRUE.loss(line["best_parameters"], line["tokens"]), rel=0.01)
        rates = {name: TRUE.loss(size, 3e10 / size * 3600 * line["hours"]) for name, size in SIZES.items()}
        assert line["of_the_runs"] == min(rates, key=lambda name: rates[name])
    assert early["of_the_runs"] == "small" and late["of_the_runs"] == "large"
    said = capsys.readouterr().out
    assert "parameters^0.3" in said and "large (30.0 M)" in said and "◀" in said
    assert main(["plan", *tiny.train(None)[1:], "--gpu", "h100", "--law", "plan/plan.json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    parameters, tokens = told["parameters"], told["tokens_advised"]
    law = Law(**plan["law"])
    for factor in (0.9, 1.1):  # with so many the model has the best size for what they cost
        assert law.loss(factor * parameters, tokens / factor) > law.loss(parameters, tokens)
    assert told["tokens"] == tokens == pytest.approx(TRUE.best_tokens(parameters), rel=0.2)


def test_the_law_is_drawn(runs: list[str]) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    assert main(["plan", "--fit", *runs, "-o", "there"]) == 0
    assert min(Image.open("there/scaling.png").size) > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h100", "model=smal"], "there is no config 'model/smal': did you mean 'small'?"),
        (["--fit", "small", "--tokens", "no"], "invalid float value: 'no'"),
        (["--fit", "nowhere"], "there is no checkpoint at nowhere"),
        (["--fit", "small", "large"], "2 sizes of model"),
        (["--fit", "small", "--skip", "1"], "--skip 1 is not possible"),
        (["--fit", "small", "--hours", "0"], "--hours 0 is not possible"),
        (["--fit", "small/checkpoints"], "is no whole run: give the run_dir"),
    ],
)
def test_a_mistake_is_one_line(runs: list[str], arguments: list[str], message: str, capsys) -> None:
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("anyxform: error: ") and said.count("\n") == 1
