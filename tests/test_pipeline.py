"""`anyxform.load(path)(source, to=…)`: whatever is given, one by one or in batches, and clear errors."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import anyxform
from anyxform.field import Direction
from anyxform.pipeline import Pipeline
from modalities.audio import Audio, Waveform
from modalities.image import Image
from tests.tiny import COLOURS, picture, tone


@pytest.fixture(scope="module")
def ax(checkpoint: Path) -> Pipeline:
    return anyxform.load(str(checkpoint), device="cpu")


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    path = tmp_path / "disc.png"
    path.write_bytes(picture("red", "disc", torch.Generator().manual_seed(5)))
    return path


def test_a_run_stands_for_its_newest_checkpoint(run_dir: Path, disc: Path) -> None:
    newest = run_dir / "checkpoints" / "step-00000006"
    first, second = anyxform.load(str(run_dir)), anyxform.load(str(newest))
    assert first.path == second.path == newest and first.facts["facts"]["steps"] == 6
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters()))
    assert not first.model.training and first(disc, to="text:en") == second(disc, to="text:en")


def test_a_file_is_the_same_however_it_is_given(ax: Pipeline, disc: Path) -> None:
    expected = ax(disc, to="text:fr")
    other = ("image", picture("blue", "square", torch.Generator()))
    assert isinstance(expected, str) and ax(other, to="text:fr") != expected
    value = ax.modalities["image"].load(disc.read_bytes())
    other_ending = disc.rename(disc.with_suffix(".dat"))
    for given in (
        ("image", value),
        ("image", other_ending),
        ("image", str(other_ending)),
        ("image", other_ending.read_bytes()),
    ):
        assert ax(given, to="text:fr") == expected


def test_texts_are_given_as_they_are(ax: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a red disc\n")
    drawn = ax("a red disc", to="image")
    assert isinstance(drawn, PIL.Image.Image) and drawn.size == (16, 16)
    for given in (" a red disc ", ("text", "a red disc"), tmp_path / "text.txt", str(tmp_path / "text.txt")):
        assert ax(given, to="image").tobytes() == drawn.tobytes()


def test_answers_depend_on_sources_seed_and_options(ax: Pipeline) -> None:
    assert ax("a red disc", to="image").tobytes() == ax("a red disc", to="image", seed=0).tobytes()
    assert ax("a red disc", to="image").tobytes() != ax("a red disc", to="image", seed=1).tobytes()
    assert ax("a red disc", to="image").tobytes() != ax("a blue square", to="image").tobytes()
    sound = ax("a red disc", to="audio", length=7)
    assert sound.seconds == pytest.approx(7 * 0.05, abs=0.05)


def test_several_sources_go_in_together(ax: Pipeline, disc: Path) -> None:
    sound = ax.modalities["audio"].load(tone("red", "disc", torch.Generator().manual_seed(1)))
    answer = ax(disc, ("audio", sound), "a red disc", to="text:fr", temperature=1.0)
    direction = Direction.parse("image+audio+text>text:fr")
    values = (ax.modalities["image"].load(disc.read_bytes()), sound, "a red disc")
    assert ax.answer([direction], [values], temperature=1.0) == [answer]
    others = [ax(disc, "a red disc", to="text:fr", temperature=1.0), ax(disc, to="text:fr", temperature=1.0)]
    assert len({answer, *others}) == 3


def test_a_batch_of_mixed_directions_equals_its_parts(ax: Pipeline) -> None:
    directions, sources = [], []
    for number, colour in enumerate(COLOURS):
        chance = torch.Generator().manual_seed(number)
        image = ax.modalities["image"].load(picture(colour, "disc", chance))
        sound = ax.modalities["audio"].load(tone(colour, "square", chance))
        directions += map(Direction.parse, ("image>text:en", "text>image", "audio>text:fr", "text>audio"))
        sources += [(image,), (f"a {colour} disc",), (sound,), (f"un carré {COLOURS[colour]}",)]
    together = ax.answer(directions, sources, batch_size=5, seed=3)
    for number, (direction, given, value) in enumerate(zip(directions, sources, together)):
        alone = ax.answer([direction], [given], seed=3 + number)[0]
        modality = ax.modalities[direction.target.modality]
        assert modality.save(alone) == modality.save(value), f"{number}: {direction}"
    assert len(set(together[0::4])) == len(COLOURS), "answers do not depend on their sources"


def test_a_batch_answers_as_a_call_does(ax: Pipeline, disc: Path, tmp_path: Path) -> None:
    """What is silent too, and what is longer than the model reads."""
    silent, long = Waveform(torch.zeros(8000)), "a red disc. " * 20
    directions = [Direction.parse(it) for it in ("audio>text:en", "text>text:fr", "image>text:en")]
    values = [(silent,), (long,), (ax.modalities["image"].load(disc.read_bytes()),)]
    alone = [
        ax(("audio", silent), to="text:en", seed=4),
        ax(long, to="text:fr", seed=5),
        ax(disc, to="text:en", seed=6),
    ]
    assert alone[0] == "" and ax.answer(directions, values, seed=4) == alone
    assert ax.many([disc, disc], to="text:en", temperature=1.0, seed=6, batch_size=1) == [
        ax(disc, to="text:en", temperature=1.0, seed=seed) for seed in (6, 7)
    ]
    for call in (ax.answer, ax.perform):
        with pytest.raises(ValueError, match="batch_size=0 is not possible"):
            call(*([directions, values] if call == ax.answer else [[ax.job(directions[1], ("a",))]]), batch_size=0)


def test_one_bad_input_of_many_leaves_the_others(ax: Pipeline, disc: Path, tmp_path: Path) -> None:
    """They are read as they are needed, and each has its own seed."""
    broken, taken = tmp_path / "broken.png", list[Any]()
    broken.write_bytes(b"no picture")

    def inputs() -> Iterator[Any]:
        for it in (broken, disc, ("audio", Waveform(torch.zeros(8000))), disc, *[disc] * 8):
            taken.append(it)
            yield it

    options = {"temperature": 1.0, "seed": 3, "batch_size": 1}
    found = ax.stream(inputs(), to="text:en", **options)
    assert "broken.png" in str(next(found)) and len(taken) < 12
    rest = list(found)
    first, third = (ax(disc, to="text:en", temperature=1.0, seed=seed) for seed in (4, 6))
    assert rest[:3] == [first, "", third]
    (error, drawn) = ax.stream([("audio", Waveform(torch.zeros(8000))), disc], to="image", **options)
    assert isinstance(error, ValueError) and drawn.size == (16, 16)
    with pytest.raises(ValueError, match=r"broken\.png"):
        ax.many([disc, broken], to="text:en")
    with pytest.raises(ValueError, match="batch_size=0 is not possible"):
        list(ax.stream([disc], to="text:en", batch_size=0))


def test_a_text_beside_its_modality_is_no_file(ax: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.txt").write_text("a blue square")
    assert ax.read("secret.txt") == ("text", "a blue square") == ax.read(("text", Path("secret.txt")))
    assert ax.read(("text", "secret.txt")) == ("text", "secret.txt")


def test_values_in_memory(ax: Pipeline, disc: Path) -> None:
    pixels, expected = np.array(PIL.Image.open(disc).convert("RGB")), ax(disc, to="text:en")
    for value in (PIL.Image.open(disc), pixels, torch.from_numpy(pixels)):
        assert ax(("image", value), to="text:en") == expected
    sound = ax.modalities["audio"].load(tone("red", "disc", torch.Generator().manual_seed(1)))
    expected = ax(("audio", sound), to="text:en")
    loud = (sound.samples * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    for samples in (sound.samples, sound.samples.double().numpy(), sound.samples.repeat(2, 1), loud):
        assert ax(("audio", (samples, sound.sample_rate)), to="text:en") == expected
    for name, value in (
        ("image", pixels / 255), ("image", [1, 2]), ("audio", sound.samples), ("audio", (sound.samples, 0.5)),
        ("audio", (torch.zeros(2, 3, 4), 16_000)), ("audio", (torch.full((99,), torch.nan), 16_000)), ("text", 5),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            ax((name, value), to="image")


def test_options_as_numpy_has_them_and_none(ax: Pipeline) -> None:
    same = ax("a red disc", to="image", seed=3, steps=4, temperature=0.5)
    numbers = {"seed": np.int64(3), "steps": np.int32(4), "temperature": np.float32(0.5)}
    assert ax("a red disc", to="image", **numbers).tobytes() == same.tobytes()
    for name in ("seed", "top_k", "top_p", "steps"):
        with pytest.raises(ValueError, match=f"{name}=None is not possible: give a"):
            ax("a red disc", to="image", **{name: None})


def test_nothing_of_a_gpu_is_seeded_by_making_modalities(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    state = torch.get_rng_state()
    Image(size=16, width=16, levels=[5, 5, 5]), Audio(width=16, levels=[5, 5, 5])
    assert not seeded and torch.equal(torch.get_rng_state(), state)


def test_nothing_is_no_batch(ax: Pipeline) -> None:
    assert ax.answer([], []) == []


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((), {}, "there is nothing to convert"),
        (("missing.png",), {}, "there is no file 'missing.png'"),
        ((Path("missing.png"),), {}, "there is no file 'missing.png'"),
        ((("image", Path("missing.dat")),), {}, "there is no file 'missing.dat'"),
        ((("image", "missing.png"),), {}, "there is no file 'missing.png', and as image it cannot be read"),
        ((("image", b""),), {}, r"the picture is empty \(0 bytes\)"),
        ((("imgae", "missing.png"),), {}, "this model reads no 'imgae': did you mean 'image'"),
        ((5,), {}, r"5 is no file, and its modality is unknown: give \(modality, value\)"),
        ((PIL.Image.new("RGB", (4, 4)),), {}, "is no file, and its modality is unknown"),
        (("",), {}, "the text is empty"),
        (("  \n",), {}, "the text is empty"),
        (("half a pair \ud800",), {}, "surrogates not allowed"),
        (("word " * 100,), {"to": "image"}, "tokens, more than max_length=24"),
        (("a disc",), {"to": "smell"}, "this model makes no 'smell': known: audio, image, text"),
        (("a disc",), {"to": "text:de"}, "the model knows no variant 'de' of text: known: en, fr"),
        (("a disc",), {"to": "Text"}, "'Text' is not a field: write modality or modality:variant"),
        (("a disc",), {"temprature": 1}, "no option is called 'temprature': did you mean 'temperature'"),
        (("a disc",), {"steps": 0}, "steps=0 is not possible: give 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_said(ax: Pipeline, given: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ax(*given, **({"to": "text:en"} | options))


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        (
            "image",
            {"decoding": "autoregressive"},
            "decoding=autoregressive is not possible: this model has learnt image in",
        ),
        (
            "text:en",
            {"decoding": "masked", "n": 2},
            "decoding=masked is not possible: this model has learnt text in the",
        ),
        ("text:en", {"refine": 2}, r"refine=2 is not possible: .* train it with data.other_decoding=\{text: 0\.2\}"),
    ],
)
def test_what_was_not_learnt_is_refused(checkpoint: Path, to: str, options: dict, message: str) -> None:
    """Unless the checkpoint says that it was, as that of these tests does."""
    ax = anyxform.load(str(checkpoint), device="cpu")
    ax("a red disc", to=to, **options)
    ax.facts["facts"]["other_decoding"] = 0.0
    with pytest.raises(ValueError, match=message):
        ax("a red disc", to=to, **options)
    ax("a red disc", to="image", decoding="masked", refine=1)


def test_a_device_that_is_not_there_is_named(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="the device 'gpu' cannot be used"):
        anyxform.load(str(run_dir), device="gpu")


def test_a_path_is_no_name_of_a_shipped_checkpoint(run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("anyxform.pipeline.SHIPPED", tmp_path / "package" / "pretrained")
    for place in ("package/pretrained/mine", "package/demo"):
        shutil.copytree(run_dir / "checkpoints" / "step-00000006", tmp_path / place)
    assert anyxform.load("mine").path == tmp_path / "package/pretrained/mine"
    for name in ("../demo", "their/mine"):
        with pytest.raises(ValueError, match=f"there is no checkpoint at {name}"):
            anyxform.load(name)
