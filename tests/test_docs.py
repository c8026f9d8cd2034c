"""What README and docs show works: commands are run or composed, Python is executed, links lead somewhere."""

import re
import shlex
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from anyxform.cli import COMMANDS, main
from anyxform.cli.arguments import Parser
from anyxform.cli.build import prepared
from anyxform.cli.conf import compose
from anyxform.cli.eval import suited
from tests.tiny import Tiny

PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
ALONE = Path("docs/export.md")
"""Whose scripts do without anyxform: tests/test_graph.py runs them."""
STARTER_FIELDS = {"image:noto": "image", "audio:en-phone": "audio"}
"""Fields that the tiny model of the tests was not trained on."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What the pages have users run, also what torchrun, or python, is to run in its processes."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [re.search(r"^anyxform .*|(?<= -m )anyxform .*", line) for line in lines]
    return sorted({match[0] for match in found if match})


def adapted(text: str) -> str:
    for field, other in STARTER_FIELDS.items():
        text = text.replace(field, other)
    return text


@pytest.fixture
def home(tiny: Tiny, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything lies that the pages speak of."""
    for run in ("runs/mine", "demo/run"):
        shutil.copytree(run_dir, tmp_path / run)
    monkeypatch.setattr("anyxform.pipeline.SHIPPED", tmp_path / "shipped")
    shutil.copytree(run_dir, tmp_path / "shipped" / "starter")
    shutil.copytree(tiny.conf, tmp_path / "my_conf")
    shutil.copy(tmp_path / "my_conf/data/tiny.yaml", tmp_path / "my_conf/data/mine.yaml")
    (tmp_path / "my_conf/modality/dna.yaml").write_text("{name: dna, max_length: 64}")
    sample = next(iter((run_dir / "samples").glob("*/*.png")))
    for folder in ("pictures", "demo/media"):
        (tmp_path / folder).mkdir()
    for name in ("cat.png", "strawberry.png", "pictures/one.png", "demo/media/001.png"):
        shutil.copy(sample, tmp_path / name)
    from PIL import Image

    Image.open(sample).resize((64, 64)).save(tmp_path / "fish.png")
    (tmp_path / "hello.txt").write_text("a red disc", encoding="utf-8")
    sound = next(iter((run_dir / "samples").glob("*/*source0.wav")))
    for name in ("hello.wav", "number.wav"):
        shutil.copy(sound, tmp_path / name)
    _as_flac(tmp_path / "hello.wav", tmp_path / "hello.flac")
    shutil.copytree(tmp_path / "pictures", tmp_path / "folder")
    (tmp_path / "talks").mkdir()
    for name in ("talk.flac", "talks/one.flac"):
        _as_flac(tmp_path / "hello.wav", tmp_path / name, times=5)
    (tmp_path / "story.txt").write_text("A red disc. " * 9)
    for number in range(3):
        shutil.copy(next((tiny.root / "shapes").glob("val-*.tar")), tmp_path / f"shards-{number:03d}.tar")
    shutil.copytree(tiny.root / "shapes", tmp_path / "shards")
    shutil.copytree(tiny.root / "shapes", tmp_path / "my_data/photos")
    shutil.copytree(tiny.root / "tokenizers", tmp_path / "my_data/tokenizers")
    (tmp_path / "captions.csv").write_text("photo,caption\npictures/one.png,one\ncat.png,a cat\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _as_flac(source: Path, target: Path, times: int = 1) -> None:
    import numpy as np
    import soundfile

    samples, rate = soundfile.read(source)
    soundfile.write(target, np.concatenate([samples, np.zeros(rate)] * times), rate)


@pytest.mark.parametrize("line", commands())
def test_a_command_works(
    line: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name, *arguments = shlex.split(adapted(line), comments=True)
    assert name in COMMANDS
    if name == "run" or (name == "edit" and "--undo" not in arguments):
        assert main([name, *arguments]) == 0, capsys.readouterr().err
    elif name in ("train", "tokenizer"):
        assert compose(name, prepared(arguments))
    elif name == "eval" and arguments[0] == "starter":  # whose suite needs the starter's data
        assert compose(name, suited("starter", arguments[1:]))["suite"]
    elif name == "eval":
        assert main([name, *arguments, "split=val", "judges=false", "limit=2"]) == 0, capsys.readouterr().err
    elif name == "data":
        if arguments[0] in ("check", "encode", "preview"):
            assert compose(arguments[0], prepared(arguments[1:]))
        elif arguments[0] in ("build", "index"):
            assert main([name, *arguments]) == 0, capsys.readouterr().err
        else:
            assert arguments == ["starter", "data/starter"]
    elif name == "plan" and "--fit" not in arguments:
        assert main([name, *arguments, "data.tokens_per_row=96"]) == 0, capsys.readouterr().err
    elif name in ("modalities", "doctor"):
        assert main([name]) == 0
    else:  # what takes long, or needs what is not there: its options are ones
        for parse in ("parse_args", "parse_intermixed_args"):
            monkeypatch.setattr(Parser, parse, partialmethod(parsed, getattr(Parser, parse)))
        with pytest.raises(Parsed):
            main([name, *arguments])


class Parsed(Exception):
    """The arguments of a command are such."""


def parsed(self: Any, parse: Any, *arguments: Any) -> None:
    parse(self, *arguments)
    raise Parsed


@pytest.mark.parametrize("page", [page for page in PAGES if page != ALONE], ids=str)
def test_python_runs(page: Path, home: Path) -> None:
    from PIL import Image

    for block in blocks(Path(__file__).parents[1] / page, "python"):
        exec(compile(adapted(block), str(page), "exec"), {"picture": Image.open("cat.png")})


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        path = "".join(target)
        assert path.startswith("http") or (page.parent / path).exists(), path


def test_yaml_of_the_pages_is_a_config() -> None:
    import yaml

    starter = compose("train", [])["data"]
    (text,) = blocks(Path("docs/train.md"), "yaml")
    assert yaml.safe_load(text).keys() == starter.keys()
