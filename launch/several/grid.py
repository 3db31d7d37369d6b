"""SWEEP/sweep.json of a grid: which settings each trial has.

A trial is known by its settings. It keeps its number when a sweep goes on with more values, whose
trials come after those that were there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UsageError, UserError
from common.schema import checked, read_checked, require_printable
from launch.several.members import Member
from launch.sweeps.plan import SWEEP
from launch.sweeps.space import Space, number_in
from train.runs.several import NAME, trial_name

MOST_TRIALS = 1000  # Slurm's own limit of an array, where a site has not changed it


@dataclass(frozen=True)
class Trial:
    """A trial of a grid."""

    run: str
    settings: dict[str, str]

    def __post_init__(self) -> None:
        match = NAME.fullmatch(self.run)
        if not match or match[1] != "trial":
            raise ValueError(f"run: {self.run!a} is no trial-K")
        require_printable(self.settings, "settings")


@dataclass(frozen=True)
class GridFile:
    """The schema of sweep.json."""

    swept: dict[str, list[str]]
    trials: list[dict[str, Any]]
    has_folds: bool = False


@dataclass(frozen=True)
class Grid:
    """What sweep.json says."""

    swept: dict[str, list[str]]
    """Key -> the values that the last submission named."""
    trials: list[Trial]
    """All that were submitted, by their numbers."""
    has_folds: bool = False
    """Whether a trial has a run for each fold."""


def grid_of(folder: Path, space: Space, *, has_folds: bool) -> Grid:
    """Return the grid of a folder with the trials of a space, new ones after those that are there.

    Raises UsageError for too many, UserError where the folder holds another sweep.
    """
    before = read_grid(folder)
    if before and before.has_folds != has_folds:
        do = "give --folds too" if before.has_folds else "leave --folds out"
        raise UsageError(
            f"{folder}: the sweep there trains {'each fold' if before.has_folds else 'one run'} of"
            f" each trial; {do} to go on with it, or name another folder with run="
        )
    trials = {meaning(trial.settings): trial for trial in (before.trials if before else [])}
    for settings in space.grid():
        trials.setdefault(meaning(settings), Trial(trial_name(len(trials)), settings))
    if len(trials) > MOST_TRIALS:
        raise UsageError(
            f"--sweep: {len(trials)} trials, at most {MOST_TRIALS} in a folder; give fewer values,"
            " or --trials N, which tries N of them"
        )
    swept = {key: list(values.tried()) for key, values in space.values.items()}
    return Grid(swept, list(trials.values()), has_folds)


def asked_trials(grid: Grid, space: Space) -> list[Member]:
    """Return the trials of a space as runs."""
    asked = {meaning(settings) for settings in space.grid()}
    return [
        Member(trial.run, trial.settings)
        for trial in grid.trials
        if meaning(trial.settings) in asked
    ]


def meaning(settings: Mapping[str, str]) -> frozenset[tuple[str, float | str]]:
    """Return what settings mean, whatever their order: 1e-3 is 0.001."""
    numbers = {key: number_in(value) for key, value in settings.items()}
    return frozenset(
        (key, value if numbers[key] is None else numbers[key] or 0.0)
        for key, value in settings.items()
    )


def read_grid(folder: Path) -> Grid | None:
    """Return the grid in a folder; None for a new one. Raises UserError."""
    path = folder / SWEEP
    try:
        found = read_checked(path, GridFile)
        trials = [checked(Trial, each) for each in found.trials]
        return Grid(found.swept, trials, found.has_folds)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not that of a grid ({error}); a sweep by --trials goes on with --trials, and"
            " any other one in another folder: run=",
            can_heal=False,
        ) from None
