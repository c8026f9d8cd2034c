"""`anyxform run` on files and texts: where results go, and one line that says what to do about bad input."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from anyxform.cli import main
from anyxform.cli.run import expand
from anyxform.compiled import CompiledStep
from modalities.audio import Audio
from modalities.audio.waveform import Waveform, write
from tests.tiny import PNG, WAV, Tiny


@pytest.fixture
def run(here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command and returns its exit code, output and error output."""

    def call(*arguments: str, checkpoint: Path = checkpoint) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["run", *arguments, "--checkpoint", str(checkpoint)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


# Where results go


def test_a_compiled_step_answers_the_same(run, monkeypatch) -> None:
    """By the compiler's front end, as its back end takes long."""
    monkeypatch.setattr("anyxform.pipeline.CompiledStep", partial(CompiledStep, backend="eager"))
    assert run("disc.png", "--to", "text:fr", "--compile") == run("disc.png", "--to", "text:fr")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("--beams", "3", "num_beams=3"), ("--draft", "2", "draft=2"), ("--effort", "0.5", "effort=0.5")],
)
def test_no_compiled_step_is_promised_where_there_is_none(option, value, named, capsys) -> None:
    assert main(["run", "a disc", "--to", "text:fr", "--compile", option, value]) == 2
    assert f"--compile is of plain decoding left to right: it goes with no {named}\n" in capsys.readouterr().err


def test_a_file_becomes_a_text_on_the_screen(run) -> None:
    code, out, err = run("disc.png", "--to", "text:fr")
    assert code == 0 and len(out.splitlines()) == 1 and not err
    assert run("disc.png", "--to", "text:fr") == (code, out, err) != run("disc.wav", "--to", "text:fr")


@pytest.mark.parametrize(("to", "name"), [("image", "fish.png"), ("audio", "new/fish.wav"), ("text:fr", "fish.txt")])
def test_a_text_becomes_a_file_the_same_for_the_same_seed(to: str, name: str, run, here: Path) -> None:
    assert run("a red disc", "--to", to, "-o", name, "--temperature", "1") == (0, f"{name}\n", "")
    first = Path(name).read_bytes()
    assert run("a red disc", "--to", to, "-o", name, "--temperature", "1")[0] == 0
    assert Path(name).read_bytes() == first
    run("a red disc", "--to", to, "-o", name, "--temperature", "1", "--seed", "1")
    assert Path(name).read_bytes() != first


def test_without_o_files_are_named_like_the_input_and_never_overwritten(run, here: Path) -> None:
    assert run("a red/disc!", "--to", "image")[1] == "a-red-disc.png\n"
    assert run("a red/disc!", "--to", "image")[1] == "a-red-disc-2.png\n"
    assert run("disc.png", "--to", "image")[1] == "disc-2.png\n"
    assert run("disc.png", "--to", "image", "-o", ".")[1] == "disc-2.png\n", "the input stays"
    assert run("disc", "--with", "disc.png", "--to", "image", "-o", ".")[1] == "disc-2.png\n"
    assert Path("disc.png").read_bytes() == PNG


def test_several_inputs_are_named_on_the_screen_and_numbered_in_a_folder(run, here: Path) -> None:
    code, out, _ = run("disc.png", "disc.wav", "a red disc", "--to", "text:en")
    assert code == 0 and [line.split("\t")[0] for line in out.splitlines()] == ["disc.png", "disc.wav", "a red disc"]
    code, out, _ = run("disc.wav", "a red disc", "--to", "image", "-o", "results")
    assert code == 0 and out.split() == ["results/0001-disc.png", "results/0002-a-red-disc.png"]
    assert all(Image.open(path).size == (16, 16) for path in out.split())


