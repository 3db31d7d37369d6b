"""SWEEP/study.log: the lines of Optuna's journal, which several nodes append to.

A task may be killed at any instant, also while it holds the lock or writes a line. The lock of a
killed process is taken over after GRACE_S; a line of which only a part was written is cut off
before the next one is appended, which Optuna does not do: it could not read the journal any more.
"""

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from common.command_line import UserError

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileOpenLock

GRACE_S = 30
MOST_CUT_BYTES = 2**20


def check_optuna() -> None:
    """Raise UserError if Optuna is not installed. Does not import it, which takes long."""
    if sys.modules.get("optuna") or ("optuna" not in sys.modules and find_spec("optuna")):
        return
    raise UserError(
        "trials of a sweep are drawn by Optuna, which is not installed here:"
        " pip install --editable '.[sweep]'",
        can_heal=False,
    )


def load_optuna() -> ModuleType:
    """Import Optuna, which prints warnings only. Raises UserError if it is not installed."""
    check_optuna()
    import optuna

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
