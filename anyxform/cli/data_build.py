"""`anyxform data build SRC OUT`: write shards, with indices, of files, tables, Hugging Face datasets or shards."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anyxform.cli.arguments import Parser, printable
from anyxform.cli.bar import progress_bar
from anyxform.cli.processes import in_processes

SHOWN = 10


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 where a sample was left out."""
    parser = Parser(
        prog="anyxform data build",
        description="Write shards OUT/SPLIT-NNNNNN.tar. SRC is a folder of files that share a name up to the first dot "
        "(fish.jpg, fish.en.txt), a CSV, TSV or JSONL, a dataset that Hugging Face's save_to_disk wrote, or shards. "
        "A build that was cut off goes on where it stopped.",
    )
    parser.add_argument("source", metavar="SRC", help="a path, or a URL or pattern of shards")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    table = parser.add_argument_group("tables")
    about = "a column with texts, or paths below the table's folder, as image=photo or text:en=caption"
    table.add_argument("--field", action="append", default=[], metavar="FIELD=COLUMN", help=about)
    table.add_argument("--key", default="", metavar="COLUMN", help="the samples' keys (default: row numbers)")
    table.add_argument("--group", default="", metavar="COLUMN", help="rows that are alike in it share a split")
    table.add_argument("--split", default="", metavar="COLUMN", help="the split: train, val or test")
    shares = parser.add_argument_group("splits, by hashes of the keys, where the source has none")
    shares.add_argument("--val", type=float, default=0.05, help="share of validation (default: 0.05)")
    shares.add_argument("--test", type=float, default=0.05, help="share of test (default: 0.05)")
    parser.add_argument("--samples", type=int, default=10_000, help="of a shard, at most (default: 10000)")
    parser.add_argument("--megabytes", type=float, default=500, help="of a shard, about, at most (default: 500)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--again", action="store_true", help="write all anew, whatever OUT holds")
    options = parser.parse_args(arguments)

    from anyxform.build.sources import Kind, Options, Shards, open_source
    from anyxform.build.write import begin, left_out, plan, write
    from anyxform.modality import registry
    from anyxform.storage import is_remote

    if options.out.resolve().is_relative_to(Path(options.source).resolve()):
        raise ValueError(f"{options.out} is inside {options.source}: give a folder outside")
    fields = dict(_pair(text) for text in options.field)
    kinds = {name: Kind(it.extensions, it.literal) for name, it in registry().items()}
    source = open_source(options.source, Options(kinds, fields, options.key, options.group, options.split))
    if isinstance(source, Shards) and any(
        not is_remote(name) and Path(name).resolve().parent == options.out.resolve() for name in source.names
    ):
        raise ValueError(f"{options.out} is where the shards of {options.source} are: give another folder")
    skipped: list[str] = []
    parts = plan(
        source.entries(skipped), val=options.val, test=options.test, samples=options.samples,
        size=int(options.megabytes * 1e6),
    )  # fmt: skip
    if not parts:
        why = skipped[0] if skipped else "files are samples if a modality reads their endings (anyxform modalities)"
        raise ValueError(f"{options.source} has no samples: {why}")
    missing = begin(options.out, parts, options.again)
    with progress_bar() as bar:
        total = sum(len(part.entries) for part in parts)
        task = bar.add_task("samples", total=total, completed=total - sum(len(part.entries) for part in missing))
        for count in in_processes(partial(write, source=source, out=options.out), missing, options.workers):
            bar.advance(task, count)
    skipped += left_out(options.out)
    _tell(options.out, Counter(part.name.split("-")[0] for part in parts), len(parts) - len(missing), skipped)
    return int(bool(skipped))


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not equals or not name or not column:
        raise ValueError(f"--field {text}: write FIELD=COLUMN, as text:en=caption")
    return name, column


def _tell(out: Path, shards: Counter[str], before: int, skipped: Sequence[str]) -> None:
    for line in skipped[:SHOWN]:
        print(f"left out: {printable(line)}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"left out: and {len(skipped) - SHOWN:,} more", file=sys.stderr)
    if skipped:
        print("once that is mended, --again writes all anew", file=sys.stderr)
    counts = ", ".join(f"{name} {count}" for name, count in shards.items())
    print(f"{out}: shards: {counts}" + (f"; {before} were there before" if before else ""))
    print(f'for a config: {{shards: "{out.name}/{{split}}-*.tar"}} below data.root={out.parent}')
