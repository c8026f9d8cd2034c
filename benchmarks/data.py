"""Samples per second of reading shards: ours through the index against webdataset's stream, with the same decoding.

    python -m benchmarks.data

Both read the starter's training shards, decode each picture (WebP) and each recording (Opus) and parse the JSON; then
bytes alone. Again with the same samples in tars whose names are too long for a plain header: in pax records, and in
headers of their own as GNU tar writes them.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch
import webdataset
from PIL import Image

from anyxform.shard_samples import Sample
from anyxform.shards import index
from benchmarks.compare import Comparison, calibration, compare, report

SHARDS = sorted(Path("data/starter").glob("*/train-*.tar"))
SAMPLES = 1500
LONG = "a-folder-whose-name-alone-is-longer-than-the-hundred-bytes-that-a-plain-header-has-for-the-name-of-a-member"
FORMATS = {"pax": tarfile.PAX_FORMAT, "GNU long names": tarfile.GNU_FORMAT}


def decode(ending: str, data: bytes) -> object:
    if ending.endswith("webp"):
        return Image.open(io.BytesIO(data)).convert("RGB")
    if ending.endswith("ogg"):
        return soundfile.read(io.BytesIO(data), dtype="float32")[0]
    return json.loads(data)


def raw(ending: str, data: bytes) -> object:
    return data


def packed_anew(samples: Sequence[Sample], path: Path, form: int) -> Path:
    """A tar of the same samples under long names."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, sample in enumerate(samples):
            for ending in sample.members:
                data = sample.read(ending)
                member = tarfile.TarInfo(f"{LONG}/{number:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def compared(kind: str, shards: Sequence[Path]) -> list[Comparison]:
    """Both readers of the first samples of some shards."""
    samples = [sample for shard in shards for sample in index(shard).samples][:SAMPLES]

    def ours(read: Callable[[str, bytes], object]) -> float:
        for sample in samples:
            for ending in sample.members:
                read(ending, sample.read(ending))
        return len(samples)

    def peer(read: Callable[[str, bytes], object]) -> float:
        stream = iter(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False, empty_check=False))
        for _ in range(len(samples)):
            for ending, data in next(stream).items():
                if not ending.startswith("__"):
                    read(ending, data)
        return len(samples)

    name, unit = f"reading {kind}", "samples/s"
    return [
        compare(f"{name} with decoding", lambda: ours(decode), lambda: peer(decode), unit=unit, pairs=6, warmup=1),
        compare(f"{name}, bytes", lambda: ours(raw), lambda: peer(raw), unit=unit, pairs=12),
    ]


def main() -> None:
    torch.set_num_threads(1)
    before = calibration()
    results = compared("the starter's shards", SHARDS)
    samples = [sample for shard in SHARDS for sample in index(shard).samples][:SAMPLES]
    with TemporaryDirectory() as folder:
        for kind, form in FORMATS.items():
            results += compared(kind, [packed_anew(samples, Path(folder) / f"{form}.tar", form)])
    report(results, before, samples=len(samples))


if __name__ == "__main__":
    main()
