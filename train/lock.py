"""One run folder, one run: RUN/lock keeps a second process out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lease import Lease
from train.distributed import Ranks

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
