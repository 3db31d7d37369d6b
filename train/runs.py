"""The folder runs/: a new run for each training, and the newest for what comes after."""

import time
from pathlib import Path

from command_line import UsageError

RUNS = Path("runs")
CONFIG = "config.yaml"  # what makes a folder a run


def free_name(parent: Path = RUNS) -> Path:
    """Return a folder that is not there yet, named by date and time."""
    now, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while (folder := parent / (now if number == 1 else f"{now}-{number}")).exists():
        number += 1
    return folder


def new_run(parent: Path = RUNS) -> Path:
    """Make a folder for a run, which is nobody else's, however many start at once."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = free_name(parent)
        try:
            folder.mkdir()
        except FileExistsError:  # another was made meanwhile
            continue
        return folder


def newest_run(parent: Path = RUNS, mark: str = CONFIG) -> Path:
    """Return the run that was begun, or went on, last. Raises UsageError where there is none.

    `mark` is the file that makes a folder a run.
    """
    marks = [path for path in parent.glob(f"*/{mark}") if path.is_file()]
    if not marks:
        raise UsageError(
            f"no run in {parent}/; name one with run=..., or train one: python -m train"
        )
    newest = max(marks, key=lambda path: path.stat().st_mtime_ns)
    return parent / newest.relative_to(parent).parts[0]


def named_or_newest(run: str) -> Path:
    """Return the run that is named, or the newest; says which. Raises UsageError."""
    if run:
        return Path(run)
    newest = newest_run()
    print(f"run={newest}, the newest")
    return newest
