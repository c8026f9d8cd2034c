"""`anyxform export --format`: graphs answer as the model does, in programs that have none of its code."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from anyxform import load
from anyxform.cli import main
from anyxform.field import Direction
from anyxform.graph import files, parity
from anyxform.graph.export import export, opened
from anyxform.graph.task import Task
from anyxform.model import Transformer
from tests.tiny import PNG, Tiny, write_shard
from tests.toy import ToyText

GREEDY = {"temperature": 0, "choice_temperature": 0}
OURS = ("anyxform", "modalities")
ALONE = "import sys; sys.modules.update(dict.fromkeys({})); exec(open('script.py').read())"


def exported(checkpoint: Path, out: Path, source: str, target: str, *options: str) -> Path:
    assert main(["export", str(checkpoint), str(out), "--from", source, "--to", target, *options]) == 0
    return out


def script(number: int) -> str:
    """A script of the docs."""
    page = Path(__file__).parents[1] / "docs/export.md"
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[number]


def alone(code: str, without: tuple[str, ...] = (*OURS, "torch")) -> str:
    """What a script prints that cannot import some packages: this one, and torch."""
    Path("script.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", ALONE.format(without)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def captioner(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "captioner"
    return exported(checkpoint, out, "image", "text:en", "--format", "onnx", "--items", "1")


def test_graphs_are_for_few_tokens_and_for_many(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """Few tokens are computed in another way on CPUs, which no graph may choose by the size of its example."""
    monkeypatch.setattr("anyxform.layers.SMALL", 10 * load(checkpoint).model.config()["dim"])
    exported(checkpoint, tmp_path / "graphs", "text:en", "text:fr", "--format", "torch", "--items", "2")


def test_the_docs_caption_is_the_models_own(checkpoint: Path, captioner: Path, here: Path) -> None:
    Path("graphs").symlink_to(captioner)
    shutil.copy("disc.png", "cat.png")
    assert alone(script(0)) == load(checkpoint)("cat.png", to="text:en", **GREEDY) + "\n"


def test_the_docs_caption_by_torch_is_the_models_own(checkpoint: Path, here: Path) -> None:
    exported(checkpoint, here / "program", "image", "text:en", "--format", "torch", "--items", "1")
    shutil.copy("disc.png", "cat.png")
    assert alone(script(2), without=OURS) == load(checkpoint)("cat.png", to="text:en", **GREEDY) + "\n"


def test_what_a_script_is_without_is_not_there(here: Path) -> None:
    for name in OURS:
        with pytest.raises(AssertionError, match="ModuleNotFoundError"):
            alone(f"import {name}", without=OURS)


def test_the_docs_picture_is_the_models_own(checkpoint: Path, tiny: Tiny, here: Path, capsys) -> None:
    held_out = ["--on", str(tiny.root / "shapes" / "val-*.tar"), "--field", "text:*=json.text.*", "--items", "3"]
    exported(checkpoint, here / "drawing", "text:en", "image", "--format", "onnx", *held_out)
    assert "on 3 samples the same codes as the model's, logits within " in capsys.readouterr().out
    alone(script(1))
    own = load(checkpoint)("a red disc", to="image", **GREEDY)
    assert np.abs(np.int16(Image.open("fish.png")) - np.int16(own)).max() <= 1


def test_torch_graphs_take_sources_and_make_targets_of_any_length(checkpoint: Path, tiny: Tiny, here: Path) -> None:
    """Two sources of other lengths than those of the export; a target of as many tokens as the marker says."""
    out = exported(checkpoint, here / "graphs", "audio+text:en", "audio", "--format", "torch", "--items", "1")
    ax = load(checkpoint)
    task = Task(ax.model, ax.modalities, Direction.parse("audio+text:en>audio"))
    sound = ax.modalities["audio"].load(Path("disc.wav").read_bytes())
    items = [[sound, "a"], [sound, "un disque rouge, un carré bleu"]]
    assert parity.compare(task, items, opened(out)) < 1e-4
    decoder = torch.export.load(out / "decoder.pt2").module()
    codes = torch.randint(125, (7, 2), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decoder(codes), ax.modalities["audio"].tokenizer.decode(codes[None])[0], atol=1e-5)


def test_graphs_of_another_model_are_an_error(checkpoint: Path, captioner: Path) -> None:
    ax = load(checkpoint)
    task, items = Task(ax.model, ax.modalities, Direction.parse("image>text:en")), [[Image.open(io.BytesIO(PNG))]]
    assert parity.compare(task, items, opened(captioner)) < 1e-4
    with torch.no_grad():
        ax.model.norm.weight.mul_(1.01)
    with pytest.raises(ValueError, match="the graphs of image>text:en are wrong: at item 0 a logit differs by"):
        parity.compare(task, items, opened(captioner))


@pytest.mark.parametrize("direction", ["text:en>text:fr", "text:en>audio"])
def test_graphs_know_of_targets_along_their_sources(direction: str, checkpoint: Path, tmp_path: Path) -> None:
    """`export` compares its answers with the model's."""
    ax = load(checkpoint)
    ax.model.along = frozenset(ax.modalities)
    export(Task(ax.model, ax.modalities, Direction.parse(direction)), tmp_path, "torch", [["a red disc"]])