def test_globs_and_lines_of_json(run, here: Path) -> None:
    Path("folder/deeper").mkdir(parents=True)
    shutil.copy("disc.png", "folder/b.png")
    shutil.copy("disc.wav", "folder/deeper/a.wav")
    Path("folder/c.png").write_bytes(PNG[:-40])
    assert run("folder/**", "--to", "text:en", "-o", "out.jsonl")[0] == 1
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["source"] for line in lines] == ["folder/b.png", "folder/c.png", "folder/deeper/a.wav"]
    assert [set(line) - {"source", "to"} for line in lines] == [{"text"}, {"error"}, {"text"}]
    assert all(line["to"] == "text:en" for line in lines) and "folder/c.png: " in lines[1]["error"]
    assert run("folder/*.png", "--to", "audio", "-o", "sub/out.jsonl")[0] == 1
    lines = [json.loads(line) for line in Path("sub/out.jsonl").read_text().splitlines()]
    assert lines[0]["path"] == "sub/out/0001-b.wav" and Path(lines[0]["path"]).read_bytes()[:4] == b"RIFF"


def test_a_bad_input_among_many_does_not_stop_the_rest(run, here: Path) -> None:
    Path("bad.png").write_bytes(b"no picture")
    code, out, err = run("disc.png", "bad.png", "", "disc.wav", "--to", "text:en", "--batch-size", "2")
    assert code == 1 and [line.split("\t")[0] for line in out.splitlines()] == ["disc.png", "disc.wav"]
    first, second, last = err.splitlines()
    assert first.startswith("anyxform: error: bad.png: the picture is none of PNG")
    assert second == "anyxform: error: the text is empty" and last == "anyxform: 2 of 4 inputs failed"


def test_a_single_failure_is_a_line_of_json_too(run, here: Path) -> None:
    assert run("missing.png", "--to", "text:en", "-o", "out.jsonl")[0] == 1
    (line,) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert line == {"source": "missing.png", "to": "text:en", "error": "there is no file 'missing.png'"}


def test_paths_that_are_no_unicode_are_written_as_json(run, here: Path) -> None:
    name = "disc-\udcff.png"
    shutil.copy("disc.png", name)
    assert run("disc-*.png", "--to", "text:en", "-o", "out.jsonl")[0] == 0
    assert json.loads(Path("out.jsonl").read_text(encoding="utf-8"))["source"] == name


def test_from_says_what_an_ending_does_not(run, here: Path) -> None:
    shutil.copy("disc.png", "disc.dat")
    assert run("disc.dat", "--from", "image", "--to", "text:en") == run("disc.png", "--to", "text:en")
    Path("name.dat").write_text("a red disc\n")
    assert run("name.dat", "--from", "text", "--to", "text:fr") == run("a red disc", "--to", "text:fr")


def test_with_adds_a_source_of_every_input(run, checkpoint: Path) -> None:
    from anyxform import load

    code, out, _ = run("disc.png", "--with", "disc.wav", "--with", "a red disc", "--to", "text:en")
    assert code == 0 and out == load(str(checkpoint))("disc.png", "disc.wav", "a red disc", to="text:en") + "\n"
    assert out != run("disc.png", "--to", "text:en")[1]


def test_options_reach_the_generation(run) -> None:
    assert run("disc.png", "--to", "audio", "-o", "long.wav", "--length", "9", "--steps", "2")[0] == 0
    assert run("disc.png", "--to", "audio", "-o", "short.wav", "--length", "2")[0] == 0
    assert Path("long.wav").stat().st_size > 3 * Path("short.wav").stat().st_size
    assert run("disc.png", "--to", "text:en", "--beams", "2", "--length-penalty", "0.5", "--no-repeat", "1")[0] == 0


