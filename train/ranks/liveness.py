"""Which rank has fallen silent: a collective that fails says that somebody is missing, not who.

A thread of each rank counts up a number in the store through which the ranks met. The number of a
rank that was killed, stopped or lost with its node stands still. A rank that leaves in order says
so there: it falls silent too, and is not missing.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from common.command_line import UserError

MEETING_POINT = "the process that the ranks met at (rank 0, or torchrun)"
# What gloo and NCCL say when a peer is gone or does not answer in time
FAILURES = ("gloo", "Connection closed by peer", "Timed out", "NCCL", "Connection reset by peer")


class Liveness:
    """This rank's heartbeat, and a look at the others'."""

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        beat_s: float = 0.5,
        silent_s: float = 3.0,
        answer_s: float = 5.0,
    ) -> None:
        """`silent_s`: how long a rank does not beat that is missing, several of `beat_s`;
        `answer_s`: how long the store may take to answer."""
        # a connection of our own, so that the thread waits for nobody else's answer
        self.store = store.clone()
        self.rank, self.world_size = rank, world_size
        self.beat_s, self.silent_s, self.answer_s = beat_s, silent_s, answer_s
        self.ended = threading.Event()
        self.in_order = False  # whether it ended so that nobody need miss this rank
        self.store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Beat while this lasts; a collective that fails becomes a UserError with the names."""
        thread = threading.Thread(target=self.beat, daemon=True)
        thread.start()
        try:
            yield
            self.in_order = True
        except RuntimeError as error:
            if not is_failed_collective(error):
                raise
            self.in_order = True  # the one that was lost is to be named, not this
            raise UserError(f"{self.who_is_silent()} ({first_words(error)})") from None
        finally:
            self.ended.set()
            thread.join(self.answer_s)

    def beat(self) -> None:
        """Count up until the end, or until the store is gone (who holds it may leave first)."""
        with suppress(dist.DistError):
            while not self.ended.wait(self.beat_s):
                self.store.add(f"beat/{self.rank}", 1)
            if self.in_order:
                self.store.set(f"left/{self.rank}", "")

    def who_is_silent(self) -> str:
        """The ranks that do not beat, in a sentence."""
        found: list[tuple[list[str], list[str]]] = []
        # in a thread, which may wait for ever: the store of a process that is stopped never answers
        asking = threading.Thread(target=lambda: found.append(self.lost_and_left()), daemon=True)
        asking.start()
        asking.join(self.silent_s + self.answer_s)
        lost, left = found[0] if found else ([MEETING_POINT], [])
        if lost:
            ended = ", ".join(lost)
            return f"no sign of life from {ended}: killed, stopped, or ended by an error of its own"
        if left:
            return f"the ranks have lost each other: {', '.join(left)} left before this one"
        return "the ranks have lost each other, though all are alive"

    def lost_and_left(self) -> tuple[list[str], list[str]]:
        """The ranks that do not beat, with host and process: those lost, and those that said that
        they leave."""
        lost: list[str] = []
        left: list[str] = []
        try:
            before = self.beats()
            time.sleep(self.silent_s)
            for rank, (count, then) in enumerate(zip(self.beats(), before, strict=True)):
                if count == then and rank != self.rank:
                    has_left = self.store.check([f"left/{rank}"])
                    (left if has_left else lost).append(f"rank {rank} ({self.who(rank)})")
        except dist.DistError:
            return [MEETING_POINT], []
        return lost, left

    def who(self, rank: int) -> str:
        """Host and process of a rank."""
        key = f"who/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else "which never came"

    def beats(self) -> list[int]:
        """Every rank's count."""
        return [self.store.add(f"beat/{rank}", 0) for rank in range(self.world_size)]


def is_failed_collective(error: RuntimeError) -> bool:
    """Whether an error comes from talking to other ranks."""
    return isinstance(error, dist.DistError) or any(said in str(error) for said in FAILURES)


def first_words(error: RuntimeError) -> str:
    """The first sentence of an error, without the place in torch's source.

    NCCL's is of a kind of error only; what happened stands in the line after "Last error:".
    """
    said, _, happened = str(error).strip().partition("Last error:")
    first, *_ = [*said.splitlines(), ""]
    sentence = first.rpartition("] ")[2].partition(". ")[0]
    return ": ".join([sentence, *happened.strip().splitlines()[:1]])
