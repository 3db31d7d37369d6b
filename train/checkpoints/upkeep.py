"""Keep RUN/checkpoints in order: remove old checkpoints and what killed saves left.

Only files that a save wrote are removed.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.files import clear
from train.checkpoints.checkpoint_files import COMPLETE, STATE, unchanged_files
from train.checkpoints.published import STEP, published_checkpoints, read_pointer, step_of

UNPUBLISHED = re.compile(rf"\.({STEP.pattern})\.(tmp|replaced)")
SAVED_FILE = re.compile(rf"__\d+_\d+\.distcp|\.metadata(\.tmp)?|{re.escape(STATE)}|{COMPLETE}")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep."""

    newest: int
    """Number of newest checkpoints to keep. The best one is kept besides."""
    every_steps: int = 0
    """Keep checkpoints of multiples of this step for good; 0 for none."""

    def apply(self, folder: Path) -> None:
        """Remove the other checkpoints."""
        best = read_pointer(folder, "best")
        for path in published_checkpoints(folder)[: -self.newest]:
            is_for_good = self.every_steps and step_of(path) % self.every_steps == 0
            if path != best and not is_for_good:
                remove_checkpoint(path)


def clean_up_after_kills(folder: Path) -> None:
    """Remove what killed saves left, and rename back a checkpoint that was not replaced yet."""
    for path in sorted(folder.glob(".step_*")):
        match = UNPUBLISHED.fullmatch(path.name)
        if match and match[2] == "tmp":
            remove_unfinished(path)
        elif match and (folder / match[1]).exists():
            remove_replaced(path, folder / match[1])
        elif match:
            path.rename(folder / match[1])


def rename_newer_damaged(intact: Path) -> None:
    """Rename checkpoints after the newest intact one, which are damaged, to damaged_step_N.

    Else they would count among the newest to keep, and the next saves would be removed first.
    """
    for damaged in published_checkpoints(intact.parent):
        if damaged.name > intact.name:
            renamed = damaged.with_name(f"damaged_{damaged.name}")
            while os.path.lexists(renamed):
                renamed = renamed.with_name(f"{renamed.name}_again")
            damaged.rename(renamed)


def remove_checkpoint(path: Path) -> None:
    """Remove the unchanged files of a checkpoint, COMPLETE last, and its folder if it is empty.

    After a kill in between, `verify` names a missing file, and the next call removes the rest.
    """
    if path.is_symlink():
        return
    for name in unchanged_files(path):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or missing
        path.rmdir()


def remove_replaced(replaced: Path, final: Path) -> None:
    """Remove a replaced checkpoint, and move files that others put into it to its replacement."""
    remove_checkpoint(replaced)
    for path in replaced.iterdir() if replaced.is_dir() else ():
        if not os.path.lexists(final / path.name):
            path.rename(final / path.name)
    with suppress(OSError):  # missing, or not empty
        replaced.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove the files of a save that did not end, and the folder if it is empty."""
    clear(folder, lambda name: bool(SAVED_FILE.fullmatch(name)))
    with suppress(OSError):  # missing, or not empty
        folder.rmdir()
