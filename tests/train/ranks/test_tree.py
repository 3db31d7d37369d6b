"""The tree over microbatches: what each rank computes of it, and the order of adding."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.train.ranks.recursion import draw, total, whole_subtrees
from train.ranks.tree import add_along_tree, portions, subtrees_of

UP_TO = 33
EVERY = [(m, w) for m in range(1, UP_TO + 1) for w in range(1, m + 1)]


def rows(num: int) -> Tensor:
    return draw((num, 20), seed=num)


def test_the_recursion_is_the_tree_that_the_docstring_writes_out() -> None:
    v = rows(7)
    assert torch.equal(total(v), ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6]))


@pytest.mark.parametrize("num", range(2, UP_TO + 1))
def test_another_order_would_show(num: int) -> None:
    """Else this file would show nothing."""
    in_a_row = rows(num)[0]
    for row in rows(num)[1:]:
        in_a_row = in_a_row + row
    assert torch.equal(in_a_row, total(rows(num))) == (num < 4)


def test_a_rank_has_consecutive_microbatches_and_no_more_than_it_must() -> None:
    for num, num_ranks in EVERY:
        mine = [portion.microbatches for portion in portions(num, num_ranks)]
        assert len(mine) == num_ranks
        assert [m for each in mine for m in each] == list(range(num))
        assert all(mine)
        assert max(map(len, mine)) == -(-num // num_ranks)


def test_subtrees_are_the_largest_whole_ones() -> None:
    for num in range(1, UP_TO + 1):
        for start in range(num):
            for stop in range(start + 1, num + 1):
                mine = range(start, stop)
                assert list(subtrees_of(mine, num)) == whole_subtrees(mine, range(num)), (mine, num)


def test_every_number_of_ranks_adds_to_the_same_bits() -> None:
    for num, num_ranks in EVERY:
        values, sums, starts = rows(num), [], []
        for microbatches, subtrees in portions(num, num_ranks):
            assert list(subtrees) == whole_subtrees(microbatches, range(num))
            for subtree in subtrees:
                mine = list(values[subtree.start : subtree.stop].clone())
                sums.append(add_along_tree(mine, subtree))
                starts.append(subtree.start)
        assert torch.equal(add_along_tree(sums, starts), total(values)), (num, num_ranks)


def fewest_subtrees(num: int, num_ranks: int) -> int:
    """By trying every way to divide the microbatches."""
    most = -(-num // num_ranks)

    def fewest(first: int, ranks_left: int) -> float:
        if not ranks_left:
            return 0 if first == num else float("inf")
        ends = range(first + 1, min(first + most, num) + 1)
        counts = [
            len(whole_subtrees(range(first, end), range(num))) + fewest(end, ranks_left - 1)
            for end in ends
        ]
        return min(counts, default=float("inf"))

    return int(fewest(0, num_ranks))


def test_no_other_division_has_fewer_subtrees() -> None:
    for num, num_ranks in EVERY:
        if num <= 11:
            found = sum(len(portion.subtrees) for portion in portions(num, num_ranks))
            assert found == fewest_subtrees(num, num_ranks), (num, num_ranks)


@pytest.mark.parametrize(
    ("num", "num_ranks", "sizes"),
    [
        (4, 3, [1, 1, 2]),
        (16, 12, [1] * 8 + [2] * 4),
        (8, 5, [1, 1, 2, 2, 2]),
        (7, 3, [2, 2, 3]),
        (10, 7, [1, 1, 1, 1, 2, 2, 2]),
        (8, 2, [4, 4]),
        (12, 3, [4, 4, 4]),
    ],
)
def test_these_divide_into_one_subtree_a_rank(
    num: int, num_ranks: int, sizes: Sequence[int]
) -> None:
    found = portions(num, num_ranks)
    assert [len(portion.microbatches) for portion in found] == sizes
    assert all(len(portion.subtrees) == 1 for portion in found)


@pytest.mark.parametrize(("num", "num_ranks"), [(1024, 1024), (1024, 33), (1000, 687)])
def test_many_microbatches_are_divided_too(num: int, num_ranks: int) -> None:
    mine = [portion.microbatches for portion in portions(num, num_ranks)]
    assert [m for each in mine for m in each] == list(range(num))
