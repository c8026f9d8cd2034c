"""What a model makes of the same few probes, again and again while it is trained: files, and pages of TensorBoard."""

import io
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from anyxform.dataset import Dataset
from anyxform.directions import Directions
from anyxform.evaluate import Item
from anyxform.field import Direction
from anyxform.modality import Modality


def probes(
    datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality], directions: Directions, count: int
) -> list[Item]:
    """`count` items: one of each direction in turn, those that lead between new modalities first."""
    pairs: dict[tuple[str, ...], dict[Direction, Item]] = {}
    for direction, item in _first_items(datasets, modalities, directions):
        names = (*(source.modality for source in direction.sources), direction.target.modality)
        pairs.setdefault(names, {})[direction] = item
    found: list[Item] = []
    queues = [list(items.values()) for _, items in sorted(pairs.items())]
    while len(found) < count and any(queues):
        found += [queue.pop(0) for queue in queues if queue]
    return found[:count]


def _first_items(
    datasets: Mapping[str, Dataset], modalities: Mapping[str, Modality], directions: Directions
) -> Iterator[tuple[Direction, Item]]:
    """The first sample of each direction, except for samples that cannot be read."""
    seen = set[Direction]()
    for dataset in datasets.values():
        for number, sample in enumerate(dataset.samples):
            try:
                fields = {field: read for field, read in dataset.fields(number).items() if field.modality in modalities}
                for _, fitting in directions.fitting(fields):
                    for direction in fitting:
                        if direction not in seen:
                            load = {f: modalities[f.modality].load for f in (*direction.sources, direction.target)}
                            values = [load[f](fields[f]()) for f in load]
                            yield direction, Item(sample.key, direction, tuple(values[:-1]), values[-1])
                            seen.add(direction)
            except ValueError:
                continue


def write_samples(
    folder: Path,
    items: Sequence[Item],
    answers: Sequence[Any],
    modalities: Mapping[str, Modality],
    tensorboard: SummaryWriter,
    step: int,
) -> None:
    """Save each answer beside what it was made from and what was wanted, and index.jsonl, which says what is what."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
        line = {"direction": str(item.direction), "key": item.key}
        fields = {f"source{place}": field for place, field in enumerate(item.direction.sources)}
        fields |= {"reference": item.direction.target, "answer": item.direction.target}
        for (role, field), value in zip(fields.items(), (*item.sources, item.reference, answer)):
            if value is None:
                continue
            modality = modalities[field.modality]
            data, ending = modality.save(value), modality.extensions[0] if modality.extensions else "bin"
            line[role] = f"{number:02d}-{role}.{ending}"
            (folder / line[role]).write_bytes(data)
            if role == "answer" or step == 0:
                _show(tensorboard, f"{number:02d} {item.direction}/{role}", data, line[role], step)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "index.jsonl").write_text("".join(lines), encoding="utf-8")


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
