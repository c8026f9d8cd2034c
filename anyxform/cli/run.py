"""`anyxform run INPUT … --to FIELD`: convert files and texts."""

import argparse
import glob
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from anyxform.cli.arguments import Parser
from anyxform.cli.run_shards import are_shards, convert_shards

if TYPE_CHECKING:
    from anyxform.field import Field
    from anyxform.long import Job, Made
    from anyxform.modality import Modality
    from anyxform.pipeline import Pipeline

EPILOG = """examples:
  anyxform run cat.png --to text:fr
  anyxform run "a red fish" --to image -o fish.png
  anyxform run hello.flac --to text
  anyxform run 'folder/**' --to text -o out.jsonl
  anyxform run talk.mp3 --to text -o talk.srt
  anyxform run 'shards-{000..127}.tar' --from audio:en --to text:fr -o out/
"""


def parser() -> Parser:
    """The command's options; those of generation have the names of `anyxform.sampling.Sampling`."""
    it = Parser(
        prog="anyxform run",
        description="Convert files or texts to another modality.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    it.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="files, globs ('folder/**'), texts, or shards ('{000..127}.tar')"
    )
    it.add_argument("--to", required=True, metavar="FIELD", help="what to make: text, image:noto, audio:fr-phone, …")
    it.add_argument(
        "--with", dest="others", action="append", default=[], metavar="INPUT", help="a further source of every input"
    )
    it.add_argument("-o", "--out", type=Path, help="a file, a folder, or a .jsonl with one line for each input")
    it.add_argument(
        "-f", "--format", choices=["txt", "srt", "vtt", "json"], help="of texts; without it, as -o ends (default: txt)"
    )
    it.add_argument("--checkpoint", default="starter", help="a run or checkpoint (default: starter, the shipped one)")
    it.add_argument(
        "--from",
        dest="origin",
        metavar="MODALITY",
        help="what the inputs are, if their endings do not say; of shards: the source field, or several: image+text:en",
    )
    it.add_argument("--device", help="cpu, cuda, …")
    it.add_argument("--batch-size", type=int, default=64)
    it.add_argument("--seed", type=int, default=0, help="of the first input; each further one has the next")
    shards = it.add_argument_group("shards")
    shards.add_argument(
        "--field",
        dest="fields",
        action="append",
        default=[],
        metavar="FIELD=PLACE",
        help="a field in a JSON member: 'text:*=json.text.*'",
    )
    shards.add_argument("--copy", action="store_true", help="write the members that samples have beside the new one")
    generation = it.add_argument_group("generation", argument_default=argparse.SUPPRESS)
    generation.add_argument("--temperature", type=float, help="0 takes the likeliest")
    generation.add_argument("--top-k", type=int)
    generation.add_argument("--top-p", type=float)
    generation.add_argument("--no-repeat", type=int, metavar="N", help="no run of N tokens comes twice")
    generation.add_argument("--beams", dest="num_beams", type=int)
    generation.add_argument("--length-penalty", type=float, help="of beams")
    generation.add_argument("--steps", type=int, help="of masked refinement")
    generation.add_argument("--choice-temperature", type=float, help="of masked refinement")
    generation.add_argument("--guidance", type=float, help="1 is none")
    generation.add_argument("--decoding", choices=["autoregressive", "masked"], help="other than the modality's own")
    generation.add_argument("--length", type=int, help="tokens of the result")
    return it


def main(arguments: list[str]) -> int:
    """Parse the arguments and convert; 0, 1 if some of several inputs failed, a ValueError if the only one did."""
    options = parser().parse_args(arguments)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size} is not possible: give 1 or more")
    from anyxform.sampling import Sampling  # torch is imported only now

    chosen = {name: value for name, value in vars(options).items() if name in Sampling.__dataclass_fields__}
    Sampling(**chosen)  # complains before anything is loaded
    if are_shards(options.inputs):
        return convert_shards(options, {name: value for name, value in chosen.items() if name != "seed"})
    if options.fields or options.copy:
        raise ValueError("--field and --copy are for shards")
    inputs = list(expand(options.inputs))
    from anyxform.long import pooled
    from anyxform.pipeline import load

    pipeline = load(options.checkpoint, device=options.device)
    target = pipeline.field(options.to)
    if options.origin is not None and options.origin not in pipeline.modalities:
        raise ValueError(f"--from {options.origin}: the model reads {', '.join(pipeline.modalities)}")
    others = [pipeline.read(it) for it in options.others]
    modality, failed = pipeline.modalities[target.modality], 0
    with Writer(options.out, modality, str(target), inputs, options.others, options.format) as writer:
        jobs = _jobs(pipeline, inputs, others, target, options.origin, options.seed, writer.format)
        names = iter(inputs)
        for pool in pooled(jobs, options.batch_size):
            results = _results(pipeline, pool, {**chosen, "batch_size": options.batch_size})
            for result, given in zip(results, names):
                if isinstance(result, Failure) and len(inputs) == 1 and writer.lines is None:
                    raise ValueError(result.reason)
                failed += isinstance(result, Failure)
                writer.write(given, result)
    if failed:
        print(f"anyxform: {failed} of {len(inputs)} inputs failed", file=sys.stderr)
    return 1 if failed else 0


@dataclass(frozen=True)
class Failure:
    """Why an input gave nothing."""

    reason: str


