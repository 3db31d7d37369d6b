"""One folder, one process at a time: a second that would write into it is refused.

FOLDER/NAME is a lease of filelock's, good on file systems that several nodes share: who holds it
touches it every BEAT_S. What a killed process of this machine left is taken over at once, what one
of another node left once nobody has touched it for LEASE_S, and an empty one, left by a process
that was killed before it wrote its name there, after two beats. This module imports nothing of the
project but command_line.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from filelock import LeaseCompromise, SoftFileLease, Timeout

from common.command_line import UserError

LEASE_S, BEAT_S = 30.0, 3.0


class TakenError(UserError):
    """A folder that another process has, and will give back."""


class Claim(NamedTuple):
    """What a lock's file says."""

    touched: int | None
    """When it was last touched, by its file system's clock, in ns; None where there is no lock."""
    owner: dict[str, str]
    """pid, host and token of the process that has it; empty where that may not be read."""
    is_blank: bool = False
    """Whether nothing is written there yet."""


class Lease:
    """A claim to a folder, or to a part of it: `with Lease(...)` holds it."""

    def __init__(self, folder: Path, key: str, *, name: str, doing: str) -> None:
        """`key` is what the command line calls the folder, `name` is the path of the lock in it;
        `doing`: what one who holds it is at."""
        self.folder, self.key, self.name, self.doing = folder, key, name, doing
        self.file = folder / name
        self.is_lost = False
        """Whether the claim is known to be lost: this process must have stood still."""
        self.lease = SoftFileLease(
            self.file,
            lease_duration=LEASE_S,
            heartbeat_interval=BEAT_S,
            on_compromise=self.note_loss,
        )
        self.token: str | None = None
        """What names our claim; None before there is one."""

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def note_loss(self, compromise: LeaseCompromise) -> None:
        """The beat has found the claim lost; it is asked from other threads than its owner's."""
        self.is_lost = True

    def check(self) -> None:
        """Look whether the claim still is ours; raises UserError where it is another's.

        A lock that cannot be read says nothing: on NFS ESTALE and EIO come and go, and who breaks a
        dead lock moves a living one aside for an instant. It is read again until the beat has
        looked too, twice as it does before it calls a claim lost. Where that finds nothing wrong
        the claim stands, and the next check looks again.
        """
        if not self.token:
            return
        until_s = time.monotonic() + 4 * BEAT_S
        while (is_ours := self.names_us()) is None and not self.is_lost:
            if time.monotonic() > until_s:
                return
            time.sleep(BEAT_S / 10)
        if not is_ours:
            raise self.lost_to_another()

    def names_us(self) -> bool | None:
        """Whether the lock names this claim; None where it cannot be read."""
        try:
            return owner_in(self.file.read_text()).get("token") == self.token
        except OSError:
            return None

    def lost_to_another(self) -> UserError:
        """The error of a folder that is no longer ours."""
        return UserError(
            f"{self.key}={self.folder}: this process stood still for so long that another has taken"
            " it over; this one ends, what it had saved is whole"
        )

    def acquire(self) -> None:
        """Claim the folder. Raises TakenError where a process that lives has it, UserError where a
        file that is no lock has the lock's name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_taken_by_another_file():
            raise UserError(
                f"{self.key}={self.folder}: {self.name} is in the way, which is no lock of"
                f" this program; move it away, or name another {self.key}="
            )
        try:
            self.lease.acquire(timeout=0)
        except Timeout:
            self.outlive()
        self.token = self.lease.token

    def is_taken_by_another_file(self) -> bool:
        """Whether what has the lock's name was not written as a lock."""
        if self.file.is_symlink() or self.file.is_dir():
            return True
        try:
            content = self.file.read_text()
        except UnicodeDecodeError:
            return True
        except OSError:  # not there, or another's for an instant
            return False
        return bool(content) and "token" not in owner_in(content)

    def release(self) -> None:
        """Give the claim back."""
        self.lease.release()

    def outlive(self) -> None:
        """Watch the holder's lock: one that lives touches it soon, a dead one's runs out.

        filelock leaves a blank one alone for ever, since its old releases wrote nothing there.
        """
        first = seen = self.claim()
        watched_s = time.monotonic() + 2 * BEAT_S
        told_s = watched_s

        def lives() -> bool:
            nonlocal seen, told_s
            if time.monotonic() > told_s:
                print(
                    f"{self.key}={self.folder}: waiting whether {who(seen)} lives", file=sys.stderr
                )
                told_s = float("inf")
            before, seen = seen, self.claim()
            if seen.is_blank and seen == first and time.monotonic() > watched_s:
                self.remove_blank()
            # a lock that changed hands was free in between: its new owner is watched from here
            is_same = seen.owner == before.owner and None not in (before.touched, seen.touched)
            return is_same and seen.touched != before.touched

        try:
            self.lease.acquire(timeout=2 * LEASE_S, cancel_check=lives)
        except Timeout:
            raise TakenError(
                f"{self.key}={self.folder}: {who(seen)} is {self.doing}; wait for its end or stop"
                f" it, or name another {self.key}="
            ) from None

    def remove_blank(self) -> None:
        """Remove a lock with nothing in it; one that was taken at this moment is put back."""
        aside = self.file.with_name(f"{self.file.name}.{os.getpid()}.blank")
        with contextlib.suppress(FileNotFoundError):  # another did it
            self.file.rename(aside)
            if aside.stat().st_size:
                with contextlib.suppress(FileExistsError):
                    self.file.hardlink_to(aside)
            aside.unlink()

    def claim(self) -> Claim:
        """When the lock was last touched, and by whom.

        In this order: the time is never that of a later owner than the one that is named.
        """
        try:
            touched = self.file.stat().st_mtime_ns
        except OSError:
            return Claim(None, {})
        try:
            content = self.file.read_text()
            return Claim(touched, owner_in(content), is_blank=not content)
        except OSError:
            return Claim(touched, {})


def owner_in(content: str) -> dict[str, str]:
    """What a lock says of its owner."""
    return dict(line.split("=", 1) for line in content.splitlines() if "=" in line)


def who(claim: Claim) -> str:
    """The process that has a lock, as a message names it."""
    if not claim.owner:
        return "a process that has not written its name there"
    return f"process {claim.owner.get('pid')} on {claim.owner.get('host')}"
