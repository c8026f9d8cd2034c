"""Parts of pictures, recordings and texts: how they are named, which codes they touch, and that the rest stays."""

from pathlib import Path

import PIL.Image
import pytest
import torch
from PIL import ImageDraw

from modalities.audio import Audio
from modalities.audio.waveform import Waveform
from modalities.image import Image
from modalities.text import Text
from tests.toy import ToySound


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(size=32, downsample=8, width=16, levels=(5, 5, 5))


@pytest.fixture(scope="module")
def audio() -> Audio:
    return Audio(max_seconds=2, width=16)


def noise(width: int, height: int) -> PIL.Image.Image:
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return PIL.Image.fromarray(pixels.numpy())


def sound(seconds: float, rate: int = 16_000) -> Waveform:
    return Waveform(0.1 * torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(0)), rate)


def assert_pasted(original: PIL.Image.Image, other: PIL.Image.Image, mask: torch.Tensor) -> None:
    """Pixels differ inside of the mask, in more than half of the places, and nowhere else."""
    different = torch.from_numpy((_array(original) != _array(other)).any(axis=-1))
    assert not different[~mask].any() and different[mask].float().mean() > 0.5


def _array(picture: PIL.Image.Image):
    import numpy as np

    return np.array(picture)


# Pictures


def test_a_rectangle_and_a_file_name_the_same_pixels(image: Image, tmp_path: Path) -> None:
    picture, drawn = noise(32, 32), PIL.Image.new("L", (32, 32))
    ImageDraw.Draw(drawn).rectangle((4, 8, 15, 20), fill=255)
    drawn.save(tmp_path / "mask.png")
    mask = image.region("4,8,16,21", picture)
    assert mask.sum() == 12 * 13 and mask[8, 4] and not mask[7, 4]
    assert torch.equal(image.region(str(tmp_path / "mask.png"), picture), mask)


def test_a_picture_keeps_the_codes_that_a_part_does_not_touch(image: Image) -> None:
    picture = noise(32, 32)
    codes, keep = image.divided(picture, image.region("8,0,17,8", picture))
    assert torch.equal(codes, image.codes(image.preprocess(picture)))
    assert (~keep).nonzero().flatten().tolist() == [1, 2], "one pixel of the third cell is enough"


@pytest.mark.parametrize("sides", [(32, 32), (64, 64), (90, 40), (20, 33)])
def test_pixels_outside_of_a_part_stay(image: Image, sides: tuple[int, int]) -> None:
    """Whatever the picture's size, which the result has too."""
    picture, (width, height) = noise(*sides), sides
    mask = image.region(f"0,0,{width // 2},{height // 2}", picture)
    pasted = image.paste(picture, image.from_codes(torch.zeros(16, 1, dtype=torch.long)), mask)
    assert pasted.size == sides
    assert_pasted(picture, pasted, mask)


def test_a_part_lies_where_the_picture_is_drawn(image: Image) -> None:
    """A wide picture's lower half is in the third row of cells, as the square has borders above and below."""
    picture = noise(64, 32)
    _, keep = image.divided(picture, image.region("0,16,64,32", picture))
    assert (~keep).view(4, 4).tolist() == [[row == 2] * 4 for row in range(4)]


def test_a_picture_grows_and_the_old_one_moves(image: Image) -> None:
    picture = noise(32, 32)
    larger, mask = image.extended("8,0,24,0", picture)
    assert larger.size == (64, 32) and mask.shape == (32, 64)
    assert larger.crop((8, 0, 40, 32)).tobytes() == picture.tobytes()
    assert not mask[:, 8:40].any() and mask[:, :8].all() and mask[:, 40:].all()


# Recordings


@pytest.mark.parametrize(("spec", "tokens"), [("0:0.05", [0]), ("0.5:", [*range(10, 20)]), (":0.06", [0, 1])])
def test_seconds_are_tokens(audio: Audio, spec: str, tokens: list[int]) -> None:
    value = sound(1.0)
    codes, keep = audio.divided(value, audio.region(spec, value))
    assert (~keep).nonzero().flatten().tolist() == tokens and codes.shape == (20, 6)


def test_what_is_made_anew_reaches_as_far_as_the_codebooks_are_late() -> None:
    audio, value = Audio(width=16, num_codebooks=3, delay=True), sound(1.0)
    codes, keep = audio.divided(value, audio.region("0.1:0.2", value))
    assert (~keep).nonzero().flatten().tolist() == [2, 3, 4, 5] and codes.shape == (22, 3)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_outside_of_a_range_stay(audio: Audio, rate: int) -> None:
    value = sound(1.0, rate)
    mask = audio.region("0.25:0.75", value)
    other = Waveform(torch.ones(16_000))
    pasted = audio.paste(value, other, mask)
    assert pasted.sample_rate == rate and torch.equal(pasted.samples[~mask], value.samples[~mask])
    middle = pasted.samples[int(0.26 * rate) : int(0.74 * rate)]
    assert torch.allclose(middle, torch.ones_like(middle), atol=0.02)
    assert abs(pasted.samples[mask][0] - value.samples[mask][0]) < 0.05, "it comes in without a click"


