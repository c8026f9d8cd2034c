"""`anyxform run 'shards-{000..127}.tar' --to FIELD -o FOLDER`: convert whole datasets."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyxform.convert import Conversion, Progress

EVERY = 30.0
"""Seconds between two lines about one shard."""


def are_shards(inputs: Sequence[str]) -> bool:
    """Whether the inputs are shards. ValueError: some are."""
    shards = [given for given in inputs if given.endswith(".tar")]
    if shards and len(shards) < len(inputs):
        other = next(given for given in inputs if given not in shards)
        raise ValueError(f"{shards[0]} is a shard, and {other!r} is none: convert them one after the other")
    return bool(shards)


def convert_shards(options: argparse.Namespace, chosen: Mapping[str, Any]) -> int:
    """Convert, and tell how far it is; 0, or 1 if something failed in the only process."""
    for name, value in {
        "-f": options.format,
        "--with": options.others,
        "--via": options.via,
        "-n": options.n > 1,
        "--show-effort": options.show_effort,
    }.items():
        if value:
            raise ValueError(f"{name} is not for shards")
    if options.out is None or options.out.is_file() or options.out.suffix in (".tar", ".jsonl"):
        raise ValueError("shards are written into a folder: give one by -o")
    from anyxform.convert import convert, file_name, list_failures, shards_of  # torch is imported only now

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    shards = shards_of(options.inputs)
    wanted = [shard for shard in shards[rank::ranks] if not (options.out / file_name(shard)).exists()]
    conversion = _conversion(options, chosen)
    for line in _told(convert(conversion, shards, options.out, rank, ranks), wanted):
        print(f"rank {rank}: {line}" if ranks > 1 else line, file=sys.stderr, flush=True)
    failures = list_failures(options.out)
    if failures:
        print(f"anyxform: {len(failures)} failed: see {options.out / 'failed.jsonl'}", file=sys.stderr)
    return 1 if failures and ranks == 1 else 0  # torchrun stops all processes when one ends with another code than 0


def _conversion(options: argparse.Namespace, chosen: Mapping[str, Any]) -> "Conversion":
    from anyxform.convert import Conversion
    from anyxform.field import Field, did_you_mean
    from anyxform.pipeline import load

    pipeline = load(
        options.checkpoint, device=options.device or _device(), dtype=options.dtype, compile=options.compile
    )
    sources = tuple(map(Field.parse, options.origin.split("+"))) if options.origin else None
    for name in sources or ():
        if name.modality not in pipeline.modalities:
            raise ValueError(f"--from {name}: {did_you_mean(name.modality, list(pipeline.modalities))}")
    fields = dict(pair(it) for it in options.fields)
    return Conversion(
        pipeline,
        pipeline.field(options.to),
        sources,
        fields,
        copy=options.copy,
        dtype=options.dtype,
        seed=options.seed,
        batch_size=options.batch_size,
        options=chosen,
    )


def pair(text: str) -> tuple[str, str]:
    """What --field says: a field, and its place in a JSON."""
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError(f"--field {text}: write it as 'text:*=json.text.*'")
    return name, place


def _device() -> str | None:
    """A GPU for each process of a machine."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None


def _told(progress: "Iterator[Progress]", shards: Sequence[str]) -> Iterator[str]:
    """A line for each shard that is done, and more for those that take long."""
    start = said = time.monotonic()
    before = 0
    for it in progress:
        now, over = time.monotonic(), it.samples == it.total
        if over or now - said > EVERY:
            said = now
            number = shards.index(it.shard)
            share = (number + it.samples / max(1, it.total)) / len(shards)
            left = timedelta(seconds=int((now - start) * (1 / max(share, 1e-9) - 1)))
            rate = (before + it.samples) / max(now - start, 1e-9)
            yield (
                f"shard {number + 1}/{len(shards)} {it.shard.rpartition('/')[2]}: {it.samples} of {it.total} samples, "
                f"{it.failed} failed, {rate:.1f} samples/s, left {left}"
            )
        before += it.total if over else 0
