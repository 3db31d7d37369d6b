"""Read what happened to a run: its curves, restarts and the events of its jobs.

metrics.jsonl         one line per epoch: metrics of the validation
training.jsonl        one line per `log_every_steps` steps: training loss, learning rate, ...
restarts.jsonl        one line per restart
progress.json         how far the run is
launch/events.jsonl   one line per event of its jobs, see launch.record.events
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from common.command_line import UserError
from common.schema import numbered_lines, read_checked, read_lines
from train.runs.newest import LAST_TIME_S, PROGRESS, ProgressNow, check_time

METRICS, TRAINING, RESTARTS = "metrics.jsonl", "training.jsonl", "restarts.jsonl"
EVENTS = "launch/events.jsonl"
JOB = re.compile(r"[0-9]{1,18}")  # the number of a job
LARGEST = 1e100  # of a curve; no figure can be drawn of much more
TYPES_OF_EVENT: dict[str, Any] = {
    **dict.fromkeys(("event", "stage", "job", "nodes", "cluster", "process", "reason"), str),
    **dict.fromkeys(("restart", "task", "rank", "ranks", "step", "saved", "code", "pid"), int),
    "time_s": (int, float),
    "jobs": dict,
}

Point = dict[str, int | float | None]
"""A line of curves: its step, and a value for each name."""


@dataclass(frozen=True)
class Restart:
    """The schema of a line of restarts.jsonl."""

    step: int
    time_s: float
    notes: list[str]

    def __post_init__(self) -> None:
        check_time(self.time_s)


def read_progress(run: Path) -> ProgressNow | None:
    """Read how far a run is; None if it has not begun. Raises UserError for a damaged file."""
    try:
        return read_checked(run / PROGRESS, ProgressNow)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{run / PROGRESS}: damaged: {error}", can_heal=False) from None


def read_metrics(run: Path) -> list[Point]:
    """Read the lines of metrics.jsonl; none before the first validation. Raises UserError."""
    return [point for _, point in points(run / METRICS)]


def read_training(run: Path) -> list[Point]:
    """Read the lines of training.jsonl; none before the first point. Raises UserError."""
    return [point for _, point in points(run / TRAINING)]


def read_restarts(run: Path) -> list[Restart]:
    """Read the lines of restarts.jsonl; none if the run was never stopped. Raises UserError."""
    return read_lines(run / RESTARTS, Restart)


def points(path: Path, key: str = "step") -> list[tuple[str, Point]]:
    """Read the points of curves, each as its line and its values, `key` among them.

    Raises UserError for lines of another shape.
    """
    found = list(numbered_lines(path, Point))
    for line, point in found:
        if point.get(key) is None:
            raise UserError(
                f"{path}: a line without '{key}' ({line[:60]!a}): move the file away",
                can_heal=False,
            )
        if max(abs(value or 0) for value in point.values()) > LARGEST:
            raise UserError(
                f"{path}: a line with a number that no curve holds ({line[:60]!a})", can_heal=False
            )
    return found


def check_history(run: Path) -> None:
    """Raise UserError if the history of a run cannot be read: before work that needs it last."""
    try:
        read_metrics(run)
        read_training(run)
        read_restarts(run)
    except UserError as error:
        error.is_shared = True  # whichever ranks look, all find the same
        raise


def read_events(run: Path) -> list[dict[str, Any]]:
    """Read the events of a run's jobs, in order; [] if there are none.

    Passes over lines of another shape: whether a job comes back must not depend on them.
    """
    try:
        return [event for event in read_lines(run / EVENTS, object) if is_event(event)]
    except UserError:
        return []


def is_event(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether an entry has what every event has, and each value its type."""
    if not isinstance(entry, dict) or not {"time_s", "event", "stage"} <= entry.keys():
        return False
    kinds = TYPES_OF_EVENT
    if any(not isinstance(entry[key], kinds[key]) for key in entry.keys() & kinds.keys()):
        return False
    jobs = entry.get("jobs", {}).values()
    is_of_jobs = all(isinstance(job, str) and JOB.fullmatch(job) for job in jobs)
    return is_of_jobs and 0 <= entry["time_s"] < LAST_TIME_S