def _jobs(
    pipeline: "Pipeline",
    inputs: Sequence[str],
    others: Sequence[tuple[str, Any]],
    target: "Field",
    origin: str | None,
    seed: int,
    form: str | None,
) -> "Iterator[Job | Failure]":
    """What is to be done for each input; whatever becomes of the others, its seed is that of its number."""
    from anyxform.field import Direction, Field
    from anyxform.subtitles import check

    for number, given in enumerate(inputs):
        try:
            sources = [pipeline.read((origin, given) if origin else given), *others]
            direction = Direction(tuple(Field(name) for name, _ in sources), target)
            job = pipeline.job(direction, [value for _, value in sources], seed + number)
            check(form, job)
        except (ValueError, OSError) as error:
            yield Failure(" ".join(str(error).split()))
        else:
            yield job


def _results(pipeline: "Pipeline", jobs: "Sequence[Job | Failure]", options: dict[str, Any]) -> "list[Made | Failure]":
    """What was made of each job, failures in their places."""
    made = iter(pipeline.perform([job for job in jobs if not isinstance(job, Failure)], **options))
    return [job if isinstance(job, Failure) else next(made) for job in jobs]


def expand(inputs: Sequence[str]) -> Iterator[str]:
    """Inputs with globs replaced by the files that fit; ValueError: a folder, or a glob that fits none."""
    for given in inputs:
        if _there(given, Path.is_dir):
            raise ValueError(f"{given} is a folder: for all files in it, give '{given.rstrip('/')}/**'")
        magic = re.search(r"[*?\[]", given)
        if magic is None or _there(given, Path.exists):
            yield given
            continue
        found = sorted(path for path in glob.glob(given, recursive=True) if Path(path).is_file())
        if not found and _meant_as_glob(given, magic.start()):
            raise ValueError(f"no file fits {given!r}")
        yield from found or [given]


def _meant_as_glob(given: str, magic: int) -> bool:
    """Whether what fits no file was not meant as a text: one word with * or /, or in a folder that there is."""
    one_word = not re.search(r"\s", given) and ("*" in given or "/" in given)
    return one_word or _there(given[:magic].rpartition("/")[0], Path.is_dir)


def _there(given: str, test: Callable[[Path], bool]) -> bool:
    try:
        return bool(given) and test(Path(given))
    except OSError:  # longer than a path may be: a text
        return False


class Writer:
    """Puts results where the user wants them: on the screen, into a file, a folder, or lines of JSON."""

    def __init__(
        self,
        out: Path | None,
        modality: "Modality",
        to: str,
        inputs: Sequence[str],
        others: Sequence[str] = (),
        form: str | None = None,
    ) -> None:
        self.out, self.modality, self.to, self.several = out, modality, to, len(inputs) > 1
        self.format = _format(form, out, modality)
        self.ending = self.format or (modality.extensions[0] if modality.extensions else "bin")
        self.sources = {Path(it).resolve() for it in (*inputs, *others) if _there(it, Path.is_file)}
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

    def __enter__(self) -> "Writer":
        if self.out is not None and self.out.suffix == ".jsonl":
            self.out.parent.mkdir(parents=True, exist_ok=True)
            # a path that is no unicode is written as JSON's own \udcff
            self.lines = open(self.out, "w", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, *error: object) -> None:
        if self.lines is not None:
            self.lines.close()

    def write(self, given: str, result: "Made | Failure") -> None:
        """Write the next result, or say why there is none."""
        self.count += 1
        if self.lines is not None:
            self._line(given, result)
        elif isinstance(result, Failure):
            where = "" if given in result.reason else f"{given[:60]!r}: "
            print(f"anyxform: error: {where}{result.reason}", file=sys.stderr)
        elif self.out is None and self.modality.literal and not (self.format and self.several):
            text = self._content(result).decode(errors="replace").rstrip("\n")
            print(f"{given}\t{text}" if self.several else text)
        else:
            print(self._save(given, result))

    def _line(self, given: str, result: "Made | Failure") -> None:
        assert self.lines is not None
        if isinstance(result, Failure):
            answer: dict[str, Any] = {"error": result.reason}
        elif self.format == "json":
            answer = json.loads(self._content(result))
        elif self.modality.literal:
            answer = {self.modality.name: result.value}
        else:
            answer = {"path": str(self._save(given, result))}
        self.lines.write(json.dumps({"source": given, "to": self.to, **answer}, ensure_ascii=False) + "\n")
        self.lines.flush()

    def _save(self, given: str, made: "Made") -> Path:
        path = self.file or self._path(given)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._content(made))
        return path

    def _content(self, made: "Made") -> bytes:
        """The bytes of a file."""
        from anyxform.subtitles import FORMATS

        return FORMATS[self.format](made).encode() if self.format else self.modality.save(made.value)

    def _path(self, given: str) -> Path:
        """Named like the input. No source is overwritten, and in the current folder, which nobody named, nothing is."""
        name = Path(given).stem if _there(given, Path.is_file) else given
        slug = re.sub(r"[^\w-]+", "-", name).strip("-")[:40] or "result"
        stem = f"{self.count:04d}-{slug}" if self.several else slug
        path, number = self.folder / f"{stem}.{self.ending}", 1
        while path.exists() and (self.out is None or path.resolve() in self.sources):
            number += 1
            path = self.folder / f"{stem}-{number}.{self.ending}"
        return path


def _format(form: str | None, out: Path | None, modality: "Modality") -> str | None:
    """The format of texts that is asked for by name or by the ending of a file; None: the modality's own file."""
    from anyxform.subtitles import FORMATS, TIMED

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
