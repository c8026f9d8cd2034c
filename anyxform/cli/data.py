"""`anyxform data …`: make shards of one's own data, index them, look through them; or build the starter dataset."""

from functools import partial
from importlib import import_module
from pathlib import Path

from anyxform.cli.arguments import Parser

COMMANDS = {  # name: (module, what it is for)
    "build": ("data_build", "write shards from files, tables or other shards: anyxform data build photos data/photos"),
    "index": ("data_index", "write an index beside each shard, with checksums: anyxform data index 'data/*.tar'"),
    "encode": ("data_encode", "copy shards with targets' codes beside the samples: anyxform data encode data=mine"),
    "check": ("check", "read all data as training would, and name what is wrong: anyxform data check data=mine"),
    "preview": ("data_preview", "show samples and directions on a page: anyxform data preview data=mine"),
}


def main(arguments: list[str]) -> int:
    """Parse the arguments and do it; returns the exit code."""
    if arguments and arguments[0] in COMMANDS:
        module, _ = COMMANDS[arguments[0]]
        return int(import_module(f"anyxform.cli.{module}").main(arguments[1:]))
    parser = Parser(prog="anyxform data", description="Build, index, encode, check and show datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
    starter = commands.add_parser(
        "starter", help="download real pictures, recordings and texts and write them as shards"
    )
    starter.add_argument("out", type=Path, help="the folder to write, such as data/starter")
    starter.add_argument("--cache", type=Path, default=Path("~/.cache/anyxform"), help="where downloads are kept")
    options = parser.parse_args(arguments)
    from anyxform.starter.build import build

    build(options.out, options.cache.expanduser(), log=partial(print, flush=True))
    print(f"written to {options.out}")
    return 0
