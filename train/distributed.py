"""The ranks of a run: who we are, and the few collectives that training needs.

Rank, world size and rendezvous come from the environment that torchrun sets (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Without them there is one rank and no process group.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from command_line import UsageError

Object = TypeVar("Object")


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def max(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over the ranks; the same list on every rank."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values)  # on the CPU, through gloo: no GPU need be waited for
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [int(value) for value in tensor]

    def gather(self, value: Object) -> list[Object]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Object | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, value: Object) -> Object:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.max([0])

    def share(self, items: Sequence[Object]) -> Sequence[Object]:
        """This rank's part of some items: every world_size-th, none twice."""
        return items[self.rank :: self.world_size]


@contextmanager
def start_ranks(device: str) -> Iterator[Ranks]:
    """Join the ranks of this run, and leave them at the end. `device` is auto, cpu or cuda."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Ranks(0, 1, chosen)
        return
    # gloo also beside NCCL: flags and small objects need not touch the GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device of a rank. Where a launcher leaves each rank one visible GPU, that is cuda:0."""
    num_gpus = torch.cuda.device_count()
    if device == "cuda" and num_gpus == 0:
        raise UsageError("device=cuda: torch sees no GPU here; use device=cpu or device=auto")
    if device == "cpu" or num_gpus == 0:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % num_gpus)
