"""SWEEP/study.log: the lines of Optuna's journal, which several nodes append to.

A task may be killed at any instant, also while it holds the lock or writes a line. The lock of a
killed process is taken over after GRACE_S; a line of which only a part was written is cut off
before the next one is appended, which Optuna does not do: it could not read the journal any more.
"""

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from common.command_line import UserError

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileOpenLock

GRACE_S = 30
MOST_CUT_BYTES = 2**20


def load_optuna() -> ModuleType:
    """Import Optuna, which prints warnings only. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "trials of a sweep are drawn by Optuna, which is not installed here:"
            " pip install --editable '.[sweep]'",
            can_heal=False,
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_journal(file: Path) -> "JournalStorage":
    """Open the journal of a study. Raises UserError for a file that is none."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    lock = MendingLock(file, JournalFileOpenLock(str(file), grace_period=GRACE_S))
    try:
        return JournalStorage(JournalFileBackend(str(file), lock_obj=cast(Any, lock)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{file}: damaged, or not the journal of a study ({error}); move it away, or name"
            " another folder with run=",
            can_heal=False,
        ) from None


class MendingLock:
    """Optuna's lock of a journal. Who takes it mends the journal first."""

    def __init__(self, file: Path, lock: "JournalFileOpenLock") -> None:
        self.file, self.lock = file, lock

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.lock.acquire()
        try:
            cut_off_half_line(self.file)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Give the lock back."""
        with suppress(RuntimeError):  # this process was paused, and another one took the lock over
            self.lock.release()


def cut_off_half_line(file: Path) -> None:
    """Cut off what a killed process, or a full disk, has left of a line."""
    with open(file, "r+b") as journal:
        size = journal.seek(0, 2)
        start = max(0, size - MOST_CUT_BYTES)
        journal.seek(start)
        end = journal.read()
        if end and not end.endswith(b"\n"):
            journal.truncate(start + end.rfind(b"\n") + 1)
