"""Whole datasets through `anyxform run`: what is written, going on, several processes, and what failed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyxform.cli import main
from anyxform.convert import Conversion, _write_failures, list_failures
from anyxform.dataset import Dataset, extensions_of
from anyxform.field import Field
from anyxform.modality import registry
from tests.tiny import picture, tone, write_shard

COLOURS = ("red", "green", "blue", "black")
PNG = (picture("green", "disc", torch.Generator()), b"no picture")


def sample(shard: int, colour: str) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(shard)
    return {
        "__key__": f"part/{shard}-{colour}",
        "png": picture(colour, "disc", chance),
        "en.wav": tone(colour, "disc", chance),
        "json": json.dumps({"text": {"en": f"a {colour} disc", "fr": f"un disque {colour}"}}).encode(),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three shards in data/."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_shard(Path(f"data/s-{number:03d}.tar"), [sample(number, colour) for colour in COLOURS])
    return tmp_path


@pytest.fixture
def run(here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command on the shards into out/ and returns its exit code and error output."""

    def call(*arguments: str, inputs: str = "data/s-{000..002}.tar", out: str = "out") -> tuple[int, str]:
        capsys.readouterr()
        code = main(["run", str(here / inputs), *arguments, "-o", out, "--checkpoint", str(checkpoint)])
        said = capsys.readouterr()
        assert not said.out
        return code, said.err

    return call


def contents(folder: str) -> dict[str, bytes]:
    """Every file but run.json, which the tests look at by itself, with its path."""
    return {str(it.relative_to(folder)): it.read_bytes() for it in Path(folder).rglob("*") if it.is_file()}


def read(path: str) -> dict[str, dict[str, bytes]]:
    dataset = Dataset("out", [path], extensions=extensions_of(registry()))
    assert not dataset.damage
    return {it.key: {ending: it.read(ending) for ending in it.members} for it in dataset.samples}


def test_shards_have_the_same_keys_and_the_new_member(run, here: Path, checkpoint: Path) -> None:
    from anyxform import load

    code, said = run("--from", "audio", "--to", "text:fr")
    assert code == 0 and len(said.splitlines()) == 3 and "shard 3/3 s-002.tar: 4 of 4 samples, 0 failed" in said
    assert sorted(contents("out")) == ["run.json", "s-000.tar", "s-001.tar", "s-002.tar"]
    made = read("out/s-001.tar")
    assert {key: [*members] for key, members in made.items()} == {f"part/1-{it}": ["fr.txt"] for it in COLOURS}
    ax = load(str(checkpoint))
    for colour in COLOURS:
        expected = ax(("audio", sample(1, colour)["en.wav"]), to="text:fr")
        assert made[f"part/1-{colour}"]["fr.txt"].decode() == expected


def test_copies_can_be_trained_on(run, here: Path) -> None:
    assert run("--from", "image", "--to", "audio:fr", "--copy", "--field", "text:*=json.text.*")[0] == 0
    dataset = Dataset("out", ["out/s-000.tar"], extensions=extensions_of(registry()), fields={"text:*": "json.text.*"})
    assert [*map(str, dataset.fields(0))] == ["audio:en", "audio:fr", "image", "text:en", "text:fr"]
    assert dataset.fields(0)[Field("image")]() == sample(0, "red")["png"]
    code, said = run("--from", "image", "--to", "audio:en", "--copy", out="again")
    assert code == 1 and "anyxform: 12 failed: see again/failed.jsonl" in said


def test_sources_may_be_several_or_in_a_json(run, here: Path) -> None:
    assert run("--from", "image+text:en", "--to", "text:fr", "--field", "text:*=json.text.*", out="both")[0] == 0
    assert run("--from", "image", "--to", "text:fr", out="one")[0] == 0
    assert contents("both")["s-000.tar"] != contents("one")["s-000.tar"]


def test_a_source_that_is_not_clear_is_asked_for(run, here: Path) -> None:
    code, said = run("--to", "text:fr", "--field", "text:*=json.text.*")
    assert code == 2 and "which field is the source is not clear: the sample holds audio:en, image, text:en" in said
    assert said.count("\n") == 1 and not Path("out").exists()
    write_shard(Path("data/p.tar"), [{"__key__": "a", "png": picture("red", "disc", torch.Generator())}])
    assert run("--to", "text:fr", inputs="data/p.tar")[0] == 0, "there is but one"


