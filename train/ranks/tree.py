"""Divide a step's microbatches among the ranks, and add what they compute along one fixed tree.

Float addition is not associative: another order of adding gives other bits. Here the values of all
microbatches are added along a binary tree that their number alone decides. It is the perfect tree,
cut off after the last microbatch: ((0 + 1) + (2 + 3)) + ((4 + 5) + 6) for 7 of them.

A rank computes consecutive microbatches, its portion. It adds up each of the subtrees that the
portion consists of. The rest of the tree adds these sums, in the same order whoever has computed
them. So every number of ranks gives the same bits.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Portion(NamedTuple):
    """What a rank computes in a step."""

    microbatches: range
    subtrees: tuple[range, ...]
    """The largest whole subtrees that these microbatches consist of, in order."""


@functools.cache
def portions(num_microbatches: int, num_ranks: int) -> tuple[Portion, ...]:
    """Divide the microbatches among at most as many ranks; the same result on every rank.

    The rank with the most microbatches decides how long a step takes: none has more than it must.
    Within that, the number of subtrees, which the ranks send one another, is the smallest.
    """
    most = -(-num_microbatches // num_ranks)
    num_spare = most * num_ranks - num_microbatches
    sizes = range(max(1, most - num_spare), most + 1)
    counts = {size: count_subtrees(size, num_microbatches) for size in sizes}
    fewest = np.full(num_microbatches + 1, np.inf)
    """Subtrees from a microbatch to the end, if the ranks that are left divide these."""
    fewest[-1] = 0
    chosen = []
    for _ in range(num_ranks):  # from the last rank to the first
        totals = np.full((len(sizes), num_microbatches + 1), np.inf)
        for row, size in zip(totals, sizes, strict=True):
            row[:-size] = counts[size] + fewest[size:]
        chosen.append(sizes.start + totals.argmin(0))
        fewest = totals.min(0)
    found, first = [], 0
    for size_from in reversed(chosen):
        mine = range(first, first + int(size_from[first]))
        found.append(Portion(mine, subtrees_of(mine, num_microbatches)))
        first = mine.stop
    return tuple(found)


def count_subtrees(size: int, num_microbatches: int) -> npt.NDArray[np.int64]:
    """Count the subtrees of `size` microbatches from each on; (last one to begin at + 1,)."""
    first = np.arange(num_microbatches - size + 1)
    stop, count = first + size, np.zeros(len(first), np.int64)
    while (is_left := first < stop).any():  # as subtrees_of, for all of them at once
        largest = np.where(first == 0, num_microbatches, first & -first)
        fitting = 1 << (np.frexp(np.maximum(1, stop - first))[1] - 1)
        largest = np.where(stop < num_microbatches, np.minimum(largest, fitting), largest)
        count += is_left
        first = np.where(is_left, first + largest, first)
    return count


def subtrees_of(microbatches: range, num_microbatches: int) -> tuple[range, ...]:
    """Return the largest whole subtrees that consecutive microbatches consist of.

    A subtree begins at a multiple of its size, a power of two. The last of each size is cut off
    after the last of all microbatches.
    """
    found, start = [], microbatches.start
    while start < microbatches.stop:
        size = start & -start or num_microbatches  # the largest power of two that divides start
        if microbatches.stop < num_microbatches:
            size = min(size, 1 << (microbatches.stop - start).bit_length() - 1)
        found.append(range(start, min(start + size, microbatches.stop)))
        start += size
    return tuple(found)


def add_along_tree(sums: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Add the sums of subtrees, in place; returns the sum of all, in the memory of the first.

    The subtrees follow one another and make up a whole subtree; `starts` are their first
    microbatches.
    """
    left = dict(zip(starts, sums, strict=True))
    size = 1
    while len(left) > 1:
        for start in [start for start in left if (start - starts[0]) & size]:
            left[start - size] += left.pop(start)
        size *= 2
    return left[starts[0]]
