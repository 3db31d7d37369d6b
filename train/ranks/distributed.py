"""The ranks of a run: which one this process is, and the few collectives that training needs.

Rank, world size and rendezvous come from the environment that torchrun sets (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Without them there is one rank and no process group.
"""

import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from common.command_line import UsageError, UserError
from common.malloc import keep_freed_memory
from common.stop_request import stop_with_parent
from train.ranks.liveness import Liveness
from train.ranks.slurm_job import refuse_lone_tasks

Object = TypeVar("Object")


@dataclass(frozen=True)
class Ranks:
    """This process, its device, and the collectives that it calls with the other ranks.

    NCCL sums tensors on a GPU (`sum`, DDP, `train.ranks.gradients`). Everything else is on the CPU
    and goes through gloo: `max`, `gather`, `first_does`, `all_do`, and the groups of `beside`.
    """

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """The process group that collectives go through; None for the default one."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over the ranks, in place. Collective."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)

    def max(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each value over the ranks, the same list on every rank.
        Collective."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values)  # on the CPU, through gloo: need not wait for a GPU
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return [int(value) for value in tensor]

    def gather(self, value: Object) -> list[Object]:
        """Return every rank's value, by rank, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Object | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def first_does(self, action: Callable[[], Object]) -> Object:
        """Call `action` on rank 0 only, and return its result on every rank. Collective.

        If it raises a UserError or an OSError, that is raised on every rank.
        """
        outcome = attempt(action) if self.is_first else None
        if self.world_size > 1:
            outcomes = [outcome]
            device = torch.device("cpu")
            dist.broadcast_object_list(outcomes, src=0, group=self.group, device=device)
            (outcome,) = outcomes
        assert outcome is not None
        return outcome.result()

    def all_do(self, action: Callable[[], Object]) -> list[Object]:
        """Call `action` on every rank, and return all results on every rank. Collective.

        If it raises a UserError or an OSError on some rank, the first one is raised on every rank.
        """
        return [outcome.result() for outcome in self.gather(attempt(action))]

    def beside(self, timeout_s: float) -> "Ranks":
        """Return the same ranks with another process group, for another thread. Collective."""
        if self.world_size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup)  # this rank is in it
        return replace(self, group=group)

    def items_of_rank(self, items: Sequence[Object]) -> Sequence[Object]:
        """Return every world_size-th item, from this rank's on: each item is one rank's."""
        return items[self.rank :: self.world_size]


@dataclass(frozen=True)
class Outcome(Generic[Object]):
    """The result or the error of an action, to send to other ranks."""

    value: Object | None
    error: UserError | OSError | None

    def result(self) -> Object:
        """Return the value, or raise the error."""
        if isinstance(self.error, UserError):
            self.error.is_shared = True
        if self.error:
            raise self.error
        return self.value  # type: ignore[return-value]


def attempt(action: Callable[[], Object]) -> Outcome[Object]:
    """Call an action, and return its result or its error. Other errors are bugs: raised at once."""
    try:
        return Outcome(action(), None)
    except (UserError, OSError) as error:
        return Outcome(None, error)


@contextmanager
def start_ranks(device: str, timeout_s: float = 1800.0) -> Iterator[Ranks]:
    """Join the ranks of this run, and leave them at the end. `device` is auto, cpu or cuda.

    If a rank does not reach a collective within `timeout_s`, the others raise a UserError that
    names it. Raises UsageError on every rank if two ranks have the same GPU.
    """
    refuse_lone_tasks()
    keep_freed_memory()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun, which may be killed
        stop_with_parent()
    open_as_many_files_as_allowed()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Ranks(0, 1, chosen)
        return
    timeout = timedelta(seconds=timeout_s)
    store = meet(timeout)
    liveness = Liveness(store, rank, world_size)
    # gloo besides NCCL: flags and small objects need not touch the GPU
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    named: dict[str, Any] = {"store": store, "rank": rank, "world_size": world_size}
    with liveness.watch():
        dist.init_process_group(backend, timeout=timeout, **named)
        ranks = Ranks(rank, world_size, chosen)
        check_gpus(ranks)
        yield ranks
        # not after an error: NCCL would wait here for a rank that has ended
        dist.destroy_process_group()


def meet(timeout: timedelta) -> Store:
    """Return the store through which the ranks find each other. Raises UserError if its port is
    taken."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']} of {socket.gethostname()}, where the ranks meet, is"
            " taken by another program; a job takes another port at its next start, torchrun with"
            " --master-port"
        ) from None
    return store


def open_as_many_files_as_allowed() -> None:
    """Raise the soft limit of open files, mostly 1024, to the hard one.

    Each process group of gloo has a connection to every other rank.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows less than its hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def choose_device(device: str, local_rank: int) -> torch.device:
    """Choose the device of a rank; cuda:0 if a launcher lets each rank see one GPU only."""
    num_gpus = torch.cuda.device_count()
    if device == "cuda" and num_gpus == 0:
        raise UsageError(
            "device=cuda: torch sees no GPU here; use device=cpu or device=auto",
            can_heal=True,  # on another node
        )
    if device == "cpu" or num_gpus == 0:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % num_gpus)


def check_gpus(ranks: Ranks) -> None:
    """Raise UsageError if ranks have the same GPU, which NCCL cannot serve. Collective."""
    gpus = [gpu for gpu in ranks.gather(gpu_of(ranks.device)) if gpu]
    for (host, uuid), num_ranks in Counter(gpus).items():
        if num_ranks > 1:
            num_gpus = len({gpu for gpu in gpus if gpu[0] == host})
            raise UsageError(
                f"{num_ranks} ranks share one GPU ({host}, GPU-{uuid}), and NCCL takes one rank"
                f" per GPU: start {num_gpus} on {host} (--nproc-per-node), or give device=cpu",
                can_heal=True,  # a GPU of one node may be dead
            )


def gpu_of(device: torch.device) -> tuple[str, str] | None:
    """Return (host, UUID) of a GPU; None for the CPU.

    A GPU's number does not tell it apart: if a launcher lets each rank see one GPU only, all ranks
    have cuda:0.
    """
    if device.type != "cuda":
        return None
    return socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)
