"""Sum over microbatches so that the bits do not depend on the number of ranks.

An all-reduce adds the ranks' gradients in an order that depends on the number of ranks and on the
position of a value in its bucket. Here they are added along the tree of `train.ranks.tree`.

Each bucket is cut into one slice per rank: all-to-all, each rank adds up its slice of all subtrees,
all-gather. Where every rank's portion is one subtree, that moves as many bytes as an all-reduce;
each further subtree adds a bucket to what its rank sends.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from train.ranks.distributed import Ranks
from train.ranks.tree import add_along_tree, portions, subtrees_of


def sum_over_microbatches(mine: Tensor, num_microbatches: int, ranks: Ranks) -> Tensor:
    """Sum over the microbatches of all ranks, along the tree. Collective.

    `mine` holds this rank's microbatches, (n, ...) -> (...).
    """
    everyone = portions(num_microbatches, ranks.world_size)
    rows = iter(mine.clone())
    subtrees = everyone[ranks.rank].subtrees
    sums = torch.stack([add_along_tree([next(rows) for _ in each], each) for each in subtrees])
    if ranks.world_size == 1:
        return sums[0]
    counts = [len(portion.subtrees) for portion in everyone]
    padded = F.pad(sums.view(len(sums), -1), (0, 0, 0, max(counts) - len(sums)))
    gathered = [torch.empty_like(padded) for _ in everyone]
    dist.all_gather(gathered, padded)
    of_all = torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])
    starts = [subtree.start for portion in everyone for subtree in portion.subtrees]
    return add_along_tree(of_all.unbind(), starts).view_as(sums[0])


class TreeGradients:
    """Sums the gradients of a step's microbatches along the tree.

    Call `microbatch_done` after each backward pass on this rank. Within the rank, backward adds the
    second of two neighbours onto the first; the sums of larger subtrees wait in `pending`. Across
    ranks, a hook in DDP adds one bucket after another, while the last backward pass still runs.
    """

    def __init__(self, model: nn.Module, num_microbatches: int, ranks: Ranks) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.num_microbatches, self.ranks = num_microbatches, ranks
        everyone = portions(num_microbatches, ranks.world_size)
        self.mine = everyone[ranks.rank].microbatches
        self.counts = [len(portion.subtrees) for portion in everyone]
        """Number of subtrees of each rank."""
        self.starts = [subtree.start for portion in everyone for subtree in portion.subtrees]
        """First microbatch of each subtree of all ranks."""
        self.num_done = 0
        self.pending: list[dict[nn.Parameter, Tensor]] = []
        """Gradients of finished subtrees by parameter, in order."""
        self.in_flight: list[Exchange] = []
        self.memory: dict[tuple[int, str], Tensor] = {}
        """For what is sent and received, by bucket, allocated once: new memory is slow."""

    @property
    def num_before(self) -> int:
        """Number of this rank's subtrees that are finished before its last microbatch."""
        return self.counts[self.ranks.rank] - 1

    def microbatch_done(self) -> None:
        """Note that backward has added a microbatch's gradient to each parameter's."""
        microbatch = self.mine[self.num_done]
        self.num_done += 1
        if self.num_done < len(self.mine):
            if microbatch % 2:  # after an even one, backward adds its neighbour onto it
                self.keep_sum()
            return
        if self.ranks.world_size == 1:  # otherwise the hook has done it
            for parameter in self.parameters:
                self.add_pending(parameter)
        self.pending.clear()
        self.num_done = 0

    def keep_sum(self) -> None:
        """Move the gradients to `pending`, and add up what is now one subtree."""
        last: dict[nn.Parameter, Tensor] = {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                last[parameter] = parameter.grad
                parameter.grad = None
        subtrees = subtrees_of(self.mine[: self.num_done], self.num_microbatches)
        while len(self.pending) >= len(subtrees):
            # a parameter has a gradient in each microbatch, or in none
            for parameter, gradient in self.pending.pop().items():
                last[parameter] += gradient
        self.pending.append(last)

    def add_pending(self, parameter: nn.Parameter) -> None:
        """Add the subtrees that end with the last microbatch onto its gradient."""
        if parameter.grad is not None:
            for subtree in reversed(self.pending[self.num_before :]):
                parameter.grad += subtree[parameter]

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
            self.add_pending(parameter)
        self.in_flight.append(Exchange(self, bucket))
        num_to_end = len(self.in_flight) - (0 if bucket.is_last() else 1)
        ending, self.in_flight = self.in_flight[:num_to_end], self.in_flight[num_to_end:]
        future = self.in_flight[-1].future if self.in_flight else ending[-1].future
        for exchange in ending:
            exchange.end()
        return future

    def memory_for(self, bucket: dist.GradBucket, use: str, size: int) -> Tensor:  # type: ignore[name-defined]
        """Return memory for `size` numbers of a bucket's exchange.

        It grows if needed: DDP may cut other buckets after the first step.
        """
        held = self.memory.get((bucket.index(), use))
        if held is None or len(held) < size:
            held = self.memory[bucket.index(), use] = bucket.buffer().new_empty(size)
        return held[:size]


class Exchange:
    """The running sum of one bucket over the subtrees of all ranks."""

    def __init__(self, gradients: TreeGradients, bucket: dist.GradBucket) -> None:  # type: ignore[name-defined]
        self.bucket, self.gradients = bucket.buffer(), gradients
        counts = gradients.counts
        self.world_size = len(counts)
        # one slice per rank, the last one padded; most buckets need no padding
        self.num_missing = -len(self.bucket) % self.world_size
        self.whole = self.padded()
        slice_size = len(self.whole) // self.world_size
        sent = self.slices_of_subtrees(bucket) if gradients.num_before else self.whole
        received = gradients.memory_for(bucket, "received", slice_size * sum(counts))
        self.received = received.view(-1, slice_size)
        work = dist.all_to_all_single(
            received,
            sent,
            [slice_size * count for count in counts],
            [len(sent) // self.world_size] * self.world_size,
            async_op=True,
        )
        assert work is not None  # this rank is in the group
        self.work, self.sent = work, sent
        is_on_gpu = self.bucket.is_cuda
        self.future: Future[Tensor] = Future(devices=[self.bucket.device] if is_on_gpu else None)

    def padded(self) -> Tensor:
        """Return the bucket, padded to equal slices."""
        return F.pad(self.bucket, (0, self.num_missing)) if self.num_missing else self.bucket

    def slices_of_subtrees(self, bucket: dist.GradBucket) -> Tensor:  # type: ignore[name-defined]
        """Return, for each rank, its slice of each of this rank's subtrees.

        The last subtree is in the bucket. The others are copied into the bucket, one after the
        other: only its parameters' .grad show where in it a gradient lies.
        """
        num_before = self.gradients.num_before
        size = len(self.whole) * (num_before + 1)
        sent = self.gradients.memory_for(bucket, "sent", size)
        slices = sent.view(self.world_size, num_before + 1, -1)
        slices[:, -1] = self.whole.view(self.world_size, -1)
        for number, subtree in enumerate(self.gradients.pending[:num_before]):
            for parameter in bucket.parameters():
                assert parameter.grad is not None
                parameter.grad.copy_(subtree[parameter])
            slices[:, number] = self.padded().view(self.world_size, -1)
        return sent

    def end(self) -> None:
        """Add up this rank's slice of the bucket, and fetch the other ranks' slices."""
        self.work.wait()
        summed = add_along_tree(self.received.unbind(), self.gradients.starts)
        dist.all_gather(list(self.whole.view(self.world_size, -1)), summed)
        if self.num_missing:
            self.bucket.copy_(self.whole[: len(self.bucket)])
        self.future.set_result(self.bucket)
