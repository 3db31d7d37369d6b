"""Sums whose bits do not depend on how many ranks share the work.

Float addition is not associative: an all-reduce adds the ranks' gradients in an order that depends
on their number and on where a value lies in a bucket. Here values of the microbatches are added
along one fixed binary tree over all of them, ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). A rank
that computes 4 of 8 microbatches adds up a subtree by itself, and the levels above cross the ranks
in the same association, so any number of ranks that each compute a whole subtree (1, 2, 4, ...
microbatches, on every rank as many) gets the same bits.

Across ranks a bucket is cut into a part a rank: all-to-all, each rank adds up its part, all-gather.
That moves as much as an all-reduce does.
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
    """The same as `tree_sum`, in the memory of the first value, which is returned."""
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
    """Sum (microbatches of this rank, ...) over those of all ranks, along the tree. Collective."""
    return tree_sum_over_ranks(tree_sum(mine), ranks)


class TreeGradients:
    """The gradients of a step's microbatches, added up along the tree.

    Call `microbatch_done` after each backward pass on this rank. Within the rank, backward itself
    adds the second of two neighbours onto the first; sums of larger subtrees wait in `pending`
    until their neighbour is there. Across ranks a hook in DDP does the rest, a bucket at a time,
    while the last backward pass still goes on.
    """

    def __init__(self, model: nn.Module, num_mine: int, ranks: Ranks) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.num_mine, self.ranks = num_mine, ranks
        self.num_done = 0
        self.pending: list[dict[nn.Parameter, Tensor]] = []
        """Gradients of finished subtrees by parameter, the largest subtree first."""
        self.in_flight: list[Exchange] = []
        self.received: dict[int, Tensor] = {}
        """Memory for what the ranks send, by bucket: made once, for new memory is slow."""

    def microbatch_done(self) -> None:
        """A microbatch's gradient has been added to each parameter's."""
        self.num_done += 1
        if self.num_done < self.num_mine:
            if self.num_done % 2 == 0:
                self.set_aside()
            return
        if self.ranks.world_size == 1:  # else the hook has done it
            for parameter in self.parameters:
                self.add_pending(parameter, parameter.grad)
        self.pending.clear()
        self.num_done = 0

    def set_aside(self) -> None:
        """Put the finished pair away, merged with the finished subtrees of its size."""
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
        """Add the waiting subtrees onto the last one, the smallest first."""
        if gradient is not None:
            for subtree in reversed(self.pending):
                gradient += subtree[parameter]

    def memory_for(self, bucket: dist.GradBucket) -> Tensor:  # type: ignore[name-defined]
        """Where a bucket's parts from all ranks go; DDP may cut the buckets anew after a step."""
        size = len(bucket.buffer()) + self.ranks.world_size
        held = self.received.get(bucket.index())
        if held is None or len(held) < size:
            held = self.received[bucket.index()] = bucket.buffer().new_empty(size)
        return held

    def attach(self, parallel: DistributedDataParallel) -> None:
        """Let DDP hand its buckets to us, in place of an all-reduce."""
        parallel.register_comm_hook(self, TreeGradients.reduce_bucket)

    @staticmethod
    def reduce_bucket(
        self: "TreeGradients",
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """DDP's hook: start this bucket's exchange, end that of the one before."""
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
    """The sum of one bucket over the ranks, on its way."""

    def __init__(self, bucket: Tensor, received: Tensor, ranks: Ranks) -> None:
        self.bucket, self.world_size = bucket, ranks.world_size
        # a part a rank, the last one padded; mostly the bucket can be cut as it is
        missing = -len(bucket) % ranks.world_size
        self.sent = F.pad(bucket, (0, missing)) if missing else bucket
        self.received = received[: len(self.sent)]
        work = dist.all_to_all_single(self.received, self.sent, async_op=True)
        assert work is not None  # this rank is one of the group
        self.work = work
        self.future: Future[Tensor] = Future(devices=[bucket.device] if bucket.is_cuda else None)

    def end(self) -> None:
        """Add up this rank's part of the bucket, and fetch the others' parts."""
        self.work.wait()
        part = tree_sum_in_place(self.received.view(self.world_size, -1))
        dist.all_gather(list(self.sent.view(self.world_size, -1)), part)
        if self.sent is not self.bucket:
            self.bucket.copy_(self.sent[: len(self.bucket)])
        self.future.set_result(self.bucket)
