"""One run folder, one run: a second process that is started on it is refused.

RUN/lock is a lease of filelock's, good on file systems that several nodes share: who holds it
touches it every BEAT_S. What a killed process of this machine left is taken over at once, what one
of another node left once nobody has touched it for LEASE_S.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from command_line import UserError
from train.distributed import Ranks

LOCK = "lock"
LEASE_S, BEAT_S = 30.0, 3.0


class RunLock:
    """Rank 0's claim to a run folder; on other ranks it is nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / LOCK
        self.lease = SoftFileLease(self.file, lease_duration=LEASE_S, heartbeat_interval=BEAT_S)
        self.token: str | None = None
        """What names our claim; None before there is one."""

    @property
    def is_lost(self) -> bool:
        """Whether the claim is known to be lost: this process must have stood still."""
        return self.lease.compromise is not None

    def check(self) -> None:
        """Look whether the claim still is ours; raises UserError where it is another's."""
        if self.token and self.owner().get("token") != self.token:
            raise lost_to_another(self.folder)

    def acquire(self) -> None:
        """Claim the folder. Raises UserError where a process that lives has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lease.acquire(timeout=0)
        except Timeout:
            self.outlive()
        self.token = self.lease.token

    def outlive(self) -> None:
        """Watch the holder's lock: one that lives touches it soon, a dead one's runs out."""
        owner, touched = self.owner(), self.touched()
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        told_s = time.monotonic() + 2 * BEAT_S

        def lives() -> bool:
            nonlocal told_s
            if time.monotonic() > told_s:
                print(f"run={self.folder}: waiting whether {who} lives", file=sys.stderr)
                told_s = float("inf")
            return self.touched() not in (touched, None)

        try:
            self.lease.acquire(timeout=2 * LEASE_S, cancel_check=lives)
        except Timeout:
            raise UserError(
                f"run={self.folder}: {who} is training it; wait for its end or stop it, or name"
                " another run="
            ) from None

    def touched(self) -> int | None:
        """When the lock was last touched, by its file system's clock in ns; None without a lock."""
        try:
            return self.file.stat().st_mtime_ns
        except OSError:
            return None

    def owner(self) -> dict[str, str]:
        """What the lock says of the process that has it: pid, host, token."""
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)


def lost_to_another(folder: Path) -> UserError:
    """The error of a run folder that is no longer ours."""
    return UserError(
        f"run={folder}: this process stood still for so long that another has taken the run over;"
        " this one ends, the last checkpoint is whole"
    )


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[RunLock]:
    """Hold a run folder. Collective; raises UserError on every rank where it is taken."""
    lock = RunLock(folder)
    ranks.first_does(lock.acquire)
    try:
        yield lock
    finally:
        lock.lease.release()
