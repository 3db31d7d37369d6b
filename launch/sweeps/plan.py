"""SWEEP/sweep.json: what a sweep varies and what all of its trials share.

It is written when a sweep is submitted, and read by the task of each trial.
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from common import command_line
from common.command_line import UsageError, UserError
from common.files import write_atomically
from common.schema import read_checked
from launch.sweeps.space import Space, read
from train.config import (
    HARMLESS_KEYS,
    PRESETS,
    TrainConfig,
    with_pipeline_read,
    with_whole_paths,
)
from train.runs.same_data import as_typed, changed_settings, flat, in_lines

SWEEP = "sweep.json"
SHARED = "data"  # changes no result of a run, but trials on other data are not comparable


@dataclass(frozen=True)
class Plan:
    """A sweep. Raises UsageError if training would refuse it."""

    sweep: list[str]
    """The words after --sweep."""
    settings: list[str]
    """key=value of training that all trials share, see resolved()."""
    prune: Literal["median", "off"] = "median"
    """Whether a trial ends early that is worse than the median of those that have finished."""
    has_folds: bool = False
    """Whether a trial trains on every fold of the data set."""

    def __post_init__(self) -> None:
        self.shared  # noqa: B018  (refuses what cannot work)

    @cached_property
    def space(self) -> Space:
        """What is varied."""
        return read(self.sweep)

    @cached_property
    def shared(self) -> TrainConfig:
        """The settings that all trials share, with the first values of what is varied; the settings
        of trials are drawn from its seed."""
        return load_shared(self.settings, self.space)


def load_shared(settings: Sequence[str], space: Space) -> TrainConfig:
    """Load the settings that the trials of a space share, with the first of its values beside them:
    some are refused alone. Raises UsageError."""
    first = [f"{key}={value}" for key, value in space.first().items() if key != "preset"]
    given = [*settings, *first]
    return command_line.load(TrainConfig, given, preset_folder=PRESETS, is_record=True)


def resolved(settings: Sequence[str], space: Space) -> list[str]:
    """Return every setting that the trials of a space share, as it is now, not its file: a file may
    be another one when a task starts. Raises UsageError."""
    config = with_whole_paths(with_pipeline_read(load_shared(settings, space)))
    others = ("run", "preset", "config", *space.values)
    every = flat(dataclasses.asdict(config))
    return [f"{key}={as_typed(value)}" for key, value in every.items() if key not in others]


def record_plan(folder: Path, plan: Plan) -> None:
    """Write the plan of a sweep that begins or goes on.

    Raises UsageError if the sweep in the folder began with other settings. Its `prune` may change.
    """
    check_plan(folder, plan)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(plan), indent=2) + "\n"
    write_atomically(folder / SWEEP, content.encode(), is_synced=True)


def check_plan(folder: Path, plan: Plan) -> None:
    """Raise UsageError if the sweep in a folder, if there is one, began with other settings."""
    if not (folder / SWEEP).exists():
        return
    before = read_plan(folder)
    lines = in_lines(changed_settings(compared(before), compared(plan)))
    if list(before.space.values.items()) != list(plan.space.values.items()):
        words = (shlex.join(each.sweep) for each in (before, plan))
        lines.insert(0, "--sweep: {} -> {}".format(*words))
    if before.has_folds != plan.has_folds:
        with_folds, without = ("with", "without") if before.has_folds else ("without", "with")
        lines.append(f"{with_folds} folds -> {without}")
    if lines:
        raise UsageError(
            f"{folder}: the sweep there began with other settings, and its trials could not be"
            " compared with new ones:"
            + "".join(f"\n  {line}" for line in lines)
            + "\ngive the same ones to go on with it, or name another folder with run="
        )


def compared(plan: Plan) -> dict[str, Any]:
    """Return the settings that trials share, and that change what comes of them."""
    settings = flat(dataclasses.asdict(plan.shared))
    others = {*HARMLESS_KEYS, *plan.space.values} - {SHARED}
    return {key: settings[key] for key in settings if key not in others}


def read_plan(folder: Path) -> Plan:
    """Read the plan of a sweep. Raises UserError if there is none."""
    path = folder / SWEEP
    try:
        return read_checked(path, Plan)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a sweep (no {SWEEP})") from None
    except (OSError, ValueError, UsageError) as error:
        raise UserError(
            f"{path}: {error}; move it away, or name another folder with run=", can_heal=False
        ) from None
