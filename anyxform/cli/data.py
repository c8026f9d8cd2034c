"""`anyxform data starter|check`: build the starter dataset, or look through data."""

from pathlib import Path

from anyxform.cli.arguments import Parser

CHECK = "read all data as training would, and name what is wrong: anyxform data check data=mine"


def main(arguments: list[str]) -> int:
    """Parse the arguments and do it; returns the exit code."""
    if arguments[:1] == ["check"]:
        from anyxform.cli.check import main as check

        return check(arguments[1:])
    parser = Parser(prog="anyxform data", description="Build and check datasets.")
    commands = parser.add_subparsers(dest="command", required=True)
    starter = commands.add_parser(
        "starter", help="download real pictures, recordings and texts and write them as shards"
    )
    starter.add_argument("out", type=Path, help="the folder to write, such as data/starter")
    starter.add_argument("--cache", type=Path, default=Path("~/.cache/anyxform"), help="where downloads are kept")
    commands.add_parser("check", help=CHECK)
    options = parser.parse_args(arguments)
    from anyxform.starter.build import build

    build(options.out, options.cache.expanduser())
    print(f"written to {options.out}")
    return 0
