"""Loops in generated codes are found whatever their length, and cut to one round."""

import pytest
import torch

from anyxform.loops import loop, without_loops


def codes(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


@pytest.mark.parametrize(
    ("numbers", "most", "found"),
    [
        ((), 3, None),
        ((5,), 3, None),
        ((5, 5, 5), 3, None),
        ((5, 5, 5, 5), 3, (0, 1, 4)),
        ((1, 5, 5, 5, 5, 5, 2), 3, (1, 1, 6)),
        ((1, 2, 1, 2, 1, 2), 3, None),
        ((9, 1, 2, 1, 2, 1, 2, 1, 2, 1), 3, (1, 2, 10)),  # the last round is cut off
        ((1, 2, 3) * 2 + (1, 2), 2, None),
        ((1, 2, 3) * 3, 2, (0, 3, 9)),
        ((5,) * 100, 0, None),
        ((5,) * 100, 6, (0, 1, 100)),
    ],
)
def test_what_comes_too_often_in_a_row_is_a_loop(numbers, most: int, found) -> None:
    assert loop(codes(*numbers), most) == found


def test_all_codebooks_have_to_repeat() -> None:
    pairs = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 4], [1, 2]])
    assert loop(pairs, 2) is None and loop(pairs[:1].repeat(3, 1), 2) == (0, 1, 3)


@pytest.mark.parametrize("length", range(1, 9))
def test_a_loop_is_cut_to_one_round_and_the_rest_stays(length: int) -> None:
    def cut(*numbers: int) -> list[int]:
        return [numbers[place] for place in without_loops(codes(*numbers), 6)]

    around = list(range(10, 10 + length))
    assert cut(1, 2, *around * 7, 3, 4) == [1, 2, *around, 3, 4]
    assert cut(1, 2, *around * 6, 3, 4) == [1, 2, *around * 6, 3, 4]
    assert cut(*around * 9, *[7] * 9) == [*around, 7]
