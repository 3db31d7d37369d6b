"""Read what a table of runs says of each of them. No torch: a table comes at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UsageError
from common.lease import LEASE_S
from data_prep.dataset.description import DATASET, Description, read_description
from train.config import AUTO, TrainConfig
from train.ranks.lock import LOCK
from train.runs.history import (
    Point,
    read_metrics,
    read_progress,
    read_restarts,
    read_training,
)
from train.runs.newest import CONFIG, OTHER_VERSION, ProgressNow, is_exported, read_config

FINISHED, STOPPED_EARLY, RUNNING = "finished", "stopped early", "running"
UNFINISHED, NOT_BEGUN, PRUNED = "unfinished", "not begun", "pruned"
DICE, NUCLEI_F1, SPEED = "val/dice", "val/nuclei_f1", "speed/samples_per_s"


@dataclass(frozen=True)
class RunFacts:
    """A run, as it is on disk now."""

    path: Path
    config: TrainConfig
    data: Description
    """The data set that it was trained on, as its fold sees it."""
    metrics: list[Point]
    """The lines of metrics.jsonl."""
    training: list[Point]
    """The lines of training.jsonl."""
    progress: ProgressNow | None
    num_restarts: int
    state: str

    @property
    def best(self) -> Point | None:
        """The validation with the best Dice, the first of several; None before there is one."""
        known = [point for point in self.metrics if point.get(DICE) is not None]
        return max(known, key=lambda point: point[DICE] or 0.0, default=None)

    @property
    def hours(self) -> float | None:
        """See `hours_of`."""
        size, done = self.config.batch_size, self.progress
        return None if size == AUTO or not done else hours_of(self.training, size, done.step)


def read_facts(path: Path) -> RunFacts:
    """Read a run. Raises UserError if it is none, or if its files cannot be read."""
    if is_exported(path):
        raise UsageError(f"{path}: a model without its training; give the run's folder")
    if not (path / CONFIG).is_file():
        inside = f"; for those in it: runs={path}/*" if any(path.glob(f"*/{CONFIG}")) else ""
        raise UsageError(f"{path}: no run has begun there (no {CONFIG}){inside}")
    config = read_config(path)
    data = read_description(path / DATASET, OTHER_VERSION)
    progress = read_progress(path)
    return RunFacts(
        path,
        config,
        data.of_fold(config.fold, str(path / DATASET)),
        read_metrics(path),
        read_training(path),
        progress,
        len(read_restarts(path)),
        state_of(path, progress),
    )


def state_of(path: Path, progress: ProgressNow | None) -> str:
    """Say how far a run is; it is running while its lock is touched."""
    if progress and progress.is_finished:
        return FINISHED if progress.step >= progress.total_steps else STOPPED_EARLY
    try:
        touched_s = (path / LOCK).lstat().st_mtime
    except OSError:
        touched_s = 0.0
    if time.time() - touched_s < LEASE_S:
        return RUNNING
    return UNFINISHED if progress else NOT_BEGUN


def hours_of(training: Sequence[Point], batch_size: int, num_steps: int) -> float | None:
    """Return the hours that steps took, by the speed at each point of the training curves.

    Validation, starts, and steps that were lost to a kill and done again are not in it. None if
    the speed is not known.
    """
    seconds, before, crops_per_s = 0.0, 0.0, None
    for point in training:
        step, crops_per_s = point["step"] or 0, point.get(SPEED)
        if not crops_per_s or crops_per_s < 0 or step < before:
            return None
        seconds += (step - before) * batch_size / crops_per_s
        before = step
    if not crops_per_s:
        return None
    return (seconds + max(0, num_steps - before) * batch_size / crops_per_s) / 3600
