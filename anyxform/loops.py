"""Loops: an answer in which the same tokens come again and again, as models fall into on what they cannot read."""

from torch import Tensor


def loop(codes: Tensor, most: int) -> tuple[int, int, int] | None:
    """The first run of codes ``[T, K]`` that comes more than `most` times in a row: (start, length, end). 0: never."""
    for length in range(1, len(codes) // (most + 1) + 1 if most else 0):
        same = (codes[length:] == codes[:-length]).all(dim=-1).tolist()
        run = 0
        for place, again in enumerate(same):
            run = run + 1 if again else 0
            if run >= most * length:
                while place + 1 < len(same) and same[place + 1]:
                    place, run = place + 1, run + 1
                return place + 1 - run, length, place + 1 + length
    return None


def without_loops(codes: Tensor, most: int) -> list[int]:
    """The places of codes ``[T, K]`` that stay when of what is a loop one round is kept."""
    places = list(range(len(codes)))
    while (found := loop(codes[places], most)) is not None:
        start, length, end = found
        places = places[: start + length] + places[end:]
    return places
