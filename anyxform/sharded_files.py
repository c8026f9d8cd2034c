"""Files of tensors of which every process writes its own part, for models that no process could hold whole.

    model/part-00000-of-00004.safetensors, …    in place of model.safetensors

A part says where its tensors lie in the whole ones as the safetensors of torch.distributed.checkpoint do, which reads
them here: with any number of processes, each of them what it needs and nothing else. Processes that write one
checkpoint meet in its folder alone, which all of them must see: writing goes on beside the training, where they cannot
talk to each other.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from anyxform.sharding import is_parted, offsets, own

NOTE = ".process-"
"""Begins the name of the file by which a process says that its part is written."""
POLL = 0.05
"""Seconds between two looks for the others' notes."""


@dataclass(frozen=True)
class Part:
    """What one of `processes` holds of a file's tensors, copied, and at which index each begins in the whole one."""

    process: int
    processes: int
    tensors: Mapping[str, Tensor]
    offsets: Mapping[str, list[int]]

    def write(self, folder: Path) -> Path | None:
        """Into a folder that is named as the file would be; None if this process holds nothing of it."""
        if not self.tensors:
            return None
        folder.mkdir(exist_ok=True)
        path = folder / f"part-{self.process:05d}-of-{self.processes:05d}.safetensors"
        where = {name: {"saved_offsets": begins} for name, begins in self.offsets.items()}
        save_file(dict(self.tensors), path, {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(where)})
        return path


def part(tensors: Mapping[str, Tensor], process: int, processes: int) -> Part:
    """A copy of what this process holds; of what all of them hold, the first has it."""
    kept, where = {}, {}
    for name, tensor in tensors.items():
        piece = own(tensor.detach())
        if piece.numel() and (is_parted(tensor) or process == 0):
            kept[name] = piece.to("cpu", copy=True).contiguous()
            where[name] = offsets(tensor)
    return Part(process, processes, kept, where)


def shapes(folder: Path) -> dict[str, torch.Size]:
    """Of the whole tensors in a folder of parts."""
    return {name: found.size for name, found in _reader(folder).read_metadata().state_dict_metadata.items()}


def read(folder: Path, like: Callable[[str], Tensor | None] = lambda name: None) -> dict[str, Tensor]:
    """The tensors in a folder of parts: parted as what `like` gives for their names has their shapes, or else whole."""
    found: dict[str, Tensor] = {}
    for name, saved in _reader(folder).read_metadata().state_dict_metadata.items():
        one, dtype = like(name), saved.properties.dtype
        if one is not None and one.shape == saved.size:
            found[name] = torch.empty_like(one, dtype=dtype)
        else:
            found[name] = torch.empty(saved.size, dtype=dtype)
    fill(found, folder)
    return found


def fill(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy what a folder of parts holds into tensors of these names and shapes; each process reads by itself."""
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ")  # of no_dist, which is meant
        checkpoint.load(dict(tensors), storage_reader=_reader(folder), no_dist=True)


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint import (
        HuggingFaceStorageReader,  # half a second, which answering need not wait for
    )

    return HuggingFaceStorageReader(str(folder))


def write_note(folder: Path, process: int, said: Mapping[str, Any]) -> None:
    """Tell the process that leads, in one step, that this one has written its part, or why it could not."""
    path = folder / f"{NOTE}{process:05d}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(said), encoding="utf-8")
    unfinished.replace(path)


def read_notes(
    folder: Path, processes: int, timeout: float, clock: Callable[[], float] = time.monotonic
) -> list[dict[str, Any]]:
    """What all have said, once they have; the notes are gone then.

    OSError: one says that it could not write, or says nothing for `timeout` seconds.
    """
    end = clock() + timeout
    paths = [folder / f"{NOTE}{process:05d}.json" for process in range(processes)]
    notes: list[dict[str, Any]] = []
    while len(notes) < processes:
        path = paths[len(notes)]
        if path.exists():
            notes.append(json.loads(path.read_text(encoding="utf-8")))
            if "error" in notes[-1]:
                raise OSError(f"process {len(notes) - 1}: {notes[-1]['error']}")
        elif clock() > end:
            raise OSError(
                f"process {len(notes)} has not written its part within {timeout:.0f} s: do all see {folder.parent}?"
            )
        else:
            time.sleep(POLL)
    for path in paths:
        path.unlink()
    return notes
