"""Sum over microbatches so that the bits do not depend on the number of ranks.

Float addition is not associative. An all-reduce adds the ranks' gradients in an order that depends
on the number of ranks and on the position of a value in its bucket. Here the values of all
microbatches are added along one fixed binary tree, ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). A
rank that computes 4 of 8 microbatches adds up a subtree by itself; the levels above add the ranks'
sums in the same order. So all numbers of ranks give the same bits, if each rank computes a whole
subtree: 1, 2, 4, ... microbatches, the same number on every rank.

Across ranks, a bucket is cut into one slice per rank: all-to-all, each rank adds up its slice,
all-gather. That moves as many bytes as an all-reduce.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from train.ranks.distributed import Ranks


def tree_sum(values: Tensor) -> Tensor:
    """Sum over the first axis, along the tree; (n, ...) -> (...)."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1  # the largest power of two below n
    return tree_sum(values[:half]) + tree_sum(values[half:])


def tree_sum_in_place(values: Tensor) -> Tensor:
    """Sum as `tree_sum` does, in the memory of the first value, which is returned."""
    if len(values) > 1:
        half = 1 << (len(values) - 1).bit_length() - 1
        tree_sum_in_place(values[:half]).add_(tree_sum_in_place(values[half:]))
    return values[0]


def tree_sum_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Sum a (small) tensor over the ranks, along the tree. Collective."""
    if ranks.world_size == 1:
        return value
    gathered = [torch.empty_like(value) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, value.contiguous())
    return tree_sum(torch.stack(gathered))


def sum_over_microbatches(mine: Tensor, ranks: Ranks) -> Tensor:
    """Sum over the microbatches of all ranks, along the tree. Collective.

    `mine` holds this rank's microbatches, (n, ...) -> (...).
    """
    return tree_sum_over_ranks(tree_sum(mine), ranks)


class TreeGradients:
    """Sums the gradients of a step's microbatches along the tree.

    Call `microbatch_done` after each backward pass on this rank. Within the rank, backward adds the
    second of two neighbours onto the first; the sums of larger subtrees wait in `pending` until
    their neighbour is computed. Across ranks, a hook in DDP adds one bucket after another, while
    the last backward pass still runs.
    """

    def __init__(self, model: nn.Module, num_mine: int, ranks: Ranks) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.num_mine, self.ranks = num_mine, ranks
        self.num_done = 0
        self.pending: list[dict[nn.Parameter, Tensor]] = []
        """Gradients of finished subtrees by parameter, the largest subtree first."""
        self.in_flight: list[Exchange] = []
        self.received: dict[int, Tensor] = {}
        """Memory for what the ranks send, by bucket, allocated once: new memory is slow."""

    def microbatch_done(self) -> None:
        """Note that backward has added a microbatch's gradient to each parameter's."""
        self.num_done += 1
        if self.num_done < self.num_mine:
            if self.num_done % 2 == 0:
                self.keep_pair()
            return
        if self.ranks.world_size == 1:  # otherwise the hook has done it
            for parameter in self.parameters:
                self.add_pending(parameter, parameter.grad)
        self.pending.clear()
        self.num_done = 0

    def keep_pair(self) -> None:
        """Move the sum of the last two microbatches to `pending`, and clear the gradients.

        While the subtree before it is as large, the two are added up, as in a binary counter.
        """
        subtree: dict[nn.Parameter, Tensor] = {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                subtree[parameter] = parameter.grad.clone()
                parameter.grad.zero_()
        num_pairs = self.num_done // 2
        while num_pairs % 2 == 0:
            for parameter, gradient in self.pending.pop().items():
                subtree[parameter] += gradient
            num_pairs //= 2
        self.pending.append(subtree)

    def add_pending(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        """Add the pending subtrees onto the last one, the smallest first."""
        if gradient is not None:
            for subtree in reversed(self.pending):
                gradient += subtree[parameter]

    def memory_for(self, bucket: dist.GradBucket) -> Tensor:  # type: ignore[name-defined]
        """Return memory for a bucket's slices from all ranks.

        It grows if needed: DDP may cut other buckets after the first step.
        """
        size = len(bucket.buffer()) + self.ranks.world_size
        held = self.received.get(bucket.index())
        if held is None or len(held) < size:
            held = self.received[bucket.index()] = bucket.buffer().new_empty(size)
        return held

    def attach(self, parallel: DistributedDataParallel) -> None:
        """Make DDP call `reduce_bucket` instead of an all-reduce."""
        parallel.register_comm_hook(self, TreeGradients.reduce_bucket)

    @staticmethod
    def reduce_bucket(
        self: "TreeGradients",
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """Start this bucket's exchange, and end that of the bucket before; DDP's hook."""
        # .grad is a view of the bucket; bucket.gradients() has other strides with channels_last
        for parameter in bucket.parameters():
            self.add_pending(parameter, parameter.grad)
        self.in_flight.append(Exchange(bucket.buffer(), self.memory_for(bucket), self.ranks))
        num_to_end = len(self.in_flight) - (0 if bucket.is_last() else 1)
        ending, self.in_flight = self.in_flight[:num_to_end], self.in_flight[num_to_end:]
        future = self.in_flight[-1].future if self.in_flight else ending[-1].future
        for exchange in ending:
            exchange.end()
        return future


class Exchange:
    """The running sum of one bucket over the ranks."""

    def __init__(self, bucket: Tensor, received: Tensor, ranks: Ranks) -> None:
        self.bucket, self.world_size = bucket, ranks.world_size
        # one slice per rank, the last one padded; most buckets need no padding
        missing = -len(bucket) % ranks.world_size
        self.sent = F.pad(bucket, (0, missing)) if missing else bucket
        self.received = received[: len(self.sent)]
        work = dist.all_to_all_single(self.received, self.sent, async_op=True)
        assert work is not None  # this rank is in the group
        self.work = work
        self.future: Future[Tensor] = Future(devices=[bucket.device] if bucket.is_cuda else None)

    def end(self) -> None:
        """Add up this rank's slice of the bucket, and fetch the other ranks' slices."""
        self.work.wait()
        summed = tree_sum_in_place(self.received.view(self.world_size, -1))
        dist.all_gather(list(self.sent.view(self.world_size, -1)), summed)
        if self.sent is not self.bucket:
            self.bucket.copy_(self.sent[: len(self.bucket)])
        self.future.set_result(self.bucket)
