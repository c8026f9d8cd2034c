"""What share of a GPU's matrix products a step of training reaches, and of its bandwidth a step of decoding.

    python -m benchmarks.gpu [small base large]

Rows of the starter's mixture and rows of long texts alone, bf16, compiled blocks, AdamW, and again with float8 where
there is torchao; texts, and pictures of 256 tokens by masking and left to right, by random weights in bf16. Operations
are those that `anyxform plan` counts, each once; the peak is that of the maker's data sheet for dense bf16, or what a
matrix product of 8192² reaches where the device is not known. Goal: 0.45 on an H100. Without a GPU it says so and
measures nothing.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from anyxform.estimate import estimate
from anyxform.field import Field
from anyxform.float8 import to_float8
from anyxform.generate import generate
from anyxform.hardware import DEVICES, Device, device
from anyxform.modality import Decoding, Modality, get_modality
from anyxform.model import PRESETS, Transformer, compile_blocks
from anyxform.optim import adamw
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.sequence import Batch, marker, pack
from anyxform.train import train_step
from benchmarks import starter
from benchmarks.dense import example

NO_DEVICE = "no CUDA device here: nothing is measured"
TOKENS = 16_384
"""In a row."""
STEPS, WARMUP = 20, 5
ANSWERS = (1, 32)
NEW_TOKENS = 128


def main(*presets: str, place: str = "cuda", tokens: int = TOKENS, steps: int = STEPS) -> dict[str, Any]:
    """Print a line for each measurement, and last one JSON document, which is returned."""
    if place == "cuda" and not torch.cuda.is_available():
        document: dict[str, Any] = {"skipped": NO_DEVICE}
        print(json.dumps(document))
        return document
    peak, found = _peak(place), []
    for preset in presets or ("small", "base", "large"):
        for kind, float8 in _variants(place):
            for name, modalities, ids, rows in _rows(tokens):
                found.append(_train(preset, name, modalities, ids, rows, place, steps, float8, peak) | {"kind": kind})
                print(found[-1])
        found += [_decode(preset, count, place, peak) for count in ANSWERS]
        found += [_draw(preset, count, place) for count in ANSWERS]
        print(*found[-2 * len(ANSWERS) :], sep="\n")
    document = {"results": found, "peak": vars(peak), "torch": torch.__version__}
    print(json.dumps(document))
    return document


def _variants(place: str) -> list[tuple[str, bool]]:
    float8 = place == "cuda" and importlib.util.find_spec("torchao") is not None
    return [("bf16", False), *([("float8", True)] if float8 else [])]


def _peak(place: str) -> Device:
    if place == "cuda":
        name = torch.cuda.get_device_name().lower()
        for known in DEVICES.values():
            if known.name.partition("-")[0] in name:
                return known
    return device("here")


def _rows(tokens: int) -> list[tuple[str, dict[str, Modality], dict[str, int], list[Batch]]]:
    """Long texts alone, and the starter's mixture where it has been built."""
    modalities = starter.modalities()
    text = {"text": modalities["text"]}
    ids, generator = {marker("text"): 0}, torch.Generator().manual_seed(0)
    length, size = min(2048, tokens), text["text"].vocab_size
    codes = torch.randint(size, (tokens // length, length), generator=generator)
    texts = pack([example(row, size) for row in codes], ids, size=tokens)
    found = [("long texts", text, ids, [texts])]
    if starter.TOKENIZERS.is_dir():
        stream, conditions = starter.rows(modalities, tokens_per_row=tokens, pad=True)
        mixture = [batch for batch, _ in islice(stream.from_position(), 8)]
        found.append(("the starter's mixture", modalities, conditions, mixture))
    return found


def _train(
    preset: str,
    name: str,
    modalities: Mapping[str, Modality],
    ids: Mapping[str, int],
    rows: Sequence[Batch],
    place: str,
    steps: int,
    float8: bool,
    peak: Device,
) -> dict[str, Any]:
    cost = estimate(PRESETS[preset], modalities, list(ids), rows, bf16=True)
    model = Transformer(modalities=modalities, conditions=list(ids), **PRESETS[preset]).to(place)  # type: ignore[arg-type]
    if float8:
        to_float8(model)
    if place == "cuda":
        compile_blocks(model)
        torch.cuda.reset_peak_memory_stats()
    optimizer, batches = adamw(model, lr=1e-4), [row.to(torch.device(place)) for row in rows]

    def step(number: int) -> None:
        train_step(model, optimizer, [batches[number % len(batches)]], bf16=True)

    seconds = _median(step, steps, place)
    return {
        "preset": preset, "rows": name, "tokens_per_s": cost.tokens / seconds,
        "share_of_peak": (cost.forward + cost.backward) / seconds / peak.operations,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if place == "cuda" else None,
    }  # fmt: skip


def _decode(preset: str, count: int, place: str, peak: Device) -> dict[str, Any]:
    """So many texts at once, left to right, in bf16; all of the weights are read for each token."""
    modalities = {"text": starter.modalities()["text"]}
    model = Transformer(modalities=modalities, conditions=[marker("text")], **PRESETS[preset])  # type: ignore[arg-type]
    model = model.to(place, torch.bfloat16).eval()
    requests = [Request((), Field("text"))] * count
    options = Sampling(temperature=0.0, seed=0, length=NEW_TOKENS)
    made = 0

    def step(number: int) -> None:
        nonlocal made
        made = max(len(it.codes) for it in generate(model, modalities, requests, options))

    seconds = _median(step, 3, place)
    read = sum(it.numel() * it.element_size() for it in model.blocks.parameters()) * made
    return {
        "preset": preset, "answers": count, "tokens_per_s": made * count / seconds,
        "share_of_bandwidth": read / seconds / peak.bandwidth,
    }  # fmt: skip


def _draw(preset: str, count: int, place: str) -> dict[str, Any]:
    """So many pictures of 256 tokens at once, by masking in its default steps and left to right, both with guidance."""
    modalities = {"image": get_modality("image")(downsample=4, num_codebooks=1)}  # type: ignore[call-arg]
    model = Transformer(modalities=modalities, conditions=[marker("image")], **PRESETS[preset])  # type: ignore[arg-type]
    model = model.to(place, torch.bfloat16).eval()
    requests = [Request((), Field("image"))] * count
    seconds = {}

    def draw(number: int) -> None:
        list(generate(model, modalities, requests, options))

    ways: tuple[Decoding, ...] = ("masked", "autoregressive")
    for decoding in ways:
        options = Sampling(decoding=decoding, guidance=1.5, seed=0)
        seconds[decoding] = _median(draw, 3, place, warmup=1)
    rates = {f"{name}_pictures_per_s": count / each for name, each in seconds.items()}
    return {"preset": preset, "pictures": count, **rates, "ratio": seconds["autoregressive"] / seconds["masked"]}


def _median(step: Callable[[int], object], steps: int, place: str, warmup: int | None = None) -> float:
    """Seconds of one, of those after the first few, with nothing left to do on the device."""
    times: list[float] = []
    warmup = WARMUP if warmup is None else warmup
    for number in range(warmup + steps):
        began = time.perf_counter()
        step(number)
        if place == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[warmup:])


if __name__ == "__main__":
    main(*sys.argv[1:])
