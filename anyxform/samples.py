"""What a model makes of the same few probes, again and again while it is trained: files, and pages of TensorBoard."""

import io
import json
import mimetypes
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from anyxform.dataset import Dataset
from anyxform.directions import Directions
from anyxform.evaluate import Item
from anyxform.modality import Modality
from anyxform.selection import choose_items


def probes(
    datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality], directions: Directions, count: int
) -> list[Item]:
    """`count` items: one of each direction, taken in turn from each pair of modalities."""
    chosen = choose_items(
        datasets, modalities, patterns=list(directions.weights), hold_out=directions.hold_out, limit=1
    )
    queues: dict[tuple[str, ...], list[Item]] = {}
    for item in sorted(chosen.items, key=lambda item: item.direction):
        names = (*(source.modality for source in item.direction.sources), item.direction.target.modality)
        queues.setdefault(names, []).append(item)
    turns = zip_longest(*(queue for _, queue in sorted(queues.items())))
    return [item for turn in turns for item in turn if item is not None][:count]


def write_samples(
    folder: Path,
    items: Sequence[Item],
    answers: Sequence[Any],
    modalities: Mapping[str, Modality],
    tensorboard: SummaryWriter,
    step: int,
) -> None:
    """Save each answer beside what it was made from and what was wanted, and index.jsonl, which says what is what.

    TensorBoard shows sources and references once, when the parent of `folder` is new.
    """
    first = not folder.parent.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
        line = {"direction": str(item.direction), "key": item.key}
        fields = {f"source{place}": field for place, field in enumerate(item.direction.sources)}
        fields |= {"reference": item.direction.target, "answer": item.direction.target}
        for (role, field), value in zip(fields.items(), (*item.sources, item.reference, answer)):
            modality = modalities[field.modality]
            data, ending = modality.save(value), modality.extensions[0] if modality.extensions else "bin"
            line[role] = f"{number:02d}-{role}.{ending}"
            (folder / line[role]).write_bytes(data)
            if role == "answer" or first:
                _show(tensorboard, f"{number:02d} {item.direction}/{role}", data, line[role], step)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "index.jsonl").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _show(tensorboard: SummaryWriter, tag: str, data: bytes, name: str, step: int) -> None:
    """A saved value in TensorBoard, if its file is of a kind that can be shown there."""
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    if kind == "text":
        tensorboard.add_text(tag, data.decode("utf-8", "replace"), step)
    elif kind == "image":
        from PIL import Image

        tensorboard.add_image(tag, np.array(Image.open(io.BytesIO(data)).convert("RGB")), step, dataformats="HWC")
    elif kind == "audio":
        import soundfile

        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        tensorboard.add_audio(tag, waveform.mean(axis=1), step, sample_rate=rate)
