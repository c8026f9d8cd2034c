"""Going by way of another field: as two steps, and as the evaluation table says."""

import json
import shutil
from pathlib import Path

import pytest

import anyxform
from anyxform.cli import main
from anyxform.field import Direction, Field
from anyxform.pipeline import Pipeline
from anyxform.routes import best_route, table
from anyxform.sampling import FAR
from tests.tiny import Tiny


def row(direction: str, direct: float, *, n: int = 10, lower: bool = False, metric: str = "chrf", **via: float) -> dict:
    names = {name: "image" if name == "image" else f"text:{name}" for name in via}
    systems = {"model": direct} | {f"via {names[name]}": value for name, value in via.items()}
    return {"direction": direction, "n": n, "metric": metric, "lower_is_better": lower, "systems": systems}


@pytest.fixture
def ax(checkpoint: Path, tmp_path: Path) -> Pipeline:
    """From a folder of its own, so that a table can be put beside it."""
    return anyxform.load(str(shutil.copytree(checkpoint, tmp_path / "mine")), device="cpu")


def keep(ax: Pipeline, *rows: dict) -> None:
    assert ax.path is not None
    (ax.path / "evaluation.json").write_text(json.dumps({"format": 1, "rows": rows}))


# Two steps


def test_by_way_of_a_field_is_two_steps(ax: Pipeline) -> None:
    half = ("image", ax("a red disc", to="image", seed=3))
    assert ax("a red disc", to="text:fr", via="image", seed=3) == ax(half, to="text:fr", seed=3)
    assert ax("a red disc", to="text:fr", via="image", seed=3) != ax("a red disc", to="text:fr", seed=3)
    with pytest.raises(ValueError, match="knows no variant 'xx'"):
        ax("a red disc", to="image", via="text:xx")


def test_options_are_those_of_the_last_step(ax: Pipeline) -> None:
    sound = ax("a red disc", to="audio", via="image", length=7)
    assert sound.seconds == pytest.approx(7 * 0.05, abs=0.05)


def test_on_the_command_line(ax: Pipeline, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "a red disc", "a blue disc", "--to", "text:en", "--checkpoint", "mine"]
    assert main([*command, "--via", "image"]) == 0
    lines = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ax(f"a {it} disc", to="text:en", via="image", seed=seed) for seed, it in enumerate(("red", "blue"))
    ]
    assert main([*command, "--via", "auto"]) == 2
    assert "via=auto needs mine/evaluation.json, which is not there: judge the checkpoint" in capsys.readouterr().err
    keep(ax, row("text:fr>text:en", 1, image=2))
    assert main([*command, "--via", "auto"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == lines


def test_candidates_on_the_command_line(ax: Pipeline, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--to", "text:en", "--checkpoint", "mine", "-n", "4", "--temperature", "1", "--length", "6"]
    assert main(["run", "a red disc", "", "a blue disc", *options]) == 1
    said = capsys.readouterr()
    assert "the text is empty" in said.err
    first, second = (line.split("\t")[1] for line in said.out.splitlines())
    assert first in {ax("a red disc", to="text:en", temperature=1.0, length=6, seed=k << FAR) for k in range(4)}
    assert second in {ax("a blue disc", to="text:en", temperature=1.0, length=6, seed=2 + (k << FAR)) for k in range(4)}


# The choice


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("text:fr>text:en", 5, de=4)], None),
        ([row("text:fr>text:en", 5, de=6, bg=7)], "text:bg"),
        ([row("text:fr>text:en", 5, de=6, bg=7, lower=True)], None),
        ([row("text:fr>text:en", 5, de=4, lower=True)], "text:de"),
        ([row("text:fr>text:en", 5, de=6, n=10), row("text:bg>text:en", 5, de=4, n=90)], None),
        ([row("text:fr>text:en", 5, de=6), row("text:bg>text:en", 9, de=1, metric="exact")], "text:de"),
        ([row("text:fr>text:de", 5, bg=9), row("text:fr>text:en", 5)], None),
        ([row("text:fr>text:en", 5, de=5)], None),
    ],
)
def test_the_better_way_is_taken(rows: list[dict], expected: str | None) -> None:
    """As measured on the same samples, from whatever variant of the source."""
    assert best_route(rows, Direction.parse("text>text:en")) == (expected and Field.parse(expected))


def test_what_was_not_judged_goes_directly_if_it_was_trained() -> None:
    direction, trained = Direction.parse("image>text:en"), [Direction.parse("image:noto>text:en")]
    assert best_route([], direction, trained) is None
    with pytest.raises(ValueError, match="image>text:en was neither trained nor judged: say via=FIELD"):
        best_route([row("image>text:fr", 1)], direction, [])


def test_a_broken_table_is_named(ax: Pipeline) -> None:
    keep(ax, {"direction": "text>text:en"})
    with pytest.raises(ValueError, match="is no table of anyxform card --report"):
        ax("a red disc", to="text:en", via="auto")


def test_the_table_comes_from_reports(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    """What `anyxform eval` found by way of a field is what via=auto goes by; it goes along with exported weights."""
    run, out = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "eval"
    arguments = ("directions=[audio>text:fr]", "via=text:en", "baselines=false", "limit=4", f"out={out}")
    assert main(tiny.evaluate(run, *arguments)) == 0
    assert main(["card", str(run), "--report", str(out)]) == 0
    ax = anyxform.load(str(run))
    assert ax.path is not None
    (found,) = json.loads((ax.path / "evaluation.json").read_text())["rows"]
    report = json.loads((out / "report.json").read_text())
    assert {"format": 1, "rows": [found]} == table([report])
    assert found["direction"] == "audio>text:fr" and set(found["systems"]) == {"model", "via text:en"}
    better = found["systems"]["via text:en"] > found["systems"]["model"]
    assert ax.route(Direction.parse("audio>text:fr"), "auto") == (Field("text", "en") if better else None)
    assert main(["export", str(run), str(tmp_path / "small")]) == 0
    assert (tmp_path / "small/evaluation.json").read_bytes() == (ax.path / "evaluation.json").read_bytes()
