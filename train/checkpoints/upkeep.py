"""Which checkpoints stay, and what killed saves left: only files that a save wrote are removed."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.files import clear
from train.checkpoints.checkpoint_files import COMPLETE, STATE, unchanged_files
from train.checkpoints.published import STEP, published_checkpoints, read_pointer, step_of

ASIDE = re.compile(rf"\.({STEP.pattern})\.(tmp|replaced)")
PART = re.compile(rf"__\d+_\d+\.distcp|\.metadata(\.tmp)?|{re.escape(STATE)}|{COMPLETE}")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    newest: int
    """So many of the newest, and the best."""
    every_steps: int = 0
    """And for good those whose step it divides; 0 for none."""

    def apply(self, folder: Path) -> None:
        """Remove the others."""
        best = read_pointer(folder, "best")
        for path in published_checkpoints(folder)[: -self.newest]:
            is_for_good = self.every_steps and step_of(path) % self.every_steps == 0
            if path != best and not is_for_good:
                remove_checkpoint(path)


def clean_up_after_kills(folder: Path) -> None:
    """Remove what killed saves left, and put back one that was killed while being replaced."""
    for path in sorted(folder.glob(".step_*")):
        match = ASIDE.fullmatch(path.name)
        if match and match[2] == "tmp":
            remove_unfinished(path)
        elif match and (folder / match[1]).exists():
            remove_replaced(path, folder / match[1])
        elif match:
            path.rename(folder / match[1])


def rename_newer_damaged(path: Path) -> None:
    """Rename the damaged checkpoints after an intact one: they would count among the newest kept,
    and push out what is saved from now on."""
    for damaged in published_checkpoints(path.parent):
        if damaged.name > path.name:
            aside = damaged.with_name(f"damaged_{damaged.name}")
            while os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}_again")
            damaged.rename(aside)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint: those of its files that are as its COMPLETE says, and that, last.

    Killed in between, it is half a checkpoint, which `verify` tells, and goes the next time.
    """
    if path.is_symlink():
        return
    for name in unchanged_files(path):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or not there
        path.rmdir()


def remove_replaced(replaced: Path, final: Path) -> None:
    """Remove the checkpoint in whose place another came; what else lay in it goes there too."""
    remove_checkpoint(replaced)
    for path in replaced.iterdir() if replaced.is_dir() else ():
        if not os.path.lexists(final / path.name):
            path.rename(final / path.name)
    with suppress(OSError):  # not there, or not empty
        replaced.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a save which did not end has left, and nothing else."""
    clear(folder, lambda name: bool(PART.fullmatch(name)))
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()
