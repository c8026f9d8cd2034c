"""Padding of packed rows and of padded batches, of simulated mixtures with lengths from 4 to 4,000 tokens.

    python -m benchmarks.packing

No text or recording is cut: a row holds whole examples. Lengths are drawn log-uniformly (as many of 4 to 40 as of 400
to 4,000), or as a third of short texts, a third of pictures, a third of recordings. Peers: batches of 32 in the order
of the data, and batches of 32 of a pool sorted by length.
"""

import json
import random
from collections.abc import Iterator, Sequence

from anyxform.rows import balance

POOLS, POOL, BATCH = 16, 1024, 32


def log_uniform(chance: random.Random) -> int:
    return round(4 * 1000 ** chance.random())


def modal(chance: random.Random) -> int:
    kind = chance.randrange(3)
    return (chance.randint(4, 60), chance.choice((68, 132, 260, 1028)), chance.randint(100, 4000))[kind]


def packed(lengths: Sequence[int], tokens_per_row: int) -> int:
    """Tokens of the rows into which a pool is packed, padding included."""
    return len(balance(lengths, tokens_per_row)) * tokens_per_row


def padded(lengths: Sequence[int]) -> int:
    """The same of batches as long as their longest."""
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    return sum(len(batch) * max(batch) for batch in batches)


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for kind in (log_uniform, modal):
        chance = random.Random(0)
        pools = [[kind(chance) for _ in range(POOL)] for _ in range(POOLS)]
        found[kind.__name__] = dict(shares(pools))
        for name, share in found[kind.__name__].items():
            print(f"{kind.__name__}, {name}: {share:.2%} padding")
    print(json.dumps(found))


def shares(pools: Sequence[Sequence[int]]) -> Iterator[tuple[str, float]]:
    useful = sum(map(sum, pools))
    for size in (4096, 8192, 16384):
        yield f"rows of {size} tokens", 1 - useful / sum(packed(pool, size) for pool in pools)
    yield "padded batches", 1 - useful / sum(map(padded, pools))
    yield "padded batches of sorted pools", 1 - useful / sum(padded(sorted(pool)) for pool in pools)


if __name__ == "__main__":
    main()
