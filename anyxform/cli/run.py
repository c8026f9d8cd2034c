"""`anyxform run INPUT … --to FIELD`: convert files and texts."""

import argparse
import glob
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from anyxform.cli.arguments import Parser

if TYPE_CHECKING:
    from anyxform.candidates import Rank
    from anyxform.field import Direction, Field
    from anyxform.generate import Request
    from anyxform.modality import Modality
    from anyxform.pipeline import Pipeline

EPILOG = """examples:
  anyxform run cat.png --to text:fr
  anyxform run "a red fish" --to image -o fish.png
  anyxform run hello.flac --to text
  anyxform run 'folder/**' --to text -o out.jsonl
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
    it.add_argument("inputs", nargs="+", metavar="INPUT", help="files, globs ('folder/**'), or texts")
    it.add_argument("--to", required=True, metavar="FIELD", help="what to make: text, image:noto, audio:fr-phone, …")
    it.add_argument(
        "--with", dest="others", action="append", default=[], metavar="INPUT", help="a further source of every input"
    )
    it.add_argument("-o", "--out", type=Path, help="a file, a folder, or a .jsonl with one line for each input")
    it.add_argument("--checkpoint", default="starter", help="a run or checkpoint (default: starter, the shipped one)")
    it.add_argument(
        "--from", dest="origin", metavar="MODALITY", help="what the inputs are, if their endings do not say"
    )
    it.add_argument("--device", help="cpu, cuda, …")
    it.add_argument("--batch-size", type=int, default=64)
    it.add_argument("--seed", type=int, default=0, help="of the first input; each further one has the next")
    it.add_argument(
        "--via", metavar="FIELD", help="go by way of a field; auto: if the evaluation table says it is better"
    )
    add_candidates(it)
    add_generation(it)
    return it


def add_candidates(it: Parser) -> None:
    """Options of how many answers are drawn, and which one is taken."""
    it.add_argument("-n", type=int, default=1, metavar="N", help="draw N candidates and take the best (default: 1)")
    it.add_argument(
        "--rank", choices=["back", "own", "both"], default="back",
        help="by the likelihood of the way back, of the answer, or of both (default: back)",
    )  # fmt: skip


def add_generation(it: Parser) -> None:
    """Options that have the names of `anyxform.sampling.Sampling`."""
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
    generation.add_argument("--refine", type=int, metavar="ROUNDS", help="redo the least certain tokens of a text")
    generation.add_argument("--decoding", choices=["autoregressive", "masked"], help="other than the modality's own")
    generation.add_argument("--length", type=int, help="tokens of the result")


def main(arguments: list[str]) -> int:
    """Parse the arguments and convert; 0, 1 if some of several inputs failed, a ValueError if the only one did."""
    options = parser().parse_args(arguments)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size} is not possible: give 1 or more")
    inputs = list(expand(options.inputs))
    from anyxform.pipeline import load  # torch is imported only now
    from anyxform.sampling import Sampling

    chosen = {name: value for name, value in vars(options).items() if name in Sampling.__dataclass_fields__}
    Sampling(**chosen)  # complains before anything is loaded
    pipeline = load(options.checkpoint, device=options.device)
    target = pipeline.field(options.to)
    if options.origin is not None and options.origin not in pipeline.modalities:
        raise ValueError(f"--from {options.origin}: the model reads {', '.join(pipeline.modalities)}")
    others = [pipeline.read(it) for it in options.others]
    modality, failed = pipeline.modalities[target.modality], 0
    with Writer(options.out, modality, str(target), inputs, options.others) as writer:
        for start in range(0, len(inputs), options.batch_size):
            chunk = inputs[start : start + options.batch_size]
            asked = {**chosen, "seed": options.seed + start}
            choice = {"via": options.via, "n": options.n, "rank": options.rank}
            results = _convert(pipeline, chunk, others, target, options.origin, asked, **choice)
            for given, result in zip(chunk, results):
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


def _convert(
    pipeline: "Pipeline",
    inputs: Sequence[str],
    others: Sequence[tuple[str, Any]],
    target: "Field",
    origin: str | None,
    options: dict[str, Any],
    *,
    via: str | None = None,
    n: int = 1,
    rank: "Rank" = "back",
) -> list[Any]:
    """A value or a `Failure` for each input."""
    from anyxform.field import Direction, Field

    asked, results = dict[int, tuple[Direction, Sequence[Any]]](), dict[int, Any]()
    for number, given in enumerate(inputs):
        try:
            sources = [pipeline.read((origin, given) if origin else given), *others]
            direction = Direction(tuple(Field(name) for name, _ in sources), target)
            asked[number] = direction, [value for _, value in sources]
        except (ValueError, OSError) as error:
            results[number] = _failure(error)
    size = len(inputs)
    if via is not None:
        _requests(pipeline, asked, results, options["seed"])  # only what can be read goes on
        directions, values = [it for it, _ in asked.values()], [it for _, it in asked.values()]
        routes = [pipeline.route(direction, via) for direction in directions]
        seeds = [options["seed"] + number for number in asked]
        asked = dict(zip(asked, zip(*pipeline.onward(directions, values, routes, seeds=seeds, batch_size=size))))
    requests = _requests(pipeline, asked, results, options["seed"])
    if n == 1:
        found = pipeline.respond(list(requests.values()), batch_size=size, **options)
    else:
        ranked = pipeline.ranked(
            [direction for direction, _ in asked.values()],
            [values for _, values in asked.values()],
            requests=list(requests.values()),
            n=n,
            rank=rank,
            batch_size=size,
            **options,
        )
        found = [candidates[0].value for candidates in ranked]
    results |= dict(zip(requests, found))
    return [results[number] for number in range(len(inputs))]


def _requests(
    pipeline: "Pipeline",
    asked: dict[int, tuple["Direction", Sequence[Any]]],
    results: dict[int, Any],
    seed: int,
) -> dict[int, "Request"]:
    """Requests for what is asked, each with its own seed; what cannot be asked becomes a `Failure`."""
    requests = {}
    for number, (direction, values) in list(asked.items()):
        try:
            request = pipeline.request(direction, values)
            requests[number] = replace(request, seed=seed + number)  # whatever becomes of the others
        except ValueError as error:
            results[number] = _failure(error)
            del asked[number]
    return requests


def _failure(error: Exception) -> Failure:
    return Failure(" ".join(str(error).split()))


def expand(inputs: Sequence[str]) -> Iterator[str]:
    """Inputs with globs replaced by the files that fit; ValueError: a folder, or a glob that fits none."""
    for given in inputs:
        if there(given, Path.is_dir):
            raise ValueError(f"{given} is a folder: for all files in it, give '{given.rstrip('/')}/**'")
        magic = re.search(r"[*?\[]", given)
        if magic is None or there(given, Path.exists):
            yield given
            continue
        found = sorted(path for path in glob.glob(given, recursive=True) if Path(path).is_file())
        if not found and _meant_as_glob(given, magic.start()):
            raise ValueError(f"no file fits {given!r}")
        yield from found or [given]


def _meant_as_glob(given: str, magic: int) -> bool:
    """Whether what fits no file was not meant as a text: one word with * or /, or in a folder that there is."""
    one_word = not re.search(r"\s", given) and ("*" in given or "/" in given)
    return one_word or there(given[:magic].rpartition("/")[0], Path.is_dir)


def there(given: str, test: Callable[[Path], bool]) -> bool:
    """Whether a path passes a test such as `Path.is_file`; what is too long for a path does not."""
    try:
        return bool(given) and test(Path(given))
    except OSError:  # longer than a path may be: a text
        return False


class Writer:
    """Puts results where the user wants them: on the screen, into a file, a folder, or lines of JSON."""

    def __init__(
        self, out: Path | None, modality: "Modality", to: str, inputs: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        self.out, self.modality, self.to, self.several = out, modality, to, len(inputs) > 1
        self.ending = modality.extensions[0] if modality.extensions else "bin"
        self.sources = {Path(it).resolve() for it in (*inputs, *others) if there(it, Path.is_file)}
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

    def write(self, given: str, result: Any) -> None:
        """Write the next result, or say why there is none."""
        self.count += 1
        if self.lines is not None:
            self._line(given, result)
        elif isinstance(result, Failure):
            where = "" if given in result.reason else f"{given[:60]!r}: "
            print(f"anyxform: error: {where}{result.reason}", file=sys.stderr)
        elif self.out is None and self.modality.literal:
            print(f"{given}\t{result}" if self.several else result)
        else:
            print(self._save(given, result))

    def _line(self, given: str, result: Any) -> None:
        assert self.lines is not None
        if isinstance(result, Failure):
            answer = {"error": result.reason}
        elif self.modality.literal:
            answer = {self.modality.name: result}
        else:
            answer = {"path": str(self._save(given, result))}
        self.lines.write(json.dumps({"source": given, "to": self.to, **answer}, ensure_ascii=False) + "\n")
        self.lines.flush()

    def place(self, given: str) -> Path:
        """Where the next result goes."""
        return self.file or self._path(given)

    def _save(self, given: str, result: Any) -> Path:
        path = self.place(given)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.modality.save(result))
        return path

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
