"""Folders and files that a command writes anew each time: only what an earlier call made is removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def clear(out: Path, parts: Sequence[str], command: str) -> None:
    """Remove these files and folders of an earlier call of a command from `out`, which is made if it is not there.

    ValueError: some of them are there, and no earlier call has noted in `out` that they are its own.
    """
    mark = out / f".written-by-anyxform-{command}"
    known = mark.read_text(encoding="utf-8").splitlines() if mark.is_file() else []
    there = [part for part in parts if (out / part).exists()]
    for part in there:
        if part not in known:
            raise ValueError(
                f"{out / part} is there already, and is not known to be of an earlier call: give another folder, or "
                "remove it"
            )
    for part in there:
        shutil.rmtree(out / part) if (out / part).is_dir() else (out / part).unlink()
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text("".join(f"{part}\n" for part in sorted({*known, *parts})), encoding="utf-8")
