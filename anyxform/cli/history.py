"""The rounds of editing a file, in a folder beside it: every value that it had, and how each came about.

out.png         the newest value
out.png.edits/  history.json  000.png (the original)  001.png  002.png  002-2.png (the second best candidate)
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1


class History:
    """A file's rounds. `rounds` is plain data: the arguments of `anyxform.edit.Session.edit`, one mapping a round."""

    def __init__(self, file: Path, rounds: Sequence[Mapping[str, Any]], original: bytes | None = None) -> None:
        """`original`: what the file was, where that has still to be written down."""
        self.file, self.rounds, self.original = file, list(rounds), original
        self.folder = _folder(file)

    @staticmethod
    def exists(file: Path) -> bool:
        return (_folder(file) / "history.json").is_file()

    @classmethod
    def of(cls, file: Path) -> "History":
        """That of an edited file; ValueError: it has none, or was changed by something else since."""
        path = _folder(file) / "history.json"
        if not path.is_file():
            raise ValueError(f"there is nothing to undo: {str(file)!r} has no {path}, which anyxform edit writes")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            history = cls(file, saved["rounds"])
            last = history._value(len(history.rounds)).read_bytes()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove {path.parent} to begin anew") from None
        if not file.is_file() or file.read_bytes() != last:
            raise ValueError(f"{file} was changed since its last round: remove {path.parent} to begin anew")
        return history

    @classmethod
    def begin(cls, file: Path, original: bytes) -> "History":
        """A new one, in place of an old one once its first round is done."""
        return cls(file, [], original)

    def add(self, round: Mapping[str, Any], candidates: Sequence[bytes]) -> list[Path]:
        """Write a round's candidates, the best of them into the file; returns where each is."""
        if self.original is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._value(0).write_bytes(self.original)
            self.original = None
        self.rounds.append(round)
        paths = [self._value(len(self.rounds), place) for place in range(len(candidates))]
        for path, data in zip(paths, candidates):
            path.write_bytes(data)
        self._write(candidates[0])
        return [self.file, *paths[1:]]

    def undo(self) -> Path:
        """Put the value before the last round back; returns the file. ValueError: there is no round left."""
        if not self.rounds:
            raise ValueError(f"there is nothing to undo: {str(self.file)!r} is what it was")
        self.rounds.pop()
        self._write(self._value(len(self.rounds)).read_bytes())
        for path in self.folder.glob(f"{len(self.rounds) + 1:03d}*"):
            path.unlink()
        return self.file

    def _value(self, number: int, place: int = 0) -> Path:
        candidate = f"-{place + 1}" if place else ""
        return self.folder / f"{number:03d}{candidate}{self.file.suffix}"

    def _write(self, data: bytes) -> None:
        """The file, and then what has been done to it."""
        self.file.write_bytes(data)
        text = json.dumps({"format": FORMAT, "rounds": self.rounds}, indent=1, ensure_ascii=False)
        (self.folder / "history.json").write_text(text + "\n", encoding="utf-8")


def _folder(file: Path) -> Path:
    return file.with_name(f"{file.name}.edits")
