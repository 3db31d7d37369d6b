"""Locks of folders, so that one process (or one group of ranks) writes into each.

RUN/lock            held while a run is trained
OUT/.eosin/lock     held while results are written into a folder
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.lease import Lease
from common.ownership import PRIVATE, make_private, remove_private

if TYPE_CHECKING:  # train.compare needs no torch
    from train.ranks.distributed import Ranks

LOCK = "lock"


class RunLock(Lease):
    """Rank 0's lock of a run folder. Other ranks have one too, but do not acquire it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "run", name=LOCK, doing="training it")


@contextmanager
def locked(folder: Path, ranks: "Ranks") -> Iterator[RunLock]:
    """Lock a run folder, and remove it if it is empty in the end: the run was refused.

    Collective; raises UserError on every rank if another process holds it.
    """
    lock = RunLock(folder)
    ranks.first_does(lock.acquire)
    try:
        yield lock
    finally:
        lock.release()
        if ranks.is_first:
            with suppress(OSError):  # not empty
                folder.rmdir()


def lock_suffix(source: Path) -> str:
    """Return the end of the name of a lock for the results of one input file or folder."""
    return f"-{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]}"


@contextmanager
def output_locked(
    out: Path, kind: str, doing: str, ranks: "Ranks", suffix: str = ""
) -> Iterator[Callable[[], None]]:
    """Lock a folder of results, and make it and its private folder of a kind.

    With a `suffix` (`lock_suffix`), other processes may lock the folder for other inputs. Yields a
    function that rank 0 calls before it changes files: it raises UserError if another process has
    taken over the lock. Collective; raises UserError on every rank if another process holds it.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = Lease(out, "out", name=f"{PRIVATE}/{LOCK}{suffix}", doing=doing)

    def acquire() -> None:
        make_private(out, kind)
        lock.acquire()

    ranks.first_does(acquire)
    try:
        yield lock.check
    finally:
        lock.release()
        if ranks.is_first:
            remove_private(out, kind)
            with suppress(OSError):  # not empty
                for folder in new:
                    folder.rmdir()
