"""Where the results of a command go: the screen, a file, a folder, or lines of JSON."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from anyxform.cli.answering import Failure
from anyxform.cli.arguments import there
from anyxform.long import Made
from anyxform.modality import Modality
from anyxform.subtitles import FORMATS, TIMED, timed


class Writer:
    """Puts results where the user wants them: on the screen, into a file, a folder, or lines of JSON."""

    def __init__(
        self,
        out: Path | None,
        modality: Modality,
        to: str,
        inputs: Sequence[str],
        others: Sequence[str] = (),
        form: str | None = None,
    ) -> None:
        self.out, self.modality, self.to, self.several = out, modality, to, len(inputs) > 1
        self.format = _format(form, out, modality)
        self.ending = self.format or (modality.extensions[0] if modality.extensions else "bin")
        self.sources = {Path(it).resolve() for it in (*inputs, *others) if there(it, Path.is_file)}
        self.lined = out is not None and out.suffix == ".jsonl"
        self.lines: TextIO | None = None
        self.count = 0
        self.file: Path | None = None  # the one file that the user names
        self.folder = Path()
        if out is None:
            return
        if out.suffix == ".jsonl":
            self.folder = out.with_suffix("")
        elif out.is_dir() or not (out.suffix or out.is_file()):
            self.folder = out
        elif self.several:
            raise ValueError(f"-o {out} is one file, and there are several inputs: give a folder or a .jsonl")
        elif out.suffix.lower() != f".{self.ending}":
            raise ValueError(
                f"-o {out}: {modality.name} is written as .{self.ending}: give such a file, a folder or a .jsonl"
            )
        else:
            self.file = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.lines is not None:
            self.lines.close()

    def write(self, given: str, result: Made | Failure) -> None:
        """Write the next result, or say why there is none."""
        self.count += 1
        if self.lined:
            self._line(given, result)
        elif isinstance(result, Failure):
            where = "" if given in result.reason else f"{given[:60]!r}: "
            print(f"anyxform: error: {where}{result.reason}", file=sys.stderr)
        elif self.out is None and self.modality.literal and not (self.format and self.several):
            text = self._content(result, self.format).decode(errors="replace").rstrip("\n")
            shown = given.encode(errors="backslashreplace").decode()  # the name of a file may be no unicode
            print(f"{shown}\t{text}" if self.several else text)
        else:
            print(self._save(given, result))

    def _line(self, given: str, result: Made | Failure) -> None:
        if self.lines is None:  # an earlier file stays until there is something to write
            assert self.out is not None
            self.out.parent.mkdir(parents=True, exist_ok=True)
            # a path that is no unicode is written as JSON's own \udcff
            self.lines = open(self.out, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        if isinstance(result, Failure):
            answer: dict[str, Any] = {"error": result.reason}
        elif self.format == "json":
            answer = json.loads(self._content(result, "json"))
        elif self.modality.literal:
            answer = {self.modality.name: result.value}
        else:
            answer = {"path": str(self._save(given, result))}
        self.lines.write(json.dumps({"source": given, "to": self.to, **answer}, ensure_ascii=False) + "\n")
        self.lines.flush()

    def place(self, given: str) -> Path:
        """Where the next result goes."""
        return self.file or self._path(given)

    def _save(self, given: str, made: Made) -> Path:
        path = self.place(given)
        path.parent.mkdir(parents=True, exist_ok=True)
        by_lines = self.ending == "txt" and timed(made)
        path.write_bytes(self._content(made, self.format or ("txt" if by_lines else None)))
        return path

    def _content(self, made: Made, form: str | None) -> bytes:
        """The bytes of a file; without a format, of the modality's own."""
        return FORMATS[form](made).encode() if form else self.modality.save(made.value)

    def _path(self, given: str) -> Path:
        """Named like the input. No source is overwritten, and in the current folder, which nobody named, nothing is."""
        name = Path(given).stem if there(given, Path.is_file) else given
        slug = re.sub(r"[^\w-]+", "-", name).strip("-")[:40] or "result"
        stem = f"{self.count:04d}-{slug}" if self.several else slug
        path, number = self.folder / f"{stem}.{self.ending}", 1
        while path.exists() and (self.out is None or path.resolve() in self.sources):
            number += 1
            path = self.folder / f"{stem}-{number}.{self.ending}"
        return path


def _format(form: str | None, out: Path | None, modality: Modality) -> str | None:
    """The format of texts that is asked for by name or by the ending of a file; None: the modality's own file."""
    ending = out.suffix.lower().lstrip(".") if out is not None else ""
    if form is not None and not modality.literal:
        raise ValueError(f"-f {form} is for texts, and {modality.name} is none")
    if form is not None and ending in FORMATS and ending != form:
        raise ValueError(f"-f {form} and -o {out} do not agree: leave one out")
    if form in TIMED and ending == "jsonl":
        raise ValueError(
            f"-f {form} is no JSON, and -o {out} is lines of it: -f json adds the segments and their times"
        )
    return form or (ending if modality.literal and ending in FORMATS and ending not in modality.extensions else None)
