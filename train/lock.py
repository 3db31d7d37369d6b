"""One run folder, one run: a second process that is started on it is refused.

RUN/lock is a lease of filelock's, good on file systems that several nodes share: the one who holds
it touches it every few seconds. What a killed process of this machine left is taken over at once,
what one of another node left once it was not touched for LEASE_S.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from command_line import UserError
from train.distributed import Ranks

LOCK = "lock"
LEASE_S = 30.0


class RunLock:
    """Rank 0's claim to a run folder; on other ranks it is nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lease = SoftFileLease(folder / LOCK, lease_duration=LEASE_S)

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken the run over: this one must have stood still."""
        return self.lease.compromise is not None

    def acquire(self) -> None:
        """Claim the folder. Raises UserError where a process that lives has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lease.acquire(timeout=0)
        except Timeout:
            owner = self.owner()
            if lives_here(owner):
                raise self.in_use(owner) from None
            self.wait_whether_it_lives(owner)

    def wait_whether_it_lives(self, owner: dict[str, str]) -> None:
        """A process of another node can only be watched: its lease runs out if it is dead."""
        print(
            f"run={self.folder}: process {owner.get('pid')} on {owner.get('host')} has it; waiting"
            f" {LEASE_S:.0f} s to see whether that lives",
            file=sys.stderr,
        )
        try:
            self.lease.acquire(timeout=1.5 * LEASE_S)
        except Timeout:
            raise self.in_use(self.owner()) from None

    def in_use(self, owner: dict[str, str]) -> UserError:
        """The refusal."""
        return UserError(
            f"run={self.folder}: process {owner.get('pid')} on {owner.get('host')} is training it;"
            " wait for its end or stop it, or name another run="
        )

    def owner(self) -> dict[str, str]:
        """What the lock says of the process that has it: pid, host."""
        try:
            lines = (self.folder / LOCK).read_text().splitlines()
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)


def lives_here(owner: dict[str, str]) -> bool:
    """Whether a lock's owner is a process of this machine (a dead one's lock is taken over)."""
    host, pid = owner.get("host", ""), owner.get("pid", "0")
    # filelock appends the namespace of processes, where there is one
    return host.split("?")[0] == socket.gethostname() and Path(f"/proc/{pid}").exists()


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[RunLock]:
    """Hold a run folder. Collective; raises UserError on every rank where it is taken."""
    lock = RunLock(folder)
    ranks.first_does(lock.acquire)
    try:
        yield lock
    finally:
        lock.lease.release()
