"""A tiny dataset of the real modalities, with a folder of configs: coloured shapes, tones, and names in two languages.

A shape's colour is its tone's pitch, so every direction can be learnt. `tests/conftest.py` fits tokenizers to it and
trains on it, by the commands that users have.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image, ImageDraw

from anyxform.cli import main
from modalities.audio.waveform import Waveform, write

COLOURS = {"red": "rouge", "green": "vert", "blue": "bleu", "black": "noir", "orange": "orange", "purple": "violet"}
SHAPES = {"square": "carré", "disc": "disque"}
SPLITS = {"train": 4, "val": 1, "instance": 1}
"""How often each colour and shape is drawn."""

CONFIGS = {
    "modality/text.yaml": "{name: text, vocab_size: 300, max_length: 24}",
    "modality/image.yaml": "{name: image, size: 16, width: 16, levels: [5, 5, 5], augment: 0.0, decoding: masked}",
    "modality/audio.yaml": "{name: audio, max_seconds: 0.5, width: 16, levels: [5, 5, 5], num_codebooks: 2}",
    "data/tiny.yaml": """
root: {root}
datasets:
  shapes: {{shards: "shapes/{{split}}-*.tar", fields: {{"text:*": "json.text.*"}}}}
directions: {{image>text: 1, text>image: 1, audio>text: 1, text>audio: 1, text>text: 1}}
hold_out: ["audio>text:fr"]
tokens_per_row: 192
pool: 16
num_workers: 0
max_broken: 0.01
other_decoding: 0.1
""",
    "suite/tiny.yaml": """
captions: {split: instance, directions: ["image>text:*"], limit: 3}
untrained: {directions: ["audio>text:fr"], datasets: [shapes], limit: 2, via: "text:en", baselines: false}
""",
    "suite/wrong.yaml": "captions: {splti: instance}",
    "experiment/tiny.yaml": """
# @package _global_
defaults: [override /data: tiny, override /model: nano, override /optim: adamw]
model: {dim: 32, depth: 2, num_heads: 2, num_kv_heads: 1}
optim: {lr: 0.003, warmup: 4}
train: {steps: 6, rows_per_step: 2, ema: 0.9, log_every: 1, val_every: 0, sample_every: 0, checkpoint_every: 0}
""",
}


@dataclass(frozen=True)
class Tiny:
    """Where the dataset is."""

    folder: Path

    @property
    def root(self) -> Path:
        """The shards, and the tokenizers fitted to them."""
        return self.folder / "data"

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    def train(self, run_dir: Path | None, *overrides: str) -> list[str]:
        """The arguments of a training on it."""
        place = [] if run_dir is None else [f"run_dir={run_dir}"]
        return ["train", "--config-dir", str(self.conf), "experiment=tiny", "seed=3", *place, *overrides]

    def evaluate(self, checkpoint: Path, *overrides: str) -> list[str]:
        return ["eval", str(checkpoint), "--config-dir", str(self.conf), "data=tiny", "judges=false", *overrides]


def make(folder: Path) -> Tiny:
    """Write shards and configs, and fit the tokenizers in a few steps."""
    tiny = Tiny(folder)
    for name, text in CONFIGS.items():
        (tiny.conf / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny.conf / name).write_text(text.format(root=tiny.root) if name.startswith("data/") else text)
    for split, times in SPLITS.items():
        write_shard(tiny.root / "shapes" / f"{split}-000000.tar", list(samples(split, times)))
    for name in ("text", "image", "audio"):
        arguments = ["--config-dir", str(tiny.conf), "data=tiny", f"modality={name}", "steps=8"]
        assert main(["tokenizer", *arguments, f"out={tiny.root / 'tokenizers'}"]) == 0
    return tiny


def samples(split: str, times: int) -> Iterator[dict[str, Any]]:
    """Every colour and shape so many times, each time elsewhere; in another split elsewhere again."""
    generator = torch.Generator().manual_seed(list(SPLITS).index(split))
    for time in range(times):
        for colour in COLOURS:
            for shape in SHAPES:
                text = {"en": f"a {colour} {shape}", "fr": f"un {SHAPES[shape]} {COLOURS[colour]}"}
                yield {
                    "__key__": f"{colour}-{shape}-{time}",
                    "png": picture(colour, shape, generator),
                    "wav": tone(colour, shape, generator),
                    "json": json.dumps({"text": text}).encode(),
                }


def picture(colour: str, shape: str, generator: torch.Generator) -> bytes:
    x, y = torch.randint(6, (2,), generator=generator).tolist()
    image = Image.new("RGB", (16, 16), "white")
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)((x, y, x + 9, y + 9), fill=colour)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tone(colour: str, shape: str, generator: torch.Generator) -> bytes:
    """0.2 seconds of a sine, an octave higher for a disc."""
    pitch = (200 + 100 * list(COLOURS).index(colour)) * (2 if shape == "disc" else 1)
    wave = torch.sin(2 * math.pi * pitch * torch.arange(3200) / 16_000)
    return write(Waveform(0.5 * wave + 0.01 * torch.randn(3200, generator=generator)))


def write_shard(path: Path, contents: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as shard:
        for sample in contents:
            shard.write(sample)


PNG = picture("red", "disc", torch.Generator().manual_seed(5))
WAV = tone("red", "disc", torch.Generator().manual_seed(5))
"""Files of one red disc and its tone."""
