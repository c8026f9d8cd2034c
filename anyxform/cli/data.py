"""`anyxform data starter OUT`: build the starter dataset."""

from pathlib import Path

from anyxform.cli.arguments import Parser


def main(arguments: list[str]) -> int:
    """Parse the arguments and build; returns the exit code."""
    parser = Parser(prog="anyxform data", description="Build datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    starter = commands.add_parser(
        "starter", help="download real pictures, recordings and texts and write them as shards"
    )
    starter.add_argument("out", type=Path, help="the folder to write, such as data/starter")
    starter.add_argument("--cache", type=Path, default=Path("~/.cache/anyxform"), help="where downloads are kept")
    options = parser.parse_args(arguments)
    from anyxform.starter.build import build

    build(options.out, options.cache.expanduser())
    print(f"written to {options.out}")
    return 0
