"""Folders that a command writes anew each time: only what an earlier call made is removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

MARK = ".written-by-anyxform"


def clear(out: Path, parts: Sequence[str]) -> None:
    """Remove these folders of an earlier call from `out`, which is made if it is not there.

    ValueError: some of them are there, and no earlier call has marked `out`.
    """
    there = [part for part in parts if (out / part).exists()]
    if there and not (out / MARK).is_file():
        raise ValueError(
            f"{out / there[0]} is there already, and is not known to be of an earlier call: give another folder, or "
            "remove it"
        )
    for part in there:
        shutil.rmtree(out / part)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text(f"A later call writes {', '.join(parts)} anew.\n")
