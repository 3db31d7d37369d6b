"""What `jobs.py status` says of a run: its jobs, its training, what happened to it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError
from launch.cluster import slurm_commands
from launch.cluster.pending import why_it_waits
from launch.record.events import last_step, read_events, read_submission
from launch.record.local_runs import LOCAL, RUNNING, UNKNOWN, LocalStage, local_stages
from launch.record.members import HEAD, best_dice, member_rows
from launch.record.run_jobs import RunJob, known_jobs, with_tasks
from launch.record.starts import (
    ENDS,
    WAITS,
    clock,
    coming_back,
    in_columns,
    lines_of,
    starts_of,
    told,
)
from train.runs.history import read_metrics, read_progress
from train.runs.several import folder_above, runs_of

# Events worth a line, besides those that ended a start of training
STORY = ("requeued", "stopped", "failed", "requeue refused", "gave up", "cancelled")
FINAL = {"finished": "COMPLETED", "gave up": "FAILED"}  # other events are their own words
SUSPENDED = "waits until the cluster resumes it; this is no failure"
NO_ANSWER = "?"


@dataclass(frozen=True)
class Task:
    """A job, or some tasks of an array that are in the same state."""

    state: str
    nodes: str
    restarts: str
    note: str = ""


def status(run: Path) -> list[str]:
    """Return the lines of `status`: the newest jobs, all jobs in the queue, progress and events."""
    submission, events, jobs = read_submission(run), read_events(run), known_jobs(run)
    newest = submission["jobs"].values() if submission else [job.job for job in jobs]
    whose = origin(submission) if submission or not folder_above(run) else "one of several"
    lines = [f"run       {run} ({whose})"]
    here = local_stages(run)
    states = {stage.job: stage.state for stage in here}
    rows, silence = [], ""
    try:
        found = with_tasks(run)
        states |= {job.name: state_of(tasks) for job, tasks in found.items()}
    except UserError as error:
        found, silence = {job: [] for job in jobs}, str(error)
        states |= {job.name: NO_ANSWER for job in jobs}
    for job, tasks in found.items():
        if job.job in newest or states[job.name] not in ("", NO_ANSWER):
            rows += [row(job, task) for task in job_states(job, tasks, events)]
    if rows:
        lines += in_columns([("stage", "job", "state", "nodes", "restarts", ""), *rows])
    if silence:
        lines.append(f"{silence}; the states are the jobs' own notes, some jobs may be missing")
    lines += on_this_machine(here)
    if runs_of(run):
        every = [task for tasks in found.values() for task in tasks]
        lines += in_columns([HEAD, *member_rows(run, every)])
    else:
        lines += progress(run)
        lines += lines_of(starts_of(run), states)
    return lines + story(events, states)


def state_of(tasks: list[dict[str, str]]) -> str:
    """Return the state of a job in the queue; '' once it has ended for good."""
    return tasks[0].get("JobState", NO_ANSWER) if slurm_commands.is_in_queue(tasks) else ""


def origin(submission: dict[str, Any] | None) -> str:
    """Return when a run was submitted, and the revision of its code."""
    if submission is None:
        return "submitted by hand, or its submission was cut off"
    submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(submission["time_s"]))
    return f"submitted {submitted}, code {submission['revision'][:12] or '?'}"


def row(job: RunJob, task: Task) -> tuple[str, ...]:
    """Return a job, or some tasks of an array, as a row of the table."""
    return job.label, job.name, task.state, task.nodes, f"{task.restarts:>8}", task.note


def job_states(
    job: RunJob, tasks: list[dict[str, str]], events: list[dict[str, Any]]
) -> list[Task]:
    """Return state, nodes and restarts of a job, or of the tasks of an array.

    They come from the queue while Slurm knows the job, then from its accounts where it keeps any,
    else from the events that the job noted.
    """
    if tasks:
        return together([in_words(task) for task in tasks])
    stage = "prepare" if job.label == "join" else job.label
    newest = {
        event["job"]: event
        for event in events
        if event["stage"] == stage and str(event.get("job", "")).split("_")[0] == job.job
    }
    mine = list(newest.values())
    unfinished = [event["event"] for event in mine if event["event"] != "finished"]
    last = unfinished[0] if unfinished else "finished" if mine else "unknown"
    noted = FINAL.get(last, last.upper())
    final = slurm_commands.accounted_states([job.job]).get(job.job, noted)
    restarts = max((event.get("restart", 0) for event in mine), default=0)
    nodes = str(mine[-1].get("nodes", "")) if mine else ""
    return [Task(final, nodes, str(restarts))]


def in_words(task: dict[str, str]) -> Task:
    """Return what scontrol says of a job or a task."""
    state, reason = task.get("JobState", "?"), task.get("Reason", "None")
    nodes, restarts = task.get("NodeList", "").replace("(null)", ""), task.get("Restarts", "0")
    note = "" if reason == "None" or state == "RUNNING" else reason
    if state == "PENDING":
        note = why_it_waits(task)
        nodes = ""
    if state == "SUSPENDED":
        note = SUSPENDED
    if restarts != "0" and state in WAITS:
        note = f"comes back: {note}".removesuffix(": ")
    return Task(state, nodes, restarts, note)


def together(tasks: Sequence[Task]) -> list[Task]:
    """Put the tasks of an array that are in the same state into one row."""
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.state, task.restarts, task.note), []).append(task)
    rows = []
    for (state, restarts, note), same in groups.items():
        nodes = ",".join(sorted({task.nodes for task in same} - {""}))
        counted = f"{len(same)} tasks" if len(same) > 1 else ""
        rows.append(Task(state, nodes, restarts, "; ".join(filter(None, [counted, note]))))
    return rows


def on_this_machine(stages: Sequence[LocalStage]) -> list[str]:
    """Return a table of the stages that submit.py ran on a machine: the last start, and any that
    runs."""
    shown = [stage for stage in stages if stage.job == stages[-1].job or stage.state == RUNNING]
    if not shown:
        return []
    rows = [
        (
            stage.name,
            stage.job,
            stage.state,
            stage.host,
            clock(stage.started["time_s"]),
            clock(stage.ended["time_s"]) if stage.ended else "",
            # What ended training stands with its starts
            "" if stage.name == "train" and stage.state != UNKNOWN else stage.reason,
        )
        for stage in shown
    ]
    return in_columns([("stage", "start", "state", "host", "started", "ended", ""), *rows])


def progress(run: Path) -> list[str]:
    """Return lines about the training: step, age of the last report, best validation."""
    now = read_progress(run)
    if now is None:
        return ["training  has not begun"]
    saved = f"saved at step {last_step(run)}"
    event = "finished" if now.is_finished else "last sign of life"
    lines = [
        f"training  step {now.step} of {now.total_steps}, epoch {now.epoch}, {saved};"
        f" {event} {age(time.time() - now.time_s)} ago"
    ]
    if best := best_dice(run):
        lines.append(f"best      validation Dice {best[0]:.4f} at step {best[1]}")
    elif read_metrics(run):
        lines.append("best      the newest checkpoint: nothing annotated in val")
    return lines


def age(seconds: float) -> str:
    """Format a duration."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def story(events: Sequence[dict[str, Any]], states: dict[str, str]) -> list[str]:
    """Return a line for each event that no other line tells."""
    begun = [(event.get("job", ""), event["stage"]) for event in events if is_start(event)]
    lines = []
    for index, event in enumerate(events):
        job, stage = event.get("job", ""), event["stage"]
        is_told = stage == "train" and event["event"] in ENDS and (job, stage) in begun
        if event["event"] not in STORY or is_told or job.startswith(LOCAL):
            continue
        text = f"{clock(event['time_s'])}  {stage} {told(event)}"
        if event["event"] == "stopped":
            is_back = any(is_start(each) and each.get("job") == job for each in events[index:])
            text += coming_back(is_back, states.get(job.split("_")[0], ""))
        lines.append(text)
    return lines


def is_start(event: dict[str, Any]) -> bool:
    """Return whether a stage started."""
    return bool(event["event"] == "started")