def test_a_recording_goes_on(audio: Audio) -> None:
    value = sound(0.5)
    longer, mask = audio.extended("0.25", value)
    assert longer.seconds == 0.75 and torch.equal(longer.samples[~mask], value.samples) and mask[8000:].all()
    both, mask = audio.extended("0.1,0.2", value)
    assert both.seconds == pytest.approx(0.8) and torch.equal(both.samples[1600:9600], value.samples)
    _, keep = audio.divided(both, mask)
    assert keep.tolist() == [False] * 2 + [True] * 10 + [False] * 4


# Texts


def test_words_and_characters_name_a_span() -> None:
    text, value = Text(), "a red fish: red"
    for spec in ("red", "'red'", '"red"', "2:5"):
        assert text.region(spec, value).nonzero().flatten().tolist() == [2, 3, 4]
    assert text.region("11:", value).sum() == 4 and text.region("':'", value).nonzero().item() == 10


@pytest.mark.parametrize("middle", ["blue", "green ", "🐸 é", "�"])
@pytest.mark.parametrize(
    "value", ["a red fish", "ein red, fein", "e\u0301t\u00e9 \n\nred fish", "red", "xredy", "é  red…"]
)
def test_characters_outside_of_a_span_stay(value: str, middle: str) -> None:
    """Be they composed or not, and whatever comes in between."""
    text = Text()
    mask = text.region("red", value)
    codes, keep = text.divided(value, mask)
    gap = keep.logical_not().nonzero().flatten().tolist()
    head, _, tail = value.partition("red")
    space = " " if head.endswith(" ") and not head.endswith("  ") else ""
    new = torch.cat([codes[: gap[0]], text.codes(text.preprocess(space + middle)), codes[gap[-1] + 1 :]])
    assert text.paste(value, text.from_codes(new), mask) == head + middle + tail


@pytest.mark.parametrize(("value", "space"), [("a red fish", True), ("red", False), ("xred", False), ("a  red", False)])
def test_a_space_before_a_span_begins_what_is_new(value: str, space: bool) -> None:
    text = Text()
    mask = text.region("red", value)
    first = text.first_codes(value, mask)
    assert (first is not None) == space
    if first is not None:
        assert [text.from_codes(code) for code in first.nonzero()] == [" "], "of single bytes only this one"


def test_what_does_not_keep_a_text_is_refused() -> None:
    text = Text()
    mask = text.region("red", "a red fish")
    for edited in ("another fish", "a red", "a blue fishing", "a fish"):
        with pytest.raises(ValueError, match="does not go on from 'a '"):
            text.paste("a red fish", edited, mask)


def test_a_text_goes_on_at_either_end() -> None:
    text = Text()
    for spec, place in (("end", -1), ("start", 0)):
        longer, mask = text.extended(spec, "a fish")
        _, keep = text.divided(longer, mask)
        assert "a fish" in longer and mask[place] and mask.sum() == 1
        assert keep.sum() == 6 and not keep[place]


# Mistakes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0,0,32", "'0,0,32' is no part of a picture: give x0,y0,x1,y1 in pixels, or a file"),
        ("mask.png", "'mask.png' is no part of a picture"),
        ("0,0,33,8", "no rectangle in a picture of 32 by 32 pixels: give x0,y0,x1,y1 within 0,0,32,32"),
        ("8,0,8,8", "no rectangle"),
        ("small.png", "small.png has 16 by 16 pixels, the picture 32 by 32: a mask has the size of its picture"),
        ("broken.png", "broken.png: the picture is none of PNG"),
    ],
)
def test_what_is_no_part_of_a_picture(image: Image, spec: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise(16, 16).save("small.png")
    Path("broken.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=message):
        image.region(spec, noise(32, 32))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1.5", "'1.5' is no part of a recording: give from:to in seconds"),
        ("a:b", "'a:b' is no part of a recording: give from:to in seconds"),
        ("0:3", "'0:3' is no part of a recording of 1.00 s"),
        ("0.5:0.5", "no part of a recording of 1.00 s"),
    ],
)
def test_what_is_no_part_of_a_recording(audio: Audio, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.region(spec, sound(1.0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blue", "'blue' is not in the text 'a red fish': give words that it holds, or characters from:to"),
        ("3:99", "'3:99' is no span of a text of 10 characters"),
        ("5:5", "no span"),
        ("", "'' is not in the text"),
    ],
)
def test_what_is_no_part_of_a_text(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text().region(spec, "a red fish")


@pytest.mark.parametrize("spec", ["", "-1", "0", "a", "0,0,0,0", "1,2,3,4,5"])
def test_nothing_grows_by_nothing(image: Image, audio: Audio, spec: str) -> None:
    for modality, value in ((image, noise(32, 32)), (audio, sound(0.1)), (Text(), "a")):
        with pytest.raises(ValueError, match=r"how much larger|how much longer|where a text can go on"):
            modality.extended(spec, value)


def test_of_several_spans_one_at_a_time() -> None:
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="one span at a time"):
        Text().divided("abc", mask)


def test_a_modality_need_not_have_parts() -> None:
    for call in ("region", "extended"):
        with pytest.raises(ValueError, match="no part of sound can be edited: it is made anew as a whole"):
            getattr(ToySound(), call)("0:1", ((1, 2),))
