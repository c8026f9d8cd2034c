"""The image plug-in. Letters: S side in pixels, T tokens, D width."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from PIL import ImageDraw
from PIL.Image import Image as Picture
from PIL.Image import new
from torch import Tensor, nn

from anyxform.modality import Modality, Score, check_decoding
from modalities.image import judge, pixels, region
from modalities.image.augment import augment
from modalities.image.quality import psnr, ssim

REPORT_BATCH = 64
MAX_COMPARED = 32
COLOURS = ("red", "green", "blue", "orange", "purple", "black")


class Image(Modality):
    """Square RGB pictures: PIL images, whose preprocessed tensor is ``[1, 3, S, S]`` in [-1, 1]."""

    name: ClassVar[str] = "image"
    extensions: ClassVar[tuple[str, ...]] = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
    position_axes: ClassVar[int] = 2
    training_arguments: ClassVar[frozenset[str]] = frozenset({"augment", "pretrained"})
    source_arguments: ClassVar[frozenset[str]] = frozenset({"patch_size", "backbone", "backbone_size", "frozen"})
    fixed_length = True

    def __init__(
        self,
        size: int = 64,
        patch_size: int = 8,
        downsample: int = 8,
        levels: Sequence[int] = (8, 5, 5, 5),
        num_codebooks: int = 1,
        width: int = 128,
        augment: float = 1.0,
        backbone: str | None = None,
        backbone_size: int | None = None,
        pretrained: bool | str | None = False,
        frozen: bool = False,
        decoding: str = "masked",
    ) -> None:
        """
        `size`: pixels of a side. `patch_size`: pixels of a source token's side. `augment`: strength in training, 0 for
        none. `downsample`: pixels of a target token's side. `levels`: of each of its `num_codebooks` quantisers, whose
        product is a codebook's size. `width`: channels of the tokenizer, a multiple of 8. `backbone`: a timm model in
        place of patches, which sees `backbone_size` pixels (`size` if None), its weights `pretrained` (true:
        downloaded; or the path of a file of safetensors) and `frozen` or not. `decoding`: ``masked``, or
        ``autoregressive``, left to right.
        """
        for name, value, least in (("patch_size", patch_size, 1), ("downsample", downsample, 4)):
            if value < least or value & (value - 1) or size % value:
                raise ValueError(f"image {name}={value} must be a power of two from {least} that divides size={size}")
        if size < 16 or width % 8 or min(levels) < 3 or num_codebooks < 1 or not 0 <= augment <= 1:
            raise ValueError(
                "image needs size >= 16, width a multiple of 8, levels >= 3, num_codebooks >= 1 and augment from 0 to "
                f"1, not size={size}, width={width}, levels={list(levels)}, num_codebooks={num_codebooks}, "
                f"augment={augment}"
            )
        self._config = {
            "size": size, "patch_size": patch_size, "downsample": downsample, "levels": list(levels),
            "num_codebooks": num_codebooks, "width": width, "augment": augment, "backbone": backbone,
            "backbone_size": backbone_size, "frozen": frozen, "decoding": decoding,
        }  # fmt: skip
        self.decoding = check_decoding(self.name, decoding)
        self.size, self.patch_size, self.augment = size, patch_size, augment
        self.backbone = backbone
        self.backbone_size, self.pretrained, self.frozen = backbone_size or size, pretrained, frozen
        self.code_grid = (size // downsample, size // downsample)
        self.max_length = self.code_grid[0] * self.code_grid[1]
        self.num_codebooks = num_codebooks
        self.tokenizer = _tokenizer(tuple(levels), width, downsample, num_codebooks)
        self.vocab_size = int(self.tokenizer.quantizer.codebook_size)
        self._source_grid: tuple[int, int] | None = None if backbone else (size // patch_size, size // patch_size)

    def load(self, data: bytes) -> Picture:
        return pixels.read(data)

    def accept(self, value: Any) -> Picture:
        return pixels.accept(value)

    def save(self, value: Picture) -> bytes:
        return pixels.write(value)

    def preprocess(self, value: Picture, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        picture = pixels.square(pixels.plain(value), self.size)
        if train and self.augment:
            return augment(picture, generator, self.augment).unsqueeze(0)
        return pixels.to_tensor(picture).unsqueeze(0)

    def source_positions(self, tensor: Tensor) -> Tensor:
        return _cells(*self.source_grid)

    @property
    def source_grid(self) -> tuple[int, int]:
        """Rows and columns of source tokens."""
        if self._source_grid is None:
            from modalities.image.front_end import grid

            self._source_grid = grid(str(self.backbone), self.backbone_size)
        return self._source_grid

    def front_end(self, dim: int) -> nn.Module:
        from modalities.image.front_end import Backbone, ConvStem  # timm takes seconds to import

        if self.backbone is None:
            return ConvStem(self.patch_size, dim)
        return Backbone(self.backbone, dim, size=self.backbone_size, pretrained=self.pretrained, frozen=self.frozen)

    def codes(self, tensor: Tensor) -> Tensor:
        return self.tokenizer.encode(tensor)[0]

    def code_positions(self, length: int) -> Tensor:
        return _cells(*self.code_grid)[:length]

    def from_codes(self, codes: Tensor) -> Picture:
        return pixels.to_picture(self.tokenizer.decode(codes.reshape(1, -1, self.num_codebooks))[0])

    def decoder(self) -> nn.Module:
        from modalities.image.tokenizer import Decoder

        return Decoder(self.tokenizer)

    def recipe(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        return {
            "size": self.size, "mode": "RGB", "layout": "channels, rows, columns", "mean": 127.5, "deviation": 127.5,
            "formula": "(pixel - mean) / deviation", "resampling": "Lanczos", "transparency": "over white",
            "padding": "to a square, with the median colour of the border",
        }, {}  # fmt: skip

    def region(self, spec: str, value: Picture) -> Tensor:
        """The mask ``[H, W]`` of ``x0,y0,x1,y1`` in pixels, or of a file that is white there."""
        return region.named(spec, pixels.plain(value))

    def extended(self, spec: str, value: Picture) -> tuple[Picture, Tensor]:
        """Larger by ``left,top,right,bottom`` pixels."""
        return region.extended(spec, pixels.plain(value))

    def divided(self, value: Picture, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.codes(self.preprocess(value)), ~region.touched(mask, self.size, self.code_grid)

    def paste(self, original: Picture, edited: Picture, mask: Tensor) -> Picture:
        return region.paste(pixels.plain(original), edited, mask)

    def fit(self, values: Sequence[Picture], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        from modalities.image.tokenizer import train

        if not values:
            raise ValueError("there is no picture to fit a tokenizer on")
        yield from train(self.tokenizer, self._stack(values), steps=steps, seed=seed)

    def _stack(self, values: Sequence[Picture]) -> Tensor:
        """``[n, 3, S, S]`` uint8: a quarter of the memory."""
        tensors = (pixels.to_tensor(pixels.square(value, self.size)) for value in values)
        return torch.stack([tensor.add(1).mul(127.5).round().byte() for tensor in tensors])

    def report(self, values: Sequence[Picture]) -> dict[str, float]:
        """PSNR (dB) and SSIM of reconstructions, and how many codes, and which share of the codebook, are used."""
        if not values:
            raise ValueError("there is no picture to report on")
        qualities, used = [], torch.zeros(self.num_codebooks, self.vocab_size)
        for batch in self._stack(values).split(REPORT_BATCH):
            x = batch.float() / 127.5 - 1
            codes = self.tokenizer.encode(x)
            y = self.tokenizer.decode(codes)
            qualities.append(torch.stack([psnr(y, x), ssim(y, x)]))
            for book, column in enumerate(codes.flatten(0, 1).T):
                used[book] += column.bincount(minlength=self.vocab_size)
        mean_psnr, mean_ssim = torch.cat(qualities, dim=1).mean(dim=1).tolist()
        share = used / used.sum(dim=1, keepdim=True)
        entropies = torch.special.entr(share).sum(dim=1)
        return {
            "psnr": mean_psnr,
            "ssim": mean_ssim,
            "codes_used": int((used > 0).sum()),
            "codebook_usage": float((used > 0).float().mean()),
            "perplexity": float(entropies.mean().exp()),
        }

    def compare(self, values: Sequence[Picture], path: str) -> None:
        """A PNG: rows of originals, each row above the row of its reconstructions."""
        originals = [pixels.square(value, self.size) for value in values[:MAX_COMPARED]]
        again = [self.from_codes(self.codes(self.preprocess(picture))) for picture in originals]
        starts = range(0, len(originals), 8)
        rows = [row for start in starts for row in (originals[start : start + 8], again[start : start + 8])]
        pixels.grid(rows).save(path, "PNG")

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def state(self) -> dict[str, Tensor]:
        return dict(self.tokenizer.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.tokenizer.load_state_dict(state)

    def metrics(self, predicted: Picture, reference: Picture) -> dict[str, Score]:
        x, y = self.preprocess(predicted), self.preprocess(reference)
        return {"psnr": Score(psnr(x, y).item()), "ssim": Score(ssim(x, y).item())}

    def judge(
        self, predicted: Sequence[Picture], references: Sequence[Picture], texts: Sequence[str]
    ) -> dict[str, list[Score]]:
        """`retrieval`: 1 if, of one reference for each text, the nearest by an ImageNet classifier has this text."""
        if not predicted or not judge.installed():
            return {}
        return {"retrieval": [Score(float(hit)) for hit in judge.retrieved(predicted, references, texts)]}

    def example(self, generator: torch.Generator) -> Picture:
        colour, shape, left, top = (int(torch.randint(n, (1,), generator=generator)) for n in (6, 2, 20, 20))
        picture = new("RGB", (48, 40), "white")
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape else draw.rectangle)((left, top, left + 20, top + 15), fill=COLOURS[colour])
        return picture


def _tokenizer(levels: tuple[int, ...], width: int, downsample: int, num_codebooks: int) -> Any:
    """A tokenizer whose first weights are always the same, so that an unfitted one is a function too."""
    from modalities.image.tokenizer import Tokenizer  # its quantiser takes seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs too
        return Tokenizer(levels, width, downsample, num_codebooks).eval().requires_grad_(False)


def _cells(rows: int, columns: int) -> Tensor:
    """Row and column of each cell ``[rows · columns, 2]``, rows first."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
