"""Image: files of every kind and state, augmentation, the tokenizer's training, quality, the backbone and the judge."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.Image import Image as Picture
from safetensors.torch import save_file

from modalities.image import Image, judge, pixels
from modalities.image.augment import greatest_nearby
from modalities.image.quality import psnr, ssim

SMALL = {"size": 32, "width": 16}


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Picture:
    tensor = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return pixels.to_picture(tensor * 2 - 1)


def encoded(picture: Picture, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


# Files


@pytest.mark.parametrize("kind", pixels.FORMATS)
def test_every_format_is_read_and_no_truncated_file_is(kind: str) -> None:
    data = encoded(noise(), kind)
    assert Image(**SMALL).load(data).size == (40, 30)
    for end in (1, 8, 30, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ValueError, match=r"^the .*picture is .*(broken|cut short)") as error:
            Image(**SMALL).load(data[:end])
        assert "\n" not in str(error.value)


def test_a_flipped_byte_in_a_png_is_found() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(ValueError, match="broken"):
        Image(**SMALL).load(bytes(data))


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="none of PNG"):
        Image(**SMALL).load(b"%PDF-1.7 and so on")


def test_decompression_bombs_are_refused_before_they_are_unpacked() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match="pixels"):
            Image(**SMALL).load(bomb)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    clear = PIL.Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    options = {}
    if mode == "P":
        clear, options = PIL.Image.new("P", (20, 20), 0), {"transparency": 0}
    elif mode == "LA":
        clear = clear.convert("LA")
    assert Image(**SMALL).load(encoded(clear, "PNG", **options)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_is_read_as_its_file_is(mode: str) -> None:
    picture = PIL.Image.new("RGBA", (16, 16), (200, 30, 60, 0))
    picture.paste((10, 90, 200, 255), (4, 4, 12, 12))
    picture = picture.convert(mode)
    image = Image(size=16, width=16)
    file = BytesIO()
    picture.save(file, "PNG")
    assert torch.equal(image.preprocess(picture), image.preprocess(image.load(file.getvalue())))


def test_sixteen_bits_of_grey_are_scaled() -> None:
    grey = PIL.Image.new("I;16", (20, 20), 32768)
    assert Image(**SMALL).load(encoded(grey, "PNG")).getpixel((0, 0)) == (127, 127, 127)


def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image(**SMALL).load(data).getpixel((0, 0)) == (255, 0, 0)


def test_pictures_from_phones_are_turned_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert Image(**SMALL).load(encoded(noise(40, 30), "JPEG", exif=exif.tobytes())).size == (30, 40)


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (1, 500), (32, 32), (7, 7)])
def test_pictures_are_padded_to_squares_with_their_border(size: tuple[int, int]) -> None:
    tensor = Image(**SMALL).preprocess(PIL.Image.new("RGB", size, (255, 0, 0)))
    assert tensor.shape == (1, 3, 32, 32)
    assert torch.equal(tensor[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0])) and tensor.std(dim=(2, 3)).max() == 0


# Augmentation


def test_augmented_pictures_differ_but_resemble() -> None:
    image = Image(size=32, width=16)
    value = pixels.square(image.example(torch.Generator().manual_seed(2)), 32)
    plain = image.preprocess(value)
    generator = torch.Generator().manual_seed(0)
    varied = torch.cat([image.preprocess(value, train=True, generator=generator) for _ in range(256)])
    assert varied.min() >= -1 and varied.max() <= 1 and varied.isfinite().all()
    assert (varied - plain).abs().mean(dim=(1, 2, 3)).min() > 0.01
    correlation = torch.corrcoef(torch.stack([plain.flatten(), varied.mean(dim=0).flatten()]))[0, 1]
    assert correlation > 0.8


def test_augmentation_can_be_switched_off() -> None:
    image, value = Image(size=32, width=16, augment=0.0), noise()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(image.preprocess(value, train=True, generator=generator), image.preprocess(value))


# Tokenizer


def test_other_sizes_by_config() -> None:
    image = Image(size=64, patch_size=16, downsample=16, levels=(8, 8), width=16)
    codes = image.codes(image.preprocess(noise()))
    assert len(codes) == image.max_length == 16 and image.vocab_size == 64
    assert len(image.source_positions(image.preprocess(noise()))) == 16
    assert image.from_codes(codes).size == (64, 64)


def test_several_codes_a_token() -> None:
    image = Image(size=32, width=16, levels=(4, 4), num_codebooks=3)
    tensor = image.preprocess(noise())
    codes = image.codes(tensor)
    assert codes.shape == (16, 3) and image.vocab_size == 16 and image.report([noise()])["codes_used"] > 16
    changed = codes.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 16
    before, after = (pixels.to_tensor(image.from_codes(value)) for value in (codes, changed))
    assert (before - after).abs().max() > 0  # each codebook is heard
    with pytest.raises(ValueError, match="num_codebooks=0"):
        Image(num_codebooks=0)


def test_training_learns_to_draw_its_pictures() -> None:
    image = Image(size=16, width=16, downsample=4)
    values = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "white")]
    before = image.report(values)
    progress = list(image.fit(values, steps=200, seed=0))
    after = image.report(values)
    assert [p["step"] for p in progress] == list(range(1, 201)) and progress[-1]["loss"] < progress[0]["loss"]
    assert after["psnr"] > before["psnr"] + 5
    assert 4 <= after["codes_used"] <= 1000


def test_compare_saves_a_picture(tmp_path) -> None:
    image = Image(**SMALL)
    image.compare([noise(seed=seed) for seed in range(10)], str(tmp_path / "compare.png"))
    assert PIL.Image.open(tmp_path / "compare.png").size == (2 * 8 * 32, 2 * 4 * 32)


@pytest.mark.parametrize(
    "wrong", [{"size": 60}, {"patch_size": 3}, {"downsample": 2}, {"levels": (2, 5)}, {"width": 12}]
)
def test_arguments_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"^image "):
        Image(**wrong)


# Quality


def test_psnr_and_ssim_have_their_known_values() -> None:
    x = torch.zeros(1, 3, 32, 32)
    assert psnr(x, x).item() == 100 and ssim(x, x).item() == pytest.approx(1)
    assert psnr(x, x + 0.2).item() == pytest.approx(20, abs=1e-3)  # an error of a tenth of the range
    # constant pictures of brightness a and b: (2ab + c1) / (a² + b² + c1)
    assert ssim(x, x + 0.2).item() == pytest.approx((2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4), abs=1e-4)


# Backbone


@pytest.mark.parametrize(("name", "tokens"), [("resnet10t", 4), ("vit_tiny_patch16_224", 16), ("test_vit", 16)])
def test_a_timm_backbone_gives_its_tokens(name: str, tokens: int) -> None:
    image = Image(width=16, backbone=name)
    x = image.preprocess(noise()).expand(2, -1, -1, -1)
    front_end = image.front_end(24)
    assert len(image.source_positions(x[:1])) == tokens
    assert front_end(x, [1, 1]).shape == (2 * tokens, 24)


def test_a_backbone_may_give_one_token() -> None:
    image = Image(size=16, width=16, backbone="test_resnet")
    assert len(image.source_positions(image.preprocess(noise()))) == 1


def test_a_frozen_backbone_stays_as_it_is() -> None:
    front_end = Image(width=16, backbone="test_resnet", frozen=True).front_end(8).train()
    before = {name: tensor.clone() for name, tensor in front_end.model.state_dict().items()}
    front_end(torch.rand(2, 3, 64, 64), [1, 1]).sum().backward()
    assert not front_end.model.training and all(p.grad is None for p in front_end.model.parameters())
    assert front_end.project.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in front_end.model.state_dict().items())


def test_a_trained_backbone_gets_gradients() -> None:
    front_end = Image(width=16, backbone="test_resnet", backbone_size=96).front_end(8)
    front_end(torch.rand(2, 3, 64, 64), [1, 1]).sum().backward()
    assert all(p.grad is not None for p in front_end.model.parameters())


def test_a_backbone_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    """Which a checkpoint does not need any more: it has them."""
    trained = Image(width=16, backbone="test_resnet").front_end(8).model.state_dict()
    save_file(trained, tmp_path / "weights.safetensors")
    image = Image(width=16, backbone="test_resnet", pretrained=str(tmp_path / "weights.safetensors"))
    begun = image.front_end(8).model.state_dict()
    assert trained.keys() == begun.keys() and all(torch.equal(begun[name], it) for name, it in trained.items())
    (tmp_path / "weights.safetensors").unlink()
    assert Image(**image.config()).front_end(8)
    with pytest.raises(ValueError, match=r"there is no file of safetensors '.*weights.safetensors'"):
        image.front_end(8)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    save_file({"conv9.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    image = Image(width=16, backbone="test_resnet", pretrained=str(tmp_path / "weights.safetensors"))
    with pytest.raises(ValueError, match=r"does not fit the timm model 'test_resnet': .* is not in it"):
        image.front_end(8)


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet_9000'"):
        Image(width=16, backbone="resnet_9000").front_end(8)


# Judge


def test_without_its_packages_the_judge_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "installed", lambda: False)
    assert Image(**SMALL).judge([noise()], [noise()], ["noise"]) == {}


@pytest.mark.skipif(not judge.installed(), reason="needs the packages of the extra `eval`")
def test_the_judge_retrieves_the_right_text() -> None:
    image = Image(**SMALL)
    references = [image.example(torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]
    texts = ["first", "second", "third"]
    right = image.judge(references, references, texts)["retrieval"]
    wrong = image.judge(references[1:] + references[:1], references, texts)["retrieval"]
    assert [score.value for score in right] == [1, 1, 1] and [score.value for score in wrong] == [0, 0, 0]


@pytest.mark.parametrize("size", [(3, 2), (8, 5), (64, 64)])
def test_the_colour_of_the_border_is_the_median(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    assert pixels.border_colour(PIL.Image.fromarray(array)) == tuple(np.median(border, axis=0).astype(int))


def test_outlines_look_at_the_pixels_around_each() -> None:
    values = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(greatest_nearby(values), torch.nn.functional.max_pool2d(values, 3, 1, 1))