def test_what_was_stopped_goes_on_and_ends_the_same(run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--from", "image", "--to", "text:fr", "--temperature", "1", "--batch-size", "2")
    (here / "data/s-001.tar").unlink()
    broken = [sample(1, colour) for colour in COLOURS]
    broken[2]["png"] = b"no picture"
    write_shard(here / "data/s-001.tar", broken)
    assert run(*options, out="whole")[0] == 1

    from anyxform import convert

    written = 0

    def stopping(*arguments: Any) -> dict[str, Any]:
        nonlocal written
        written += 1
        if written == 6:
            raise KeyboardInterrupt
        return members(*arguments)

    members = convert._members
    monkeypatch.setattr(convert, "_members", stopping)
    assert run(*options)[0] == 130
    assert sorted(contents("out")) == ["run.json", "s-000.tar"]
    monkeypatch.setattr(convert, "_members", members)
    shutil.copy("out/s-000.tar", "out/.s-002.tar.1.tmp")  # as a process that is killed leaves it
    before = Path("out/s-000.tar").stat().st_mtime_ns
    code, said = run(*options)
    assert code == 1 and "s-000" not in said and "shard 1/2 s-001.tar" in said
    assert Path("out/s-000.tar").stat().st_mtime_ns == before
    assert contents("out") == contents("whole")
    assert run(*options) == (1, "anyxform: 1 failed: see out/failed.jsonl\n"), "nothing is left to do"


def test_what_failed_is_listed_and_the_rest_is_there(run, here: Path) -> None:
    samples = [sample(1, colour) for colour in COLOURS]
    samples[0]["png"] = b"no picture"
    del samples[1]["png"]
    write_shard(Path("data/s-001.tar"), samples)
    whole = Path("data/s-002.tar").read_bytes()
    Path("data/s-002.tar").write_bytes(b"no tar at all" * 100)
    code, said = run("--from", "image", "--to", "text:fr")
    assert code == 1 and said.splitlines()[-1] == "anyxform: 3 failed: see out/failed.jsonl"
    assert [*read("out/s-001.tar")] == ["part/1-blue", "part/1-black"] and not Path("out/s-002.tar").exists()
    failed = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [(it["shard"], it["key"]) for it in failed] == [
        (f"{here}/data/s-001.tar", "part/1-red"), (f"{here}/data/s-001.tar", "part/1-green"),
        (f"{here}/data/s-002.tar", None),
    ]  # fmt: skip
    for it, reason in zip(
        failed, ("the picture is none of PNG", "there is no image: the sample holds", "is not a tar")
    ):
        assert reason in it["error"]
    Path("data/s-002.tar").write_bytes(whole)
    Path("out/s-001.tar").unlink()  # to try it again
    write_shard(Path("data/s-001.tar"), [sample(1, colour) for colour in COLOURS])
    assert run("--from", "image", "--to", "text:fr")[0] == 0
    assert not Path("out/failed.jsonl").exists() and len(read("out/s-001.tar")) == 4


def test_options_that_are_not_for_a_source_fail_alone(here: Path, checkpoint: Path) -> None:
    """A model that has learnt what recordings spell, and pictures among them."""
    shutil.copytree(checkpoint, "aligned")
    config = json.loads(Path("aligned/config.json").read_text())
    config["facts"]["aligned"] = ["audio>text:*"]
    Path("aligned/config.json").write_text(json.dumps(config))
    samples = [sample(0, colour) for colour in COLOURS]
    samples = [
        {"__key__": it["__key__"], **({"png": it["png"]} if n == 2 else {"en.wav": it["en.wav"]})}
        for n, it in enumerate(samples)
    ]
    write_shard(Path("data/s-000.tar"), samples)
    arguments = ["--to", "text:fr", "--align-weight", "0.5", "-o", "out", "--checkpoint", "aligned"]
    assert main(["run", "data/s-000.tar", *arguments]) == 1
    assert [*read("out/s-000.tar")] == [f"part/0-{colour}" for colour in ("red", "green", "black")]
    (line,) = map(json.loads, Path("out/failed.jsonl").read_text().splitlines())
    assert line["key"] == "part/0-blue" and "align_weight=0.5 is not possible" in line["error"]


def test_a_shard_that_cannot_be_opened_is_listed_and_the_others_are_converted(
    run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first, of which the source is not told by --from."""
    opened = Conversion.open

    def open(self: Conversion, shard: str) -> Dataset:
        if shard.endswith("s-000.tar"):
            raise OSError("the store does not answer")
        return opened(self, shard)

    monkeypatch.setattr(Conversion, "open", open)
    for number in range(2):
        pictures = [{"__key__": colour, "png": sample(number, colour)["png"]} for colour in COLOURS]
        write_shard(Path(f"data/s-00{number}.tar"), pictures)
    code, said = run("--to", "text:fr", inputs="data/s-{000..001}.tar")
    assert code == 1 and "anyxform: 1 failed: see out/failed.jsonl" in said
    (line,) = map(json.loads, Path("out/failed.jsonl").read_text().splitlines())
    assert (line["key"], line["error"]) == (None, "the store does not answer") and len(read("out/s-001.tar")) == 4


def test_failures_are_listed_while_others_write_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes in one folder: lists are never gone for a moment, and may be so for good."""
    failure = {"shard": "a.tar", "key": "a", "error": "broken"}
    _write_failures(tmp_path, "a.tar", [failure])
    (tmp_path / "failed" / "b.jsonl").symlink_to(tmp_path / "removed")  # as one that was there a moment ago
    assert list_failures(tmp_path) == [failure]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("the list is gone for a moment"))
        _write_failures(tmp_path, "a.tar", [failure, failure])
    assert list_failures(tmp_path) == [failure] * 2
    _write_failures(tmp_path, "a.tar", [])
    assert list_failures(tmp_path) == [] and not (tmp_path / "failed.jsonl").exists()


def test_damage_within_a_shard_is_listed(run, here: Path) -> None:
    data = bytearray(Path("data/s-000.tar").read_bytes())
    place = data.index(b"part/0-blue.en.wav")
    data[place : place + 512] = b"\xff" * 512
    Path("data/s-000.tar").write_bytes(data)
    assert run("--from", "image", "--to", "text:fr", inputs="data/s-000.tar")[0] == 1
    lines = Path("out/failed.jsonl").read_text().splitlines()
    assert any("broken header" in json.loads(line)["error"] for line in lines) and len(read("out/s-000.tar")) >= 3


def test_ranks_share_the_shards_and_make_the_same(run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--from", "image", "--to", "text:fr", "--temperature", "1")
    write_shard(Path("data/s-001.tar"), [{**sample(1, colour), "png": PNG[colour == "red"]} for colour in COLOURS])
    assert run(*options, out="alone")[0] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, shards in ((1, ["s-001.tar"]), (0, ["s-000.tar", "s-001.tar", "s-002.tar"])):
        monkeypatch.setenv("RANK", str(rank))
        code, said = run(*options)
        assert code == 0 and said.startswith(f"rank {rank}: shard 1/"), "torchrun would stop the others"
        assert said.endswith("anyxform: 1 failed: see out/failed.jsonl\n")
        assert sorted(contents("out")) == ["failed.jsonl", "failed/s-001.jsonl", "run.json", *shards]
    assert contents("out") == contents("alone")


@pytest.mark.slow
def test_torchrun_spreads_them(here: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "anyxform", "run"]
    arguments = ["data/s-{000..002}.tar", "--from", "image", "--to", "text:fr", "-o", "out"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, *arguments, "--checkpoint", str(checkpoint)],
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 1: shard 1/1 s-001.tar" in done.stderr and len(contents("out")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data/s-{000..009}.tar"], "there is no shard data/s-003.tar, of data/s-{000..009}.tar"),
        (["data/nothing-*.tar"], "there is no shard data/nothing-*.tar"),
        (["data/s-{000.tar"], "'data/s-{000.tar' is no pattern of shards: Unbalanced braces"),
        (["data/s-000.tar", "cat.png"], "data/s-000.tar is a shard, and 'cat.png' is none"),
        (["data/*.tar", "data/s-000.tar"], "several shards are called s-000.tar"),
        (["data/*.tar", "-o", "data"], "-o data is where the shards are"),
        (["data/*.tar", "-o", "out.tar"], "shards are written into a folder"),
        (["data/*.tar", "--with", "a text"], "--with is not for shards"),
        (["data/*.tar", "-f", "srt"], "-f is not for shards"),
        (["data/*.tar", "--field", "text"], "--field text: write it as"),
        (["data/*.tar", "--from", "imgae"], "--from imgae: did you mean 'image'?"),
        (["data/*.tar", "--to", "text:de"], "the model knows no variant 'de' of text"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"--to": "text:fr", "-o": "out", "--from": "image", "--checkpoint": str(checkpoint)}
    given = [word for option, value in defaults.items() if option not in arguments for word in (option, value)]
    before = contents(".")
    assert main(["run", *arguments, *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and contents(".") == before


def test_a_folder_of_another_conversion_is_not_mixed_with_this_one(run, here: Path) -> None:
    assert run("--from", "image", "--to", "text:fr", inputs="data/s-000.tar")[0] == 0
    code, said = run("--from", "image", "--to", "text:en", "--temperature", "1")
    assert code == 2 and "out is of another conversion (options, to): give another folder" in said
    assert "out is of another conversion (dtype): " in run("--from", "image", "--to", "text:fr", "--dtype", "int8")[1]
    assert run("--from", "image", "--to", "text:fr")[0] == 0, "more shards may come"
    shutil.copytree("data", "more")
    code, said = run("--from", "image", "--to", "text:fr", inputs="more/s-{000..002}.tar")
    assert code == 2 and f"s-000.tar was made of {here / 'data' / 's-000.tar'}: give another folder" in said
