"""`anyxform edit`: rounds on files and texts, with a history beside the file that is taken back."""

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest

import anyxform
from anyxform.cli import main
from anyxform.edit import Session
from tests.tiny import PNG, WAV


@pytest.fixture
def edit(here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["edit", *arguments, "--checkpoint", str(checkpoint)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_picture_is_edited_round_by_round_and_back(edit, checkpoint: Path) -> None:
    first = ("--prompt", "a blue disc", "--keep", "0,0,16,8", "--seed", "1")
    assert edit("disc.png", *first, "-o", "out.png") == (0, "out.png\n", "")
    once = Path("out.png").read_bytes()
    original, edited = (PIL.Image.open(path).convert("RGB") for path in ("disc.png", "out.png"))
    assert edited.crop((0, 0, 16, 8)).tobytes() == original.crop((0, 0, 16, 8)).tobytes() != edited.tobytes()
    assert edit("out.png", "--extend", "0,0,8,0", "--source", "disc.wav", "-o", "out.png", "--steps", "2")[0] == 0
    twice = Path("out.png").read_bytes()
    rounds = json.loads(Path("out.png.edits/history.json").read_text())["rounds"]
    again = Session(anyxform.load(str(checkpoint)), "out.png.edits/000.png", rounds)
    assert again.pipeline.modalities["image"].save(again.value) == twice
    assert edit("out.png", "--undo") == (0, "out.png\n", "") and Path("out.png").read_bytes() == once
    assert edit("out.png", "--undo")[0] == 0
    assert PIL.Image.open("out.png").tobytes() == original.tobytes() and Path("disc.png").read_bytes() == PNG
    assert edit("out.png", "--undo")[2] == "anyxform: error: there is nothing to undo: 'out.png' is what it was\n"


def test_a_file_is_edited_in_place(edit) -> None:
    assert edit("disc.png", "--redo", "0,0,16,16", "-o", "disc.png")[0] == 0
    assert Path("disc.png").read_bytes() != PNG
    assert edit("disc.png", "--undo")[0] == 0 and Path("disc.png").read_bytes() == PNG


def test_candidates_are_kept_beside_the_best(edit) -> None:
    options = ("--redo", "0,0,16,16", "--prompt", "a disc", "-n", "3", "--temperature", "3")
    code, out, _ = edit("disc.png", *options, "-o", "out.png")
    scores, paths = zip(*(line.split("\t") for line in out.splitlines()))
    assert code == 0 and paths == ("out.png", "out.png.edits/001-2.png", "out.png.edits/001-3.png")
    assert sorted(map(float, scores), reverse=True) == [*map(float, scores)]
    assert len({Path(path).read_bytes() for path in paths}) == 3
    assert edit("out.png", "--undo")[0] == 0
    assert sorted(path.name for path in Path("out.png.edits").iterdir()) == ["000.png", "history.json"]


def test_another_start_is_another_history(edit) -> None:
    for seed in ("1", "2"):
        assert edit("disc.png", "--redo", "0,0,16,16", "--seed", seed, "-o", "out.png")[0] == 0
    rounds = json.loads(Path("out.png.edits/history.json").read_text())["rounds"]
    assert [round["seed"] for round in rounds] == [2]


def test_texts_are_printed_or_written(edit) -> None:
    code, out, _ = edit("a red disc", "--redo", "red", "--source", "disc.png")
    assert code == 0 and out.startswith("a ") and out.endswith(" disc\n") and out != "a red disc\n"
    assert edit("a red disc", "--redo", "red", "--source", "disc.png", "-o", "new.txt")[0] == 0
    assert Path("new.txt").read_text() == out.removesuffix("\n")
    assert edit("new.txt", "--undo")[0] == 0 and Path("new.txt").read_text() == "a red disc"
    assert "tokens" in edit("word " * 2000, "--redo", "word", "-o", "new.txt")[2], "longer than a path may be"
    lines = edit("a red disc", "--redo", "red", "--source", "disc.png", "-n", "3")[1].splitlines()
    assert len(lines) == 3 and all("\ta " in line for line in lines)


def test_a_prompt_is_a_text_and_an_input_a_file(edit, here: Path) -> None:
    """Whatever the one is called, and whatever ending the other has."""
    Path("notes.dat").write_text("a red disc")
    code, _, err = edit("notes.dat", "--from", "text", "--redo", "red", "--prompt", "disc.png", "-o", "new.txt")
    assert code == 0, err
    assert Path("new.txt").read_text().startswith("a ") and Path("new.txt").read_text().endswith(" disc")
    history = json.loads(Path("new.txt.edits/history.json").read_text())
    assert ["text", "disc.png"] in history["rounds"][0]["source"]


def test_without_o_nothing_is_overwritten(edit) -> None:
    assert edit("disc.wav", "--redo", "0.1:")[1] == "disc-2.wav\n"
    assert Path("disc.wav").read_bytes() == WAV != Path("disc-2.wav").read_bytes()
    shutil.copy("disc.png", "disc.dat")
    assert edit("disc.dat", "--from", "image", "--redo", "0,0,8,8", "-o", "out.png")[0] == 0


def test_what_was_changed_by_another_program_is_not_undone(edit) -> None:
    assert edit("disc.png", "--redo", "0,0,16,16", "-o", "out.png")[0] == 0
    Path("out.png").write_bytes(PNG)
    for arguments in (["--undo"], ["--redo", "0,0,16,16", "-o", "out.png"]):
        code, _, err = edit("out.png", *arguments)
        assert code == 2 and "out.png was changed since its last round: remove out.png.edits to begin anew" in err
    assert Path("out.png").read_bytes() == PNG


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["disc.png"], "there is nothing to edit: say what to make anew"),
        (["disc.png", "--redo", "0,0,99,9"], "no rectangle in a picture of 16 by 16 pixels"),
        (["disc.png", "--redo", "0:1"], "'0:1' is no part of a picture: give x0,y0,x1,y1"),
        (["disc.wav", "--redo", "0,0,8,8"], "'0,0,8,8' is no part of a recording"),
        (["a red disc", "--redo", "green"], "'green' is not in the text 'a red disc'"),
        (["disc.png", "--redo", "0,0,8,8", "--to", "text"], "what is edited is image, and stays it"),
        (["disc.png", "--redo", "0,0,8,8", "--source", "missing.png"], "there is no file 'missing.png'"),
        (["disc.png", "--redo", "0,0,8,8", "-o", "out.jpg"], "-o out.jpg: image is written as .png"),
        (["disc.png", "--redo", "0,0,8,8", "-o", "out.jsonl"], "-o out.jsonl: give a file or a folder"),
        (["disc.png", "--redo", "0,0,8,8", "-n", "0"], "n=0 is not possible: give 1 candidate or more"),
        (["a red disc", "--redo", "red", "-n", "0"], "n=0 is not possible: give 1 candidate or more"),
        (["disc.png", "--redo", "0,0,8,8", "--rank", "best"], "argument --rank: invalid choice: 'best'"),
        (["disc.png", "--redo", "0,0,8,8", "--steps", "0"], "steps=0 is not possible"),
        (["disc.png", "--undo"], "there is nothing to undo: 'disc.png' has no disc.png.edits/history.json"),
        (["missing.png", "--undo"], "there is nothing to undo: 'missing.png' has no"),
        (["missing.png", "--redo", "0,0,8,8"], "there is no file 'missing.png'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, edit, here: Path) -> None:
    before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
    code, out, err = edit(*arguments)
    assert code == 2 and err.startswith("anyxform: error: ") and message in err and err.count("\n") == 1 and not out
    assert {path: path.is_file() and path.read_bytes() for path in here.rglob("*")} == before, "nothing is written"


def test_a_broken_history_is_named(edit) -> None:
    assert edit("disc.png", "--redo", "0,0,16,16", "-o", "out.png")[0] == 0
    Path("out.png.edits/history.json").write_text("{")
    assert "history.json cannot be read" in edit("out.png", "--undo")[2]
