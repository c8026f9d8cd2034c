"""`anyxform run INPUT … --to FIELD`: convert files and texts."""

import argparse
import glob
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anyxform.cli.arguments import Parser, there
from anyxform.cli.run_shards import are_shards, convert_shards

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
    it.add_argument(
        "--from",
        dest="origin",
        metavar="MODALITY",
        help="what the inputs are, if their endings do not say; of shards: the source field, or several: image+text:en",
    )
    add_model(it)
    it.add_argument(
        "--compile", action="store_true", help="the step of plain decoding left to right: for very many inputs"
    )
    it.add_argument("--batch-size", type=int, default=64)
    it.add_argument("--seed", type=int, default=0, help="of the first input; each further one has the next")
    it.add_argument(
        "--via", metavar="FIELD", help="go by way of a field; auto: if the evaluation table says it is better"
    )
    it.add_argument("--words", action="store_true", help="with -f json: when each word of a recording is said")
    it.add_argument("--show-effort", action="store_true", help="print how many layers each token took")
    add_candidates(it)
    add_shards(it)
    add_generation(it)
    return it


def add_model(it: Parser) -> None:
    """Options of which model answers, where and how its weights are kept."""
    it.add_argument("--checkpoint", default="starter", help="a run or checkpoint (default: starter, the shipped one)")
    it.add_argument("--device", help="cpu, cuda, …")
    it.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "int8"],
        default="fp32",
        help="of the weights; int8 on CPUs (default: fp32)",
    )


def add_candidates(it: Parser) -> None:
    """Options of how many answers are drawn, and which one is taken."""
    it.add_argument("-n", type=int, default=1, metavar="N", help="draw N candidates and take the best (default: 1)")
    it.add_argument(
        "--rank", choices=["back", "own", "both"], default="back",
        help="by the likelihood of the way back, of the answer, or of both (default: back)",
    )  # fmt: skip


def add_shards(it: Parser) -> None:
    """Options of whole datasets."""
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


def add_generation(it: Parser) -> None:
    """Options that have the names of `anyxform.sampling.Sampling`."""
    generation = it.add_argument_group("generation", argument_default=argparse.SUPPRESS)
    generation.add_argument("--temperature", type=float, help="0 takes the likeliest")
    generation.add_argument("--top-k", type=int)
    generation.add_argument("--top-p", type=float)
    generation.add_argument("--no-repeat", type=int, metavar="N", help="no run of N tokens comes twice")
    generation.add_argument("--beams", dest="num_beams", type=int)
    generation.add_argument("--length-penalty", type=float, help="of beams")
    generation.add_argument(
        "--align-weight", type=float, metavar="0…1",
        help="of transcripts: how much the recording's own spelling counts beside the text (1: alone, the fastest)",
    )  # fmt: skip
    generation.add_argument("--steps", type=int, help="of masked refinement")
    generation.add_argument(
        "--schedule",
        choices=["cosine", "linear", "square"],
        help="of masked refinement, the share still hidden (default: cosine)",
    )
    generation.add_argument("--choice-temperature", type=float, help="of masked refinement")
    generation.add_argument("--guidance", type=float, help="1 is none")
    generation.add_argument("--refine", type=int, metavar="ROUNDS", help="redo the least certain tokens of a text")
    generation.add_argument(
        "--draft", type=int, metavar="N", help="draft N tokens ahead by the first layers: the same answer"
    )
    generation.add_argument("--draft-layers", type=int, metavar="N", help="layers that draft (default: a third)")
    generation.add_argument(
        "--effort", type=float, metavar="0…1", help="the confidence at which tokens leave early (default: 1, never)"
    )
    generation.add_argument("--decoding", choices=["autoregressive", "masked"], help="other than the modality's own")
    generation.add_argument("--length", type=int, help="tokens of the result")


def main(arguments: list[str]) -> int:
    """Parse the arguments and convert; 0, 1 if some of several inputs failed, a ValueError if the only one did."""
    options = parser().parse_args(arguments)
    chosen = _chosen(options)
    if options.words and are_shards(options.inputs):
        raise ValueError("--words is not for shards: they become shards of values alone")
    if are_shards(options.inputs):
        return convert_shards(options, {name: value for name, value in chosen.items() if name != "seed"})
    if options.fields or options.copy:
        raise ValueError("--field and --copy are for shards")
    inputs = list(expand(options.inputs))
    from anyxform.cli.answering import Choice, Failure, answers, by_way, read_inputs
    from anyxform.cli.show_effort import shown
    from anyxform.cli.writer import Writer
    from anyxform.long import Made
    from anyxform.pipeline import load

    pipeline = load(options.checkpoint, device=options.device, dtype=options.dtype, compile=options.compile)
    target = pipeline.field(options.to)
    if options.origin is not None and options.origin not in pipeline.modalities:
        raise ValueError(f"--from {options.origin}: the model reads {', '.join(pipeline.modalities)}")
    others = [pipeline.read(it) for it in options.others]
    modality, failed = pipeline.modalities[target.modality], 0
    with Writer(options.out, modality, str(target), inputs, options.others, options.format) as writer:
        asked = read_inputs(pipeline, inputs, others, target, options.origin)
        if options.via is not None:
            asked = by_way(pipeline, asked, options.via, options.seed, options.batch_size)
        if options.words and writer.format != "json":
            raise ValueError(f"--words is not possible with {writer.format or 'txt'}: they are written with -f json")
        if options.n != 1 and writer.format not in (None, "txt"):
            raise ValueError(f"-n {options.n} is not possible with {writer.format}: candidates are of whole inputs")
        choice = Choice(options.n, options.rank, options.seed, options.batch_size, writer.format, options.words, chosen)
        for given, result in zip(inputs, answers(pipeline, asked, choice)):
            if isinstance(result, Failure) and len(inputs) == 1 and not writer.lined:
                raise ValueError(result.reason)
            failed += isinstance(result, Failure)
            writer.write(given, result)
            if options.show_effort and isinstance(result, Made):
                print(shown(given, result, modality, len(pipeline.model.blocks)), file=sys.stderr)
    if failed:
        print(f"anyxform: {failed} of {len(inputs)} inputs failed", file=sys.stderr)
    return 1 if failed else 0


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that were given; complains before anything is loaded."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size} is not possible: give 1 or more")
    from anyxform.sampling import Sampling  # torch is imported only now

    chosen = {name: value for name, value in vars(options).items() if name in Sampling.__dataclass_fields__}
    sampling = Sampling(**chosen)
    if options.compile and sampling.uncompiled:
        raise ValueError(f"--compile is of plain decoding left to right: it goes with no {sampling.uncompiled}")
    if options.show_effort and options.n != 1:
        raise ValueError(f"--show-effort is of one answer, and -n {options.n} draws several: leave one out")
    return chosen


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
