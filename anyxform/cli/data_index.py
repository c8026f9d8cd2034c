"""`anyxform data index SHARD…`: read shards once, and write where everything in them is, with checksums."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from anyxform.cli.arguments import Parser
from anyxform.cli.bar import progress_bar

_T, _R = TypeVar("_T"), TypeVar("_R")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 where a shard is damaged or cannot be read."""
    parser = Parser(
        prog="anyxform data index",
        description="Read each shard once and write NAME.tar.index: where its members are, their checksums, and what "
        "its JSON holds. Training then reads no shard before it needs it, and whatever changes later is named.",
    )
    parser.add_argument("shards", nargs="+", help="paths or URLs, with * or braces: 'https://x/train-{000..127}.tar'")
    parser.add_argument("--out", type=Path, help="the folder for the indices (default: beside each shard; of remote ones, "
                        "in the cache)")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also where there is one that fits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    from anyxform.shard_index import is_index
    from anyxform.storage import expand

    names = [name for pattern in options.shards for name in expand(pattern) if not is_index(name)]
    if not names:
        raise ValueError(f"there is no shard {' '.join(options.shards)}")
    made = samples = damaged = 0
    work = partial(_index, folder=options.out, again=options.again)
    with progress_bar() as bar:
        for new, count, damage in bar.track(
            in_processes(work, names, options.workers), len(names), description="shards"
        ):
            made, samples, damaged = made + new, samples + count, damaged + bool(damage)
            for line in damage:
                print(line, file=sys.stderr)
    print(f"{len(names):,} shards, {samples:,} samples: {made:,} indexed, {len(names) - made:,} as they were")
    if damaged:
        print(f"{damaged:,} shards are damaged", file=sys.stderr)
    return int(damaged > 0)


def in_processes(work: Callable[[_T], _R], items: Sequence[_T], workers: int) -> Iterator[_R]:
    """What `work` makes of the items, as it is done, in so many processes."""
    if workers < 1:
        raise ValueError(f"--workers {workers} is not possible: give 1 or more")
    if min(workers, len(items)) <= 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            yield from _done(futures)
        finally:
            pool.shutdown(cancel_futures=True)


def _done(futures: Iterable) -> Iterator:
    for future in as_completed(futures):
        yield future.result()


def _index(name: str, folder: Path | None, again: bool) -> tuple[bool, int, list[str]]:
    """Whether an index was made, how many samples it has, and what is wrong with the shard."""
    from anyxform.shard_index import ensure

    try:
        found, new = ensure(name, folder, again=again)
    except (ValueError, OSError) as error:
        return False, 0, [str(error)]
    return new, len(found.samples), found.damage
