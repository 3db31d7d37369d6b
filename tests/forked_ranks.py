"""Gloo ranks that start in a moment, with the environment that torchrun would give them."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.fork_server import Server

TIMEOUT_S = 60.0  # what hangs is a failure
GRACE_S = 1.0  # between SIGTERM and SIGKILL for the ranks that outlive another; torchrun gives 30 s


class Lost(Exception):  # noqa: N818  (a verdict)
    """Ranks that did not behave as they promise."""


@functools.cache
def server() -> Server:
    """The one server of a session."""
    return Server()


class ForkedRanks:
    """The ranks of one start of a command, each `tests.faults.rank.run` in a process of its own.

    `arguments` are the command line. Each rank's own values for `rank.run` come from `given`.
    """

    def __init__(
        self,
        command: str,
        arguments: Sequence[str],
        world_size: int,
        log: Path,
        given: Callable[[int], Sequence[Any]] = lambda rank: (),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.world_size, self.log, self.timeout_s = world_size, log, timeout_s
        self.log.write_text("")
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pids = [
            server().start(
                "tests.faults.rank:run",
                command,
                list(arguments),
                self.environment(rank),
                str(log),
                *given(rank),
            )
            for rank in range(world_size)
        ]

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun sets for a rank."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def codes(self) -> list[int | None]:
        """A rank's exit code; None while it runs."""
        return [server().exit_code(pid) for pid in self.pids]

    @property
    def is_alive(self) -> bool:
        """Whether a rank still runs."""
        return None in self.codes

    def send(self, rank: int, signum: int) -> None:
        """Send a signal to a rank, if it still runs."""
        if self.codes[rank] is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], signum)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or all ranks have ended."""
        deadline = time.monotonic() + self.timeout_s
        while self.is_alive and not condition():
            self.check(deadline)
            time.sleep(0.002)

    def end(self, patience_s: float = 0.0) -> list[int]:
        """Wait for the end of all ranks; returns their exit codes.

        When one has failed, the others have `patience_s` to end by themselves before they are
        ended, as torchrun ends them.
        """
        deadline = time.monotonic() + self.timeout_s
        while not any(codes := self.codes) and None in codes:
            self.check(deadline)
            time.sleep(0.002)
        for signum, seconds in ((0, patience_s), (signal.SIGTERM, GRACE_S), (signal.SIGKILL, 20)):
            for rank in range(self.world_size if signum else 0):
                self.send(rank, signum)
            until = time.monotonic() + seconds
            while self.is_alive and time.monotonic() < until:
                time.sleep(0.002)
        return [code or 0 for code in self.codes]

    def check(self, deadline: float) -> None:
        """Give up ranks that hang."""
        if time.monotonic() > deadline:
            for rank in range(self.world_size):
                self.send(rank, signal.SIGKILL)
            raise Lost(f"hung for {self.timeout_s:.0f} s:\n{self.output}")

    def finish(self) -> str:
        """Wait for the end of ranks that nothing disturbs; returns what they printed."""
        codes = self.end()
        if any(codes):
            raise Lost(f"undisturbed, it ended with {codes}:\n{self.output}")
        return self.output

    @property
    def output(self) -> str:
        """What the ranks have printed."""
        return self.log.read_text()
