"""`anyxform edit INPUT`: make a part of a file or text anew, keep the rest exactly, and take it back."""

import argparse
from pathlib import Path

from anyxform.cli.arguments import Parser, there
from anyxform.cli.history import History
from anyxform.cli.run import add_candidates, add_generation, add_model

EPILOG = """parts:
  pictures    0,0,64,32 (x0,y0,x1,y1 in pixels), or a file that is white there
  recordings  0:1.5 (seconds)
  texts       6:10 (characters), or words that the text holds

examples:
  anyxform edit fish.png --prompt "a blue fish" --keep 0,0,64,32 -o out.png
  anyxform edit out.png --prompt "a hat" --redo 16,0,48,16 -o out.png
  anyxform edit out.png --undo
  anyxform edit fish.png --extend 0,0,32,0 -o wide.png
  anyxform edit hello.wav --redo 1:1.5 --source hello.txt -o new.wav
  anyxform edit "a red fish" --redo red --source fish.png
"""


def parser() -> Parser:
    """The command's options; those of generation are those of `anyxform run`."""
    it = Parser(
        prog="anyxform edit",
        description="Make a part of a file or text anew and keep the rest exactly.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    it.add_argument("input", metavar="INPUT", help="a file, or a text")
    it.add_argument("--redo", action="append", default=[], metavar="PART", help="what to make anew; repeatable")
    it.add_argument("--keep", action="append", default=[], metavar="PART", help="what to keep; repeatable")
    it.add_argument(
        "--extend", default="", metavar="HOW", help="how much larger: left,top,right,bottom; [before,]after; start, end"
    )
    it.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="what to make it of; repeatable")
    it.add_argument("--source", action="append", default=[], metavar="INPUT", help="a file to make it of; repeatable")
    it.add_argument("--to", default="", metavar="FIELD", help="such as image:noto; default: what the input is")
    it.add_argument("-o", "--out", type=Path, help="a file, which may be the input itself, or a folder")
    it.add_argument("--undo", action="store_true", help="take the last round of INPUT back")
    it.add_argument("--from", dest="origin", metavar="MODALITY", help="what the input is, if its ending does not say")
    add_model(it)
    it.add_argument("--seed", type=int, default=0, help="of this round")
    add_candidates(it)
    add_generation(it)
    return it


def main(arguments: list[str]) -> int:
    """Do one round, or undo one; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.undo:
        print(History.of(Path(options.input)).undo())
        return 0
    from anyxform.cli.writer import Writer  # torch is imported only now
    from anyxform.edit import Round, edit
    from anyxform.pipeline import load
    from anyxform.sampling import Sampling

    given = {name: value for name, value in vars(options).items() if name in Sampling.__dataclass_fields__}
    given |= {name: getattr(options, name) for name in ("redo", "keep", "extend", "to", "n", "rank")}
    Round.of(**given)  # complains before anything is loaded
    pipeline = load(options.checkpoint, device=options.device, dtype=options.dtype)
    given["source"] = [*((pipeline.literal, it) for it in options.prompt), *options.source]
    round = Round.of(**given)
    input = Path(options.input) if there(options.input, Path.is_file) else options.input
    name, value = pipeline.read((options.origin, input) if options.origin else input)
    modality = pipeline.modalities[name]
    writer = Writer(options.out, modality, name, [options.input], options.source)
    if options.out is not None and (writer.format or options.out.suffix == ".jsonl"):
        raise ValueError(f"-o {options.out}: give a file or a folder")
    out = None if options.out is None and modality.literal else writer.place(options.input)
    history = None if out is None else _history(options.input, out, modality.save(value))
    found = edit(pipeline, name, value, round)
    if history is None:
        for it in found:
            print(it.value if len(found) == 1 else f"{it.score:.1f}\t{it.value}")
        return 0
    plain = {key: value for key, value in given.items() if value not in ("", [])}
    paths = history.add(plain, [modality.save(it.value) for it in found])
    for path, it in zip(paths, found):
        print(path if len(found) == 1 else f"{it.score:.1f}\t{path}")
    return 0


def _history(given: str, out: Path, original: bytes) -> History:
    """That of the input, if it is edited in place and has one; else a new one."""
    if not (there(given, Path.is_file) and Path(given).resolve() == out.resolve()):
        return History.begin(out, original)
    return History.of(out) if History.exists(out) else History.begin(out, out.read_bytes())
