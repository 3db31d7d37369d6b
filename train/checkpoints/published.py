"""Find a run's checkpoints: by step, by the pointers `latest` and `best`, or the newest intact."""

import os
import re
from contextlib import suppress
from pathlib import Path

from common.command_line import UsageError
from common.files import sync, write_atomically
from common.schema import read_small
from train.checkpoints.checkpoint_files import CheckpointError, verify

STEP = re.compile(r"step_[0-9]{8,18}")
MOST_POINTER_BYTES = 100
MOST_DIGITS = 18  # of a step


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies (or None), and the reason for each newer one.

    Raises CheckpointError if there are checkpoints but none is intact: starting anew without a word
    would throw the run away.
    """
    passed_over: list[str] = []
    for path in reversed(published_checkpoints(folder)):
        problem = verify(path)
        if not problem:
            return path, passed_over
        passed_over.append(f"{path.name}: {problem}")
    if passed_over:
        raise CheckpointError(
            f"{folder}: no intact checkpoint ({'; '.join(passed_over)}). Restore one, or name"
            " another run= to start anew",
            can_heal=False,
        )
    return None, []


def find_checkpoint(folder: Path, name: str) -> Path:
    """Return the folder of 'latest', 'best', a step (120) or a name (step_00000120), unverified.

    Raises UsageError if there is none.
    """
    if name in ("latest", "best"):
        target = read_pointer(folder, name)
    else:
        is_step = name.isdecimal() and len(name) <= MOST_DIGITS
        target = folder / (step_name(int(name)) if is_step else name)
    if target is None or not (STEP.fullmatch(target.name) and os.path.isdir(target)):
        if not (steps := published_checkpoints(folder)):
            raise UsageError(f"checkpoint={name}: no checkpoint was saved yet in {folder}")
        known = ", ".join(["latest", "best", *(path.name for path in steps)])
        raise UsageError(f"checkpoint={name}: not in {folder}; there are: {known}")
    return target


def published_checkpoints(folder: Path) -> list[Path]:
    """List the folders that are named as checkpoints, oldest first, unverified."""
    found = (path for path in folder.glob("step_*") if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of)


def step_name(step: int) -> str:
    """Name the folder of a step's checkpoint."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def set_pointer(folder: Path, pointer: str, target: Path) -> None:
    """Make 'latest' or 'best' name a published step."""
    if read_pointer(folder, pointer) != target:
        write_atomically(folder / pointer, f"{target.name}\n".encode(), is_synced=True)
        sync(folder)


def read_pointer(folder: Path, pointer: str) -> Path | None:
    """Return the folder that 'latest' or 'best' names; None if it names no step."""
    with suppress(OSError, ValueError):  # missing, or not what was written
        name = read_small(folder / pointer, MOST_POINTER_BYTES).decode().strip()
        return folder / name if STEP.fullmatch(name) else None
    return None
