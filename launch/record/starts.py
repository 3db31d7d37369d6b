"""The starts of a run's training, on whichever jobs: nodes, steps, and why each ended."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from common.command_line import counted
from launch.record.events import last_step, read_events
from launch.record.local_runs import KILLED, NAME
from train.runs.history import Restart, read_progress, read_restarts

ENDS = ("finished", "requeued", "stopped", "failed", "gave up", "requeue refused")
MOST_SHOWN = 12  # starts; of more, the first are counted only
ROUNDED_S = 1.0  # times of restarts are whole seconds
WAITS = ("PENDING", "REQUEUED")  # states of a job that will start
LONGEST = 160  # characters of a reason


@dataclass
class Start:
    """One start of training, from its events."""

    job: str
    event: dict[str, Any]
    end: dict[str, Any] | None = None
    is_last: bool = True
    """Whether its job did not start again."""
    steps: list[int | None] = field(default_factory=lambda: [None, None])
    """Of the first and the last state that it had; None where nobody knows."""


def starts_of(run: Path) -> list[Start]:
    """Return the starts of training, the oldest first."""
    starts: list[Start] = []
    running: dict[str, Start] = {}
    for event in read_events(run):
        job = event.get("job", "")
        if event["stage"] != "train" or not job:
            continue
        if event["event"] == "started":
            if job in running:
                running[job].is_last = False
            running[job] = Start(job, event)
            starts.append(running[job])
        elif event["event"] in ENDS and job in running:
            running[job].end = event
    add_steps(starts, run)
    return starts


def add_steps(starts: Sequence[Start], run: Path) -> None:
    """Find out from which step to which each start came."""
    restarts = read_restarts(run)
    for start, after in zip_longest(starts, starts[1:]):
        until_s = after.event["time_s"] if after else float("inf")
        start.steps[0] = resumed_at(restarts, start.event["time_s"], until_s)
        start.steps[1] = start.end.get("step") if start.end else None
    if not starts:
        return
    first, last = starts[0], starts[-1]
    first.steps[0] = first.steps[0] or 0
    for start, after in pairwise(starts):
        if start.steps[1] is None:  # its node was lost: what was saved went on
            start.steps[1] = after.steps[0]
        if after.steps[0] is None and start.steps[1] == 0:
            after.steps[0] = 0
    if last.steps[1] is None:
        last.steps[1] = step_now(run, last)


def step_now(run: Path, last: Start) -> int:
    """Return how far the last start has come."""
    now = read_progress(run)
    has_finished = last.end and last.end["event"] == "finished"
    if now and (has_finished or now.time_s >= last.event["time_s"]):
        return now.step
    return last_step(run)


def resumed_at(restarts: Sequence[Restart], since_s: float, until_s: float) -> int | None:
    """Return the step at which training went on in a span of time; None where it did not."""
    return next(
        (each.step for each in restarts if since_s - ROUNDED_S <= each.time_s < until_s), None
    )


def lines_of(starts: Sequence[Start], states: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each start. `states`: job -> its state, '' once it has ended for good."""
    if not starts:
        return
    yield "starts of training"
    if len(starts) > MOST_SHOWN:
        yield f"      {len(starts) - MOST_SHOWN} earlier ones"
    rows = [
        (
            f"{number:4}",
            clock(start.event["time_s"]),
            start.event.get("nodes", "?"),
            counted(start.event["ranks"], "rank") if "ranks" in start.event else "",
            "steps " + " to ".join("?" if step is None else str(step) for step in start.steps),
            how_it_ended(start, states),
        )
        for number, start in enumerate(starts, 1)
    ]
    yield from in_columns(rows[-MOST_SHOWN:])


def how_it_ended(start: Start, states: Mapping[str, str]) -> str:
    """Return why a start ended, and whether its job comes back; '' while it runs."""
    state = states.get(start.job, "")
    if start.end is None:
        if start.is_last and state not in ("", KILLED, *WAITS):
            return ""
        if NAME.fullmatch(start.job):
            return "killed" if state == KILLED else ""
        text = "ended without a word (killed, or its node was lost)"
    else:
        text = told(start.end)
        if start.end["event"] != "stopped":
            return text
    return text + coming_back(not start.is_last, state)


def coming_back(is_back: bool, state: str) -> str:
    """Return that a job which did not ask to be requeued comes back nevertheless; '' if not."""
    if is_back:
        return "; it came back"
    return "; Slurm brings it back" if state in WAITS else ""


def told(event: dict[str, Any]) -> str:
    """Return an event with its reason, which is cut: it may hold a whole file."""
    reason = event.get("reason", "")
    if len(reason) > LONGEST:
        reason = f"{reason[:LONGEST]}..."
    return f"{event['event']}: {reason}" if reason else str(event["event"])


def clock(time_s: float) -> str:
    """Format a time."""
    return time.strftime("%m-%d %H:%M:%S", time.localtime(time_s))


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns are as wide as their widest entry, but the last."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{entry:{width}}" for entry, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
