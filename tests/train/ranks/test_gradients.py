"""Sums follow one tree, whoever adds."""

import pytest
import torch

from train.ranks.gradients import tree_sum, tree_sum_in_place

# So that another order of adding gives other bits: what is small gets lost beside what is large
VALUES = torch.tensor([1.0, 1e8, -1e8, 1.0, 0.5, 3e7, -3e7, 0.25], dtype=torch.float32)


def by_hand(number: int) -> torch.Tensor:
    """The associations that the module's docstring promises, written out."""
    v = VALUES
    sums = {
        1: v[0],
        2: v[0] + v[1],
        3: (v[0] + v[1]) + v[2],
        4: (v[0] + v[1]) + (v[2] + v[3]),
        6: ((v[0] + v[1]) + (v[2] + v[3])) + (v[4] + v[5]),
        8: ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])),
    }
    return sums[number]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 8])
def test_values_are_added_along_the_tree(number: int) -> None:
    assert torch.equal(tree_sum(VALUES[:number]), by_hand(number))
    assert torch.equal(tree_sum_in_place(VALUES[:number].clone()), by_hand(number))


def test_another_order_would_show() -> None:
    in_a_row = VALUES[0]
    for value in VALUES[1:]:
        in_a_row = in_a_row + value
    assert not torch.equal(in_a_row, by_hand(8))