def test_the_shipped_checkpoint_is_the_default(
    here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("anyxform.pipeline.SHIPPED", here / "package")
    assert main(["run", "a red disc", "--to", "text:fr"]) == 2
    assert "there is no checkpoint at starter: give the folder of a run" in capsys.readouterr().err
    shutil.copytree(checkpoint, "package/starter")
    assert main(["run", "a red disc", "--to", "text:fr"]) == 0


# Long recordings


@pytest.fixture
def talk(here: Path) -> Path:
    """Three tones in 5 seconds, of which the model reads half a second at once."""
    sound, silence = Audio().load(WAV).samples, torch.zeros(16_000)
    Path("talk.wav").write_bytes(write(Waveform(torch.cat([silence, sound, silence, sound, sound, silence, sound]))))
    Path("silent.wav").write_bytes(write(Waveform(torch.zeros(32_000))))
    return here


def test_a_long_recording_becomes_one_text_and_subtitles_in_every_format(run, talk: Path) -> None:
    code, text, err = run("talk.wav", "--to", "text:en")
    assert code == 0 and not err and text.strip()
    for ending in ("srt", "vtt", "json", "txt"):
        assert run("talk.wav", "--to", "text:en", "-o", f"talk.{ending}") == (0, f"talk.{ending}\n", "")
    whole = json.loads(Path("talk.json").read_text(encoding="utf-8"))
    assert whole["text"] == text.removesuffix("\n") and whole["language"] == "en"
    lines = [" ".join(it["text"].split()) for it in whole["segments"]]
    assert Path("talk.txt").read_text().splitlines() == lines
    assert run("talk.wav", "--to", "text:en", "-f", "txt")[1].splitlines() == lines
    assert all(it["tokens"] and it["avg_logprob"] < 0 for it in whole["segments"])
    times = [(it["id"], it["start"], it["end"]) for it in whole["segments"]]
    assert times == [(0, 1.0, 1.2), (1, 2.2, 2.6), (2, 3.6, 3.8)]
    assert whole["text"] == " ".join(it["text"] for it in whole["segments"])
    blocks = Path("talk.srt").read_text().strip().split("\n\n")
    assert blocks[1].startswith("2\n00:00:02,200 --> 00:00:02,600\n") and len(blocks) == 3
    head, *cues = Path("talk.vtt").read_text().strip().split("\n\n")
    assert head == "WEBVTT" and cues[1].startswith("00:00:02.200 --> 00:00:02.600\n") and len(cues) == 3


def test_a_format_by_name_for_many_inputs_or_none(run, talk: Path) -> None:
    assert run("talk.wav", "--to", "text:en", "-f", "vtt")[1].startswith("WEBVTT\n\n00:00:01.000 --> ")
    code, out, _ = run("talk.wav", "disc.wav", "silent.wav", "--to", "text:en", "-f", "srt", "-o", "subtitles")
    assert code == 0 and out.split() == [
        "subtitles/0001-talk.srt", "subtitles/0002-disc.srt", "subtitles/0003-silent.srt",
    ]  # fmt: skip
    assert Path("subtitles/0003-silent.srt").read_bytes() == b""
    assert run("talk.wav", "--to", "text:en", "-f", "json", "-o", "out.jsonl")[0] == 0
    (line,) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert line["source"] == "talk.wav" and line["text"] and len(line["segments"]) == 3


def test_words_are_told_by_models_that_learnt_where_they_are(run, talk: Path, tiny: Tiny) -> None:
    written = run("talk.wav", "--to", "text:en", "-f", "json", "-o", "out.jsonl", "--words")
    assert written[0] == 1 and "words are not possible for audio>text:en" in Path("out.jsonl").read_text()
    for options in (["--words"], ["--words", "-f", "srt"]):
        code, _, err = run("talk.wav", "--to", "text:en", *options)
        assert code == 2 and "--words is not possible with " in err and "they are written with -f json" in err
    assert run("a-{0..1}.tar", "--to", "text:en", "--words")[2].endswith("they become shards of values alone\n")
    options = ["train.align_weight=0.3", "+data.aligned=[audio>text:en]", "train.steps=2"]
    assert main(tiny.train(Path("run"), *options)) == 0
    code, out, _ = run("talk.wav", "--to", "text:en", "-f", "json", "--words", checkpoint=Path("run"))
    segments = json.loads(out)["segments"]
    assert code == 0 and segments
    for dtype in ("bf16", "int8"):
        options = ["--to", "text:en", "-f", "json", "--words", "--dtype", dtype]
        code, out, _ = run("talk.wav", *options, checkpoint=Path("run"))
        assert code == 0 and len(json.loads(out)["segments"]) == len(segments)
    for weight, dtype in (("0.5", "bf16"), ("1", "int8"), ("0.5", "fp32")):
        spelt = ["--to", "text:en", "--align-weight", weight, "--dtype", dtype]
        assert run("talk.wav", *spelt, checkpoint=Path("run"))[0] == 0
        code, _, err = run("talk.wav", *spelt)
        assert code == 2 and f"align_weight={weight} is not possible: this model has learnt where words are from" in err
    code, out, err = run("talk.wav", "disc.png", "--to", "text:en", "--align-weight", "0.5", checkpoint=Path("run"))
    assert code == 1 and out.startswith("talk.wav\t") and "learnt where words are from audio to text" in err
    for it in segments:
        assert " ".join(word["word"] for word in it["words"]) in ("", " ".join(it["text"].split()))
        assert all(it["start"] <= word["start"] <= word["end"] <= it["end"] for word in it["words"])


def test_silence_is_the_empty_text(run, talk: Path) -> None:
    assert run("silent.wav", "--to", "text:en") == run("silent.wav", "--to", "text:en", "-n", "2") == (0, "\n", "")


def test_silence_of_which_nothing_can_be_made_fails_alone(run, talk: Path) -> None:
    """Among candidates too, and whether it is longer than what is read at once or not."""
    Path("hush.wav").write_bytes(write(Waveform(torch.zeros(4_800))))
    for options in ([], ["-n", "2"]):
        code, out, err = run("hush.wav", "silent.wav", "disc.wav", "--to", "image", "-o", "out", *options)
        assert code == 1 and len(out.splitlines()) == 1 and Path(out.strip()).is_file()
        *said, last = err.splitlines()
        assert last == "anyxform: 2 of 3 inputs failed" and all("the source says nothing" in line for line in said)


def test_long_texts_become_long_texts_and_recordings(run, here: Path) -> None:
    Path("story.txt").write_text("A red disc is here. A blue square is there!\n\n" * 3)
    assert run("story.txt", "--to", "text:fr")[0] == 0
    assert run("story.txt", "--to", "audio", "-o", "long.wav")[0] == 0
    assert Audio().load(Path("long.wav").read_bytes()).seconds > 5 * 0.25 + 6 * 0.05


# How much is spent


def test_the_layers_that_tokens_took_are_shown(run) -> None:
    code, out, err = run("disc.png", "disc.wav", "--to", "text:en", "--show-effort")
    lines = err.splitlines()
    assert code == 0 and [line.split(" a token: ")[0] for line in lines] == [
        "disc.png: 2.00 of 2 layers", "disc.wav: 2.00 of 2 layers",
    ]  # fmt: skip
    assert all(line.endswith("' 2") for line in lines) and out == run("disc.png", "disc.wav", "--to", "text:en")[1]
    assert run("disc.png", "--to", "text:en", "--effort", "0", "--show-effort")[2].startswith("disc.png: 1.00 of 2")
    code, out, err = run("disc.png", "--to", "image", "--effort", "0", "--show-effort", "-o", "out.png")
    assert code == 0 and err == "disc.png: 1.00 of 2 layers a token: 1 1 1 1\n"


def test_drafts_give_the_same_text(run) -> None:
    plain = run("disc.png", "--to", "text:en")
    code, out, err = run("disc.png", "--to", "text:en", "--draft", "3", "--show-effort")
    assert (code, out) == plain[:2] and " drafts accepted: " in err and err.startswith("disc.png: 2.00 of 2")


# What is a text, what a path


def test_what_fits_no_file_is_a_text_unless_it_was_meant_as_a_path(here: Path) -> None:
    Path("my photos").mkdir()
    Path("my photos/a[1].png").write_bytes(PNG)
    for text in ("what?", "why [not]?", "3 * 4 = 12", "and/or what?", "x" * 5000, "what? " * 5000):
        assert list(expand([text])) == [text]
    assert list(expand(["my photos/*.png", "a"])) == ["my photos/a[1].png", "a"]
    assert list(expand(["my photos/a[1].png"])) == ["my photos/a[1].png"]
    for pattern in ("my photos/*.jpg", "nowhere/**", "*.jpg", "nowhere/?"):
        with pytest.raises(ValueError, match="no file fits"):
            list(expand([pattern]))


# Mistakes


def bad_files(here: Path) -> None:
    Path("corrupt.png").write_bytes(PNG[:30] + bytes(30) + PNG[60:])
    Path("truncated.png").write_bytes(PNG[:-40])
    Path("text.png").write_text("no picture")
    Path("empty.wav").write_bytes(write(Waveform(torch.zeros(0))))
    Path("nothing.wav").write_bytes(b"")
    Path("long.wav").write_bytes(write(Waveform(0.1 * torch.arange(32_000.0).sin())))
    Path("silent.wav").write_bytes(write(Waveform(torch.zeros(32_000))))
    Path("data.xyz").write_bytes(b"123")
    Path("old.jsonl").write_text("{}\n")
    Path("latin.txt").write_bytes("été".encode("latin-1"))
    Path("folder").mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "there is no file 'missing.png'"),
        (["nowhere/missing.tiff"], "there is no file 'nowhere/missing.tiff'"),
        (["corrupt.png"], "corrupt.png: the picture is none of PNG, JPEG"),
        (["truncated.png"], "truncated.png: the PNG picture is broken or cut short"),
        (["text.png"], "text.png: the picture is none of PNG, JPEG"),
        (["empty.wav"], "empty.wav: the recording lasts 0 s, and at least 0.03 s are needed"),
        (["nothing.wav"], "nothing.wav: not a recording that can be read"),
        (["long.wav", "--to", "image"], "the recording lasts 2.0 s, longer than max_seconds=0.5: cut it"),
        (["silent.wav", "--to", "image"], "the source says nothing (it is silent, say) of which image could be made"),
        (["latin.txt"], "latin.txt: the text is not UTF-8"),
        (["data.xyz"], "data.xyz: the model reads .aac, .bmp, .flac"),
        (["data.xyz"], "convert it, or say what it is by --from MODALITY"),
        (["data.xyz", "--from", "image"], "data.xyz: the picture is none of PNG"),
        (["missing", "--from", "image"], "there is no file 'missing', and as image it cannot be read"),
        (["disc.png", "--from", "imgae"], "--from imgae: the model reads text, image, audio"),
        (["folder"], "folder is a folder: for all files in it, give 'folder/**'"),
        (["folder/**"], "no file fits 'folder/**'"),
        ([""], "the text is empty"),
        (["word " * 20_000, "--to", "image"], "tokens, more than max_length=24: split it"),
        (["x" * 100_000, "--to", "image"], "tokens, more than max_length=24: split it"),
        (["word " * 20, "--with", "long.wav"], "several sources (text, audio) are longer than the model reads"),
        (["disc.png", "--with", "missing.wav"], "there is no file 'missing.wav'"),
        (["disc.png", "--to", "smell"], "this model makes no 'smell': known: audio, image, text"),
        (["disc.png", "--to", "imgae"], "this model makes no 'imgae': did you mean 'image'?"),
        (["disc.png", "--to", "text:fra"], "knows no variant 'fra' of text: did you mean 'fr'?"),
        (["disc.png", "--to", "text:"], "'text:' is not a field: write modality or modality:variant"),
        (["disc.png", "--temprature", "1"], "unrecognized arguments: --temprature 1 (see: anyxform run --help)"),
        (["disc.png", "--temp", "1"], "unrecognized arguments: --temp 1"),
        (["disc.png", "--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["disc.png", "--temperature", "-1"], "temperature=-1.0 is not possible: give 0 or more"),
        (["disc.png", "--beams", "2", "--temperature", "1"], "num_beams=2 searches left to right"),
        (["disc.png", "--length", "99"], "length=99 is not possible: text has 1 to 24 tokens"),
        (["disc.png", "--effort", "1.5"], "effort=1.5 is not possible: give a number from 0 to 1"),
        (["disc.png", "--effort", "0.5", "--draft", "2"], "draft=2 goes with no effort=0.5"),
        (["disc.png", "--draft", "2", "--to", "image"], "draft=2 is not possible: image is not decoded from left"),
        (["disc.png", "--show-effort", "-n", "2"], "--show-effort is of one answer, and -n 2 draws several"),
        (["disc.png", "--batch-size", "0"], "--batch-size 0 is not possible: give 1 or more"),
        (["disc.png", "--device", "gpu"], "the device 'gpu' cannot be used"),
        (["disc.png", "-o", "out.srt"], "srt holds the times of a recording, and this input has none"),
        (["disc.wav", "-o", "out.srt", "-f", "vtt"], "-f vtt and -o out.srt do not agree: leave one out"),
        (["disc.wav", "-o", "out.jsonl", "-f", "vtt"], "-f vtt is no JSON, and -o out.jsonl is lines of it"),
        (["disc.wav", "--to", "image", "-f", "srt"], "-f srt is for texts, and image is none"),
        (["disc.wav", "--to", "image", "-o", "out.srt"], "-o out.srt: image is written as .png"),
        (["disc.png", "-o", "out.pdf"], "-o out.pdf: text is written as .txt: give such a file, a folder or a .jsonl"),
        (["disc.png", "--to", "image", "-o", "out.jpg"], "-o out.jpg: image is written as .png"),
        (["disc.png", "disc.wav", "-o", "out.txt"], "-o out.txt is one file, and there are several inputs"),
        (["disc.png", "-o", "disc.wav/out.txt"], "disc.wav"),
        (["disc.wav", "-o", "old.jsonl", "--words"], "--words is not possible with txt: they are written with -f json"),
        (["disc.png", "-o", "old.jsonl", "-n", "2", "-f", "json"], "-n 2 is not possible with json"),
        (["disc.png", "-o", "old.jsonl", "--length", "9999"], "length=9999 is not possible"),
        (["disc.png", "--checkpoint", "nowhere"], "there is no checkpoint at nowhere: give the folder of a run"),
        (["disc.png", "--checkpoint", "folder"], "folder holds no checkpoint: give the folder of a run"),
        (["disc.png", "--checkpoint", "disc.png"], "disc.png holds no checkpoint: give the folder of a run"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, here: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_files(here)
    defaults = {"--to": "text:en", "--checkpoint": str(run_dir)}
    given = [word for option, value in defaults.items() if option not in arguments for word in (option, value)]
    before = contents(here)
    assert main(["run", *arguments, *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("anyxform: error: ") and message in said.err and not said.out
    assert said.err.count("\n") == 1 and len(said.err) < 400
    assert contents(here) == before, "nothing is written"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_a_name_that_is_no_unicode_is_printed_all_the_same(run, here: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    Path(odd).write_bytes(PNG)
    code, out, _ = run(odd, "disc.png", "--to", "text:en")
    assert code == 0 and out.startswith("caf\\udce9.png\t") and "\ndisc.png\t" in out


def test_what_is_missing_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in ((["disc.png"], "--to"), (["--to", "text"], "INPUT")):
        assert main(["run", *arguments]) == 2
        assert f"the following arguments are required: {wanted}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda data: data[:-7], "model.safetensors cannot be read"),
        ("model.safetensors", None, "model.safetensors is missing: the checkpoint or tokenizer is not whole"),
        ("config.json", lambda data: data[:-7], "config.json cannot be read"),
        ("config.json", lambda data: data.replace(b'"dim": 32', b'"dim": 16'), "model.safetensors is of another"),
        ("config.json", lambda data: data.replace(b'"depth": 2', b'"depth": 3'), "model.safetensors is of another"),
        ("config.json", lambda data: data.replace(b'"format": 1', b'"format": 2'), "upgrade anyxform"),
        ("config.json", lambda data: data.replace(b'"audio": {', b'"smell": {'), "needs the modality 'smell'"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_one_line(name: str, change, message: str, run, here: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, "broken")
    file = here / "broken" / name
    if change is None:
        file.unlink()
    else:
        before = file.read_bytes()
        file.write_bytes(change(before))
        assert file.read_bytes() != before
    code, out, err = run("disc.png", "--to", "text:en", checkpoint=here / "broken")
    assert code == 2 and not out and err.count("\n") == 1 and message in err
