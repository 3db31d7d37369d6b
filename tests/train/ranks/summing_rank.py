"""A rank that adds up gradients of its choice, and looks whether the sum is that of the tree."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.train.ranks.recursion import draw, total
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.gradients import TreeGradients, sum_over_microbatches
from train.ranks.tree import portions

NUM_STEPS = 3  # DDP cuts other buckets after the first one
SHAPES = ((4, 3, 3, 3), (5,), (1,), (7, 2), (8, 3, 2, 2), (301,))
BUCKET_MB = 5e-4


class Chosen(nn.Module):
    """Parameters whose gradients are what the forward pass is given."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in SHAPES])
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        """The sum of each parameter times its gradient."""
        products = [(p * g).sum() for p, g in zip(self.values, gradients, strict=True)]
        return torch.stack(products).sum()


def main(argv: Sequence[str]) -> int:
    """Sum over each of these numbers of microbatches; 1 if a sum has other bits."""
    with start_ranks("cpu", 60) as ranks:
        wrong = [number for number in map(int, argv) if not sums_are_right(number, ranks)]
        wrong += [-number for number in map(int, argv) if not vectors_are_right(number, ranks)]
    print(f"rank {ranks.rank}: wrong {wrong}")
    return 1 if wrong else 0


def sums_are_right(num_microbatches: int, ranks: Ranks) -> bool:
    """Whether each gradient, after backward passes under DDP, is the sum along the tree."""
    mine = portions(num_microbatches, ranks.world_size)[ranks.rank].microbatches
    model = Chosen().to(memory_format=torch.channels_last)
    model.values[0].data = model.values[0].data.contiguous(memory_format=torch.channels_last)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB)
    gradients = TreeGradients(model, num_microbatches, ranks)
    gradients.attach(parallel)
    is_right = True
    for step in range(NUM_STEPS):
        every = [draw((num_microbatches, *shape), seed=step) for shape in SHAPES]
        model.zero_grad()
        for microbatch in mine:
            parallel.require_backward_grad_sync = microbatch == mine[-1]  # as no_sync() sets it
            parallel([values[microbatch] for values in every]).backward()
            gradients.microbatch_done()
        for parameter, values in zip(model.values, every, strict=True):
            is_right &= torch.equal(parameter.grad, total(values))
    return is_right


def vectors_are_right(num_microbatches: int, ranks: Ranks) -> bool:
    """Whether values of microbatches, as of a loss, are summed along the tree."""
    mine = portions(num_microbatches, ranks.world_size)[ranks.rank].microbatches
    every = draw((num_microbatches, 9), seed=num_microbatches)
    given = every[mine.start : mine.stop].clone()
    found = sum_over_microbatches(given, num_microbatches, ranks)
    is_unchanged = torch.equal(given, every[mine.start : mine.stop])
    return is_unchanged and torch.equal(found, total(every))
