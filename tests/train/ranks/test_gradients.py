"""Sums follow one tree, whoever adds: on real ranks, bucket by bucket."""

from pathlib import Path

import pytest
import torch

from tests.forked_ranks import ForkedRanks
from tests.train.ranks.recursion import draw, total
from train.ranks.distributed import Ranks
from train.ranks.gradients import TreeGradients, sum_over_microbatches

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("num_ranks", "microbatches"),
    [(2, "2 3 5 6 8"), (3, "3 4 6 7 8 10 13"), (5, "5 8 12")],
)
def test_ranks_sum_along_the_tree(num_ranks: int, microbatches: str, tmp_path: Path) -> None:
    """Gradients under DDP, in several buckets and layouts; losses and statistics."""
    command = "tests.train.ranks.summing_rank"
    output = ForkedRanks(command, microbatches.split(), num_ranks, tmp_path / "log").finish()
    assert output.count("wrong []") == num_ranks


@pytest.mark.parametrize("number", range(1, 18))
def test_one_rank_sums_along_the_tree(number: int) -> None:
    """A parameter that no backward pass reaches keeps no gradient."""
    values = draw((number, 20), seed=number)
    model = torch.nn.ParameterList([torch.ones(20), torch.ones(3)])
    gradients = TreeGradients(model, number, ALONE)
    for _ in range(2):
        model.zero_grad()
        for row in values:
            (model[0] * row).sum().backward()
            gradients.microbatch_done()
        assert torch.equal(model[0].grad, total(values))
        assert model[1].grad is None
    assert torch.equal(sum_over_microbatches(values, number, ALONE), total(values))
