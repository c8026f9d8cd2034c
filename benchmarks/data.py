"""Samples per second of reading shards: ours through the index against webdataset's stream, with the same decoding.

    python -m benchmarks.data

Both read the starter's training shards, decode each picture (WebP) and each recording (Opus) and parse the JSON. The
second comparison reads bytes alone. Last, the whole pipeline up to packed rows, which has no peer.
"""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
import webdataset
from PIL import Image

from anyxform.shards import index
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

SHARDS = sorted(Path("data/starter").glob("*/train-*.tar"))
SAMPLES = 1500


def decode(ending: str, data: bytes) -> object:
    if ending.endswith("webp"):
        return Image.open(io.BytesIO(data)).convert("RGB")
    if ending.endswith("ogg"):
        return soundfile.read(io.BytesIO(data), dtype="float32")[0]
    return json.loads(data)


def raw(ending: str, data: bytes) -> object:
    return data


def main() -> None:
    torch.set_num_threads(1)
    before = calibration()
    samples = [sample for shard in SHARDS for sample in index(shard).samples][:SAMPLES]

    def ours(read: Callable[[str, bytes], object]) -> float:
        for sample in samples:
            for ending in sample.members:
                read(ending, sample.read(ending))
        return len(samples)

    def peer(read: Callable[[str, bytes], object]) -> float:
        stream = iter(webdataset.WebDataset([str(shard) for shard in SHARDS], shardshuffle=False, empty_check=False))
        for _ in range(len(samples)):
            for ending, data in next(stream).items():
                if not ending.startswith("__"):
                    read(ending, data)
        return len(samples)

    results = [
        compare(
            "reading with decoding", lambda: ours(decode), lambda: peer(decode), unit="samples/s", pairs=6, warmup=1
        ),
        compare("reading bytes", lambda: ours(raw), lambda: peer(raw), unit="samples/s", pairs=12),
    ]
    stream, _ = starter.rows(starter.modalities())
    generator = stream.from_position()
    for _ in range(2):  # codes of targets are made once for each, then kept: the first pools show the start
        started, pool = time.perf_counter(), stream.counts.samples
        while stream.counts.samples < pool + stream.options.pool:
            next(generator)
        rate = stream.options.pool / (time.perf_counter() - started)
        print(f"whole pipeline, one process: {rate:,.0f} samples/s, padding of rows {stream.padding:.2%}")
    report(results, before, samples=len(samples))


if __name__ == "__main__":
    main()
