"""Names in the folders of several runs: the folds of a cross-validation, the trials of a sweep.

CV/fold-0, fold-1, ...        a run for each fold
SWEEP/trial-0, trial-1, ...   a run for each trial, or with folds a folder of folds
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UsageError
from data_prep.raw import natural_key
from train.exchange.config import SAFETENSORS

ENSEMBLE = "ensemble.json"  # thresholds of a folder of folds
STUDY = "study.log"  # Optuna's record of a sweep
STUDY_NAME = "eosin"  # of the study in it
NAME = re.compile(r"(fold|trial)-(0|[1-9]\d{0,5})")


def fold_name(fold: int) -> str:
    """Return the name of a fold's run."""
    return f"fold-{fold}"


def trial_name(trial: int) -> str:
    """Return the name of a trial's run."""
    return f"trial-{trial}"


def members_of(folder: Path) -> list[Path]:
    """Return the runs of the folds in a folder, in order; none if it has no such runs."""
    return numbered(folder, "fold")


def trials_of(folder: Path) -> list[Path]:
    """Return the trials in a sweep's folder, in order; none if it has no trials."""
    return numbered(folder, "trial")


def numbered(folder: Path, kind: str) -> list[Path]:
    """Return the folders KIND-0, KIND-1, ... in a folder by their numbers, whichever are there."""
    found = {}
    for path in folder.glob(f"{kind}-*"):
        if (match := NAME.fullmatch(path.name)) and path.is_dir():
            found[int(match[2])] = path
    return [found[number] for number in sorted(found)]


def runs_of(folder: Path) -> list[Path]:
    """Return the runs of a folder of several, in order, those of trials with folds too; none for a
    run."""
    members = members_of(folder) or trials_of(folder)
    return [run for each in members for run in (members_of(each) or [each])]


def folder_above(run: Path) -> Path | None:
    """Return the folder of several runs that a run's name says it is in; None for none."""
    above = None
    for path in (run, run.parent):
        if not NAME.fullmatch(path.name):
            break
        above = path.parent
    return above


def expanded(runs: Sequence[str]) -> list[Path]:
    """Return the paths of a runs= in its order, each once.

    A pattern (*, ?) stands for the folders and exported models that it fits, by the numbers in
    their names. Raises UsageError for a pattern that none fits.
    """
    found: dict[Path, None] = {}
    for run in runs:
        paths = [Path(run)]
        if glob.has_magic(run) and not os.path.lexists(run):
            fitting = map(Path, sorted(glob.glob(run), key=natural_key))
            paths = [path for path in fitting if path.is_dir() or path.suffix == SAFETENSORS]
            if not paths:
                raise UsageError(f"runs={run}: no folder and no {SAFETENSORS} file has such a name")
        found |= dict.fromkeys(paths)
    return list(found)


def all_members(runs: Sequence[str]) -> list[Path]:
    """Return the same, with the runs of its folds in place of a folder of folds."""
    return [member for path in expanded(runs) for member in members_of(path) or [path]]
