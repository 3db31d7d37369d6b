"""Let one process at a time write into a folder; refuse a second one.

FOLDER/NAME is a filelock lease, which works on file systems that several nodes share: its owner
touches it every BEAT_S. The lock of a killed process is taken over at once on the same machine,
after LEASE_S without a touch from another node, and after two beats if it is empty (its owner was
killed before it wrote its name). This module imports only command_line from the project.
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
    """Another process uses the folder, and will give it back."""


class Claim(NamedTuple):
    """The content of a lock file."""

    touched: int | None
    """When it was last touched, by its file system's clock, in ns; None without a lock."""
    owner: dict[str, str]
    """pid, host and token of the process that holds it; empty if they cannot be read."""
    is_blank: bool = False
    """Whether the file is empty."""


class Lease:
    """The right to write into a folder, or to some of its files: `with Lease(...)` holds it."""

    def __init__(self, folder: Path, key: str, *, name: str, doing: str) -> None:
        """`key`: what the command line calls the folder. `name`: the path of the lock in it.
        `doing`: what its owner does, for messages."""
        self.folder, self.key, self.name, self.doing = folder, key, name, doing
        self.file = folder / name
        self.is_lost = False
        """Whether the lease is known to be lost: this process must have been paused."""
        self.lease = SoftFileLease(
            self.file,
            lease_duration=LEASE_S,
            heartbeat_interval=BEAT_S,
            on_compromise=self.note_loss,
        )
        self.token: str | None = None
        """The token that names us as owner; None before we hold the lease."""

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
        """Note that the lease is lost. The heartbeat calls this from a thread of its own."""
        self.is_lost = True

    def check(self) -> None:
        """Raise UserError if another process has taken the lease over.

        An unreadable lock proves nothing: on NFS, ESTALE and EIO come and go, and a process that
        breaks a dead lock moves a live one aside for an instant. So read it again until the
        heartbeat has looked twice, as it does before it calls a lease lost. If it finds nothing
        wrong, the lease counts as ours until the next check.
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
        """Return whether the lock names us as owner; None if it cannot be read."""
        try:
            return owner_in(self.file.read_text()).get("token") == self.token
        except OSError:
            return None

    def lost_to_another(self) -> UserError:
        """Return the error for a folder that another process has taken over."""
        return UserError(
            f"{self.key}={self.folder}: this process was paused for so long that another one took"
            " it over; this one ends, and what it saved is whole"
        )

    def acquire(self) -> None:
        """Take the lease. Raises TakenError if a live process holds it, UserError if a file that is
        not a lock has the lock's name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_taken_by_another_file():
            raise UserError(
                f"{self.key}={self.folder}: {self.name} is in the way and is not a lock of"
                f" this program; move it away, or name another {self.key}=",
                can_heal=False,
            )
        try:
            self.lease.acquire(timeout=0)
        except Timeout:
            self.wait_for_dead_owner()
        self.token = self.lease.token

    def is_taken_by_another_file(self) -> bool:
        """Return whether something that is not a lock has the lock's name."""
        if self.file.is_symlink() or self.file.is_dir():
            return True
        try:
            content = self.file.read_text()
        except UnicodeDecodeError:
            return True
        except OSError:  # missing, or moved aside for an instant
            return False
        return bool(content) and "token" not in owner_in(content)

    def release(self) -> None:
        """Give the lease back."""
        self.lease.release()

    def wait_for_dead_owner(self) -> None:
        """Take the lease once its owner turns out dead. Raises TakenError if the owner is alive.

        A live owner touches its lock soon; a dead one's lease runs out. filelock itself never
        takes a blank lock, since its old releases wrote nothing into their locks.
        """
        first = seen = self.claim()
        blank_until_s = print_at_s = time.monotonic() + 2 * BEAT_S

        def is_alive() -> bool:
            nonlocal seen, print_at_s
            if time.monotonic() > print_at_s:
                waiting = f"waiting to see whether {owner_text(seen)} is alive"
                print(f"{self.key}={self.folder}: {waiting}", file=sys.stderr)
                print_at_s = float("inf")
            before, seen = seen, self.claim()
            if seen.is_blank and seen == first and time.monotonic() > blank_until_s:
                self.remove_blank()
            # a lock with a new owner was free in between: watch the new owner from now on
            is_same = seen.owner == before.owner and None not in (before.touched, seen.touched)
            return is_same and seen.touched != before.touched

        try:
            self.lease.acquire(timeout=2 * LEASE_S, cancel_check=is_alive)
        except Timeout:
            raise TakenError(
                f"{self.key}={self.folder}: {owner_text(seen)} is {self.doing}; wait for its end or"
                f" stop it, or name another {self.key}="
            ) from None

    def remove_blank(self) -> None:
        """Remove an empty lock; put it back if a process took it at this moment."""
        aside = self.file.with_name(f"{self.file.name}.{os.getpid()}.blank")
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            self.file.rename(aside)
            if aside.stat().st_size:
                with contextlib.suppress(FileExistsError):
                    self.file.hardlink_to(aside)
            aside.unlink()

    def claim(self) -> Claim:
        """Read when the lock was last touched, then its owner.

        In this order, since the time must not be that of a later owner.
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
    """Read the owner from a lock's content."""
    return dict(line.split("=", 1) for line in content.splitlines() if "=" in line)


def owner_text(claim: Claim) -> str:
    """Name the process that holds a lock, for a message."""
    if not claim.owner:
        return "a process that has not written its name yet"
    return f"process {claim.owner.get('pid')} on {claim.owner.get('host')}"
