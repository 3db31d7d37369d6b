"""One folder, one process: a lock keeps a second one out.

RUN/lock is that of a run that is trained, OUT/.eosin/lock that of a folder which results are
written into.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.lease import Lease
from common.ownership import PRIVATE, begin, leave
from train.ranks.distributed import Ranks

LOCK = "lock"


class RunLock(Lease):
    """Rank 0's claim to a run folder; on other ranks it is nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "run", name=LOCK, doing="training it")


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[RunLock]:
    """Hold a run folder. Collective; raises UserError on every rank where it is taken."""
    lock = RunLock(folder)
    ranks.first_does(lock.acquire)
    try:
        yield lock
    finally:
        lock.release()


def part_for(source: Path) -> str:
    """The part of a folder of results that is made of a file or folder."""
    return f"-{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]}"


@contextmanager
def output_locked(
    out: Path, kind: str, doing: str, ranks: Ranks, part: str = ""
) -> Iterator[Callable[[], None]]:
    """Hold a folder of results, or a `part` of it that others do not touch, and make it and its
    private folder of a kind.

    Gives what rank 0 calls before it changes a file: it raises UserError where the claim was lost.
    Collective; raises UserError on every rank where another process holds the folder.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = Lease(out, "out", name=f"{PRIVATE}/{LOCK}{part}", doing=doing)

    def acquire() -> None:
        begin(out, kind)
        lock.acquire()

    ranks.first_does(acquire)
    try:
        yield lock.check
    finally:
        lock.release()
        if ranks.is_first:
            leave(out, kind)
            with suppress(OSError):  # not empty
                for folder in new:
                    folder.rmdir()
