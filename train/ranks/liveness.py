"""Name the rank that is missing when a collective fails; torch says only that some rank is.

A thread of each rank counts up a number in the store that the ranks used for their rendezvous. The
number of a rank that was killed, stopped or lost with its node does not change any more. A rank
that leaves in order notes that in the store: its number does not change either, but it is not
missing.
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
# In errors of gloo and NCCL when a peer has ended or does not answer in time
FAILURES = ("gloo", "Connection closed by peer", "Timed out", "NCCL", "Connection reset by peer")


class Liveness:
    """This rank's heartbeat, and a check of the other ranks' heartbeats."""

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
        """`silent_s`: a rank that does not beat for so long is missing; several times `beat_s`.
        `answer_s`: how long the store may take to answer."""
        # a connection of its own, so that the thread does not wait for other answers
        self.store = store.clone()
        self.rank, self.world_size = rank, world_size
        self.beat_s, self.silent_s, self.answer_s = beat_s, silent_s, answer_s
        self.ended = threading.Event()
        self.is_in_order = False  # whether this rank leaves without being missed
        self.store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Beat in this context. If a collective fails, raise UserError that names missing ranks."""
        thread = threading.Thread(target=self.beat, daemon=True)
        thread.start()
        try:
            yield
            self.is_in_order = True
        except RuntimeError as error:
            if not is_failed_collective(error):
                raise
            self.is_in_order = True  # the others shall name the missing rank, not this one
            raise UserError(f"{self.missing_ranks()} ({first_words(error)})") from None
        finally:
            self.ended.set()
            thread.join(self.answer_s)

    def beat(self) -> None:
        """Count up until the end, or until the process that holds the store has ended."""
        with suppress(dist.DistError):
            while not self.ended.wait(self.beat_s):
                self.store.add(f"beat/{self.rank}", 1)
            if self.is_in_order:
                self.store.set(f"left/{self.rank}", "")

    def missing_ranks(self) -> str:
        """Say in a sentence which ranks do not beat."""
        found: list[tuple[list[str], list[str]]] = []
        # in a thread, which may wait for ever: the store of a stopped process never answers
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
        """Return the ranks that do not beat, with host and process: (lost, left in order)."""
        lost: list[str] = []
        left: list[str] = []
        try:
            before = self.beats()
            time.sleep(self.silent_s)
            for rank, (count, then) in enumerate(zip(self.beats(), before, strict=True)):
                if count == then and rank != self.rank:
                    has_left = self.store.check([f"left/{rank}"])
                    (left if has_left else lost).append(f"rank {rank} ({self.process_of(rank)})")
        except dist.DistError:
            return [MEETING_POINT], []
        return lost, left

    def process_of(self, rank: int) -> str:
        """Return host and process of a rank."""
        key = f"who/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else "which never came"

    def beats(self) -> list[int]:
        """Return the count of every rank.

        Once all have come, in two requests: a thousand ranks that each asked a thousand times would
        not be answered in time.
        """
        keys = [f"beat/{rank}" for rank in range(self.world_size)]
        if self.store.check(keys):
            return [int(count) for count in self.store.multi_get(keys)]
        return [self.store.add(key, 0) for key in keys]


def is_failed_collective(error: RuntimeError) -> bool:
    """Whether an error comes from talking to other ranks."""
    return isinstance(error, dist.DistError) or any(said in str(error) for said in FAILURES)


def first_words(error: RuntimeError) -> str:
    """Return the first sentence of an error, without the line of torch's source.

    NCCL's first sentence names a kind of error only; the line after "Last error:" says what
    happened.
    """
    said, _, happened = str(error).strip().partition("Last error:")
    first, *_ = [*said.splitlines(), ""]
    sentence = first.rpartition("] ")[2].partition(". ")[0]
    return ": ".join([sentence, *happened.strip().splitlines()[:1]])
