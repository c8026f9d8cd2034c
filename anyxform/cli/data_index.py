"""`anyxform data index SHARD…`: read shards once, and write where everything in them is, with checksums."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anyxform.cli.arguments import Parser
from anyxform.cli.bar import progress_bar
from anyxform.cli.processes import in_processes


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 where a shard is damaged or cannot be read."""
    parser = Parser(
        prog="anyxform data index",
        description="Read each shard once and write NAME.tar.index: where its members are, their checksums, and what "
        "its JSON holds. Training then reads no shard before it needs it, and whatever changes later is named.",
    )
    parser.add_argument("shards", nargs="+", help="paths or URLs, with * or braces: 'https://x/train-{000..127}.tar'")
    parser.add_argument("--out", type=Path, help="a folder for them (default: beside each shard; if remote, the cache)")
    parser.add_argument("--again", action="store_true", help="also where there is one that fits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    from anyxform.shard_index import is_index
    from anyxform.storage import expand

    names = [name for pattern in options.shards for name in expand(pattern) if not is_index(name)]
    if not names:
        raise ValueError(f"there is no shard {' '.join(options.shards)}")
    made = samples = damaged = unread = 0
    work = partial(_index, folder=options.out, again=options.again)
    with progress_bar() as bar:
        for new, count, damage in bar.track(
            in_processes(work, names, options.workers), len(names), description="shards"
        ):
            made, unread, samples = made + bool(new), unread + (new is None), samples + count
            damaged += bool(damage) and new is not None
            if unread == len(names):
                raise ValueError(damage[0])
            for line in damage:
                print(line, file=sys.stderr)
    before = len(names) - made - unread
    print(f"{len(names):,} shards, {samples:,} samples: {made:,} indexed, {before:,} as they were")
    for count, what in ((unread, "could not be read"), (damaged, "damaged")):
        if count:
            print(f"{count:,} of them {what}", file=sys.stderr)
    return int(damaged + unread > 0)


def _index(name: str, folder: Path | None, again: bool) -> tuple[bool | None, int, list[str]]:
    """Whether an index was made (None: it cannot be read), its number of samples, and what is wrong with the shard."""
    from anyxform.shard_index import ensure

    try:
        found, new = ensure(name, folder, again=again)
    except (ValueError, OSError) as error:
        return None, 0, [str(error)]
    return new, len(found.samples), found.damage
