"""What `jobs.py status` says of each run in a folder of several."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError, counted
from launch.cluster import slurm_commands
from launch.record.events import last_step, read_events
from launch.record.local_runs import local_stages
from launch.record.run_jobs import RunJob, has_task, known_jobs, number_of
from train.runs.history import read_metrics, read_progress
from train.runs.several import runs_of

STARTED = ("started", "train")
FINISHED, NOT_BEGUN = "finished", "not begun"
HEAD = ("run", "job", "state", "step", "restarts", "best val Dice")


def member_rows(folder: Path, tasks: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    """Return a row for each run in a folder, under HEAD. `tasks`: what Slurm says of their jobs."""
    return [row(folder, run, tasks) for run in runs_of(folder)]


def row(folder: Path, run: Path, tasks: Sequence[dict[str, str]]) -> tuple[str, ...]:
    """Return the row of a run; one with damaged files has the reason in place of its figures."""
    name, job = str(run.relative_to(folder)), newest_job(run)
    starts = [each for each in read_events(run) if (each["event"], each["stage"]) == STARTED]
    restarts = str(max(0, len(starts) - 1))
    try:
        now, best = read_progress(run), best_dice(run)
    except UserError as error:
        return name, job, str(error).splitlines()[0], "", restarts, ""
    step = f"{now.step} of {now.total_steps}" if now else ""
    dice = f"{best[0]:.4f} at step {best[1]}" if best else ""
    return name, job, state_of(run, tasks), step, restarts, dice


def newest_job(run: Path) -> str:
    """Return the job that trains a run, or the start on a machine; '' for none."""
    jobs = [job.name for job in known_jobs(run)]
    return (jobs or [stage.job for stage in local_stages(run)] or [""])[-1]


def state_of(run: Path, tasks: Sequence[dict[str, str]]) -> str:
    """Return the state of a run's training: that of its job, or how it ended."""
    for job in reversed(known_jobs(run)):
        mine = [task for task in tasks if is_of(job, task)]
        if slurm_commands.is_in_queue(mine):
            waits = mine[0].get("JobState", "?")
            return f"{waits}, comes back" if waits == "PENDING" and last_step(run) else waits
    now = read_progress(run)
    if here := local_stages(run)[-1:]:
        return here[0].state
    if now and now.is_finished:
        return FINISHED
    ends = [event for event in read_events(run) if event["stage"] == "train"]
    return str(ends[-1]["event"]) if ends else NOT_BEGUN


def is_of(job: RunJob, task: dict[str, str]) -> bool:
    """Return whether Slurm speaks of this job, or of this task of an array."""
    return number_of(task) == job.job and (job.task is None or has_task(task, job.task))


def best_dice(run: Path) -> tuple[float, int] | None:
    """Return the best Dice on the validation split and its step; None where none was measured."""
    rows = [(row.get("val/dice"), row["step"]) for row in read_metrics(run)]
    measured = [(dice, int(step or 0)) for dice, step in rows if dice is not None]
    return max(measured, key=lambda pair: pair[0]) if measured else None


def in_a_line(folder: Path) -> str:
    """Return how far the runs in a folder are, for a list."""
    runs = runs_of(folder)
    states = Counter(summary(run) for run in runs)
    listed = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"{counted(len(runs), 'run')}: {listed}"


def summary(run: Path) -> str:
    """Return in a word how far a run is."""
    now = read_progress(run)
    if now is None:
        return NOT_BEGUN
    return FINISHED if now.is_finished else "unfinished"


def sharing(run: Path) -> list[str]:
    """Return the names of the other runs that share the newest job of a run among several."""
    jobs = known_jobs(run)
    if not jobs:
        return []
    others = [each for each in runs_of(run.parent) if each != run]
    return [each.name for each in others if jobs[-1].name in {job.name for job in known_jobs(each)}]
