"""The tree over microbatches once more, as a recursion: it splits at the largest power of two below
the number of leaves."""

import torch
from torch import Tensor


def halves(tree: range) -> tuple[range, range]:
    """The left and the right subtree of a tree with two leaves or more."""
    half = max(2**power for power in range(20) if 2**power < len(tree))
    return tree[:half], tree[half:]


def total(values: Tensor, tree: range | None = None) -> Tensor:
    """The sum over the first axis."""
    tree = range(len(values)) if tree is None else tree
    if len(tree) == 1:
        return values[tree[0]]
    left, right = halves(tree)
    return total(values, left) + total(values, right)


def whole_subtrees(mine: range, tree: range) -> list[range]:
    """The largest subtrees of a tree with no other leaves than these."""
    if set(tree) <= set(mine):
        return [tree]
    if not set(tree) & set(mine):
        return []
    left, right = halves(tree)
    return whole_subtrees(mine, left) + whole_subtrees(mine, right)


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers that another order of adding gives other bits for."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(8, shape, generator=generator)
    return torch.randn(shape, generator=generator) * 10.0**powers