def test_graphs_read_letters_where_the_model_does(checkpoint: Path, tmp_path: Path) -> None:
    ax = load(checkpoint)
    ax.modalities["text"].read_apart_for = ("audio",)
    made = export(Task(ax.model, ax.modalities, Direction.parse("text:en>audio")), tmp_path, "torch", [["a red disc"]])
    assert made["sources"][0]["recipe"]["tokenizer"] == "letters.json"
    assert Tokenizer.from_file(str(tmp_path / "letters.json")).encode("a red disc").tokens == [*"aĠredĠdisc"]


def test_graphs_go_left_to_right_by_fractions_of_a_position(checkpoint: Path, tmp_path: Path) -> None:
    ax = load(checkpoint)
    ax.model.along = frozenset(["audio"])
    ax.modalities["audio"].decoding, ax.modalities["audio"].pace = "autoregressive", 0.33
    export(Task(ax.model, ax.modalities, Direction.parse("text:en>audio")), tmp_path, "torch", [["a red disc"]])


class Counting(ToyText):
    def source_positions(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.code_positions(len(tensor))


def test_a_modality_that_fixes_its_size_is_an_error(tmp_path: Path) -> None:
    modalities = {"text": Counting()}
    model = Transformer(modalities=modalities, conditions=["to:text"], dim=16, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="Prefill cannot be exported for inputs of other sizes"):
        export(Task(model, modalities, Direction.parse("text>text")), tmp_path, "torch", [["frog"]])


ONNX = ["--format", "onnx"]


def test_a_damaged_shard_that_graphs_are_compared_on_is_named(
    tiny: Tiny, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next((tiny.root / "shapes").glob("train-*.tar"))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2 + 700])
    words = ["--format", "torch", "--from", "image", "--to", "text:en", "--items", "1", "--on", str(cut)]
    assert main(["export", str(checkpoint), str(tmp_path / "graphs"), *words]) == 0
    assert f"{cut} does not end as a tar does" in capsys.readouterr().err


def test_texts_of_one_token_are_exported_and_too_long_ones_left_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ("a", "qzx" * 40, "a red disc")
    write_shard(tmp_path / "a.tar", [{"__key__": f"{n}", "en.txt": text.encode()} for n, text in enumerate(texts)])
    words = ["--format", "torch", "--from", "text:en", "--to", "text:fr", "--on", str(tmp_path / "a.tar")]
    assert main(["export", str(checkpoint), str(tmp_path / "graphs"), *words]) == 0
    said = capsys.readouterr()
    assert "… has 120 tokens, more than max_length=24" in said.err and "on 2 samples the same codes" in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "text:en"], "--to is for graphs: add --format onnx or --format torch"),
        ([*ONNX, "--to", "text:en"], "graphs are of one direction: give --from FIELD and --to FIELD"),
        ([*ONNX, "--from", "image", "--to", "text:en", "--dtype", "bf16"], "graphs are fp32"),
        ([*ONNX, "--from", "picture", "--to", "text:en"], "--from picture: "),
        ([*ONNX, "--from", "image", "--to", "text:de"], "the model knows no variant 'de' of text"),
        ([*ONNX, "--from", "image", "--to", "text:en", "--on", "no.tar"], "there is no shard no.tar"),
        ([*ONNX, "--from", "image", "--to", "text:en", "--items", "0"], "--items 0 is not possible"),
    ],
)
def test_a_mistake_is_one_line(checkpoint: Path, here: Path, options: list[str], message: str, capsys) -> None:
    assert main(["export", str(checkpoint), "out", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("anyxform: error: ") and said.count("\n") == 1
    assert not Path("out").exists()


def test_what_is_not_installed_is_named(checkpoint: Path, here: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "onnx" else name)
    assert main(["export", str(checkpoint), "out", *ONNX, "--from", "image", "--to", "text:en"]) == 2
    assert "this needs onnx: pip install 'anyxform[onnx]'" in capsys.readouterr().err
