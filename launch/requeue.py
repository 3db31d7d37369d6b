"""Whether a job that stops or fails comes back: the one decision, and the request to Slurm.

A job decides twice: in its tasks, as soon as the stage has stopped (launch/job.py), and in the
last line of its script, when srun has ended (launch/on_exit.py). Slurm brings a job back by itself
only if the job still runs when its grace is over, or if it loses a node. One that saved and left in
good time counts as done, so it must ask to be requeued, or it is lost. A job that Slurm no longer
calls RUNNING is being cancelled, or Slurm is requeuing it already: asking then would bring a
cancelled job back.
"""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from common.command_line import EXIT_STOPPED, EXIT_USAGE
from launch.cluster import slurm_commands
from launch.record.events import last_step, note_in_job
from train.ranks.slurm_job import job_id

UNKNOWN = "unknown"  # Slurm does not answer: better requeued once too often than lost


class Action(Enum):
    """What becomes of a job."""

    FINISH = auto()
    """The stage is done."""
    END = auto()
    """Ask for nothing: somebody ends the job, or Slurm requeues it by itself."""
    REQUEUE = auto()
    """Have it requeued; this is no failure."""
    RETRY = auto()
    """Have it requeued, and count a failure."""
    GIVE_UP = auto()
    """Leave it failed: a retry would fail too."""


@dataclass(frozen=True)
class Decision:
    """What to do, and why."""

    action: Action
    reason: str = ""
    """Why the job was stopped; empty for a failure, whose reason only the caller knows."""

    @property
    def is_stop(self) -> bool:
        """Whether the job is leaving its nodes, whatever a rank may say failed meanwhile."""
        return self.action in (Action.END, Action.REQUEUE)


def decide(
    job: Mapping[str, str],
    code: int,
    *,
    signum: int = 0,
    has_ended: bool = False,
    failures: int = 0,
    retries: int = 0,
) -> Decision:
    """Decide what becomes of a job. Pure: what Slurm says of the job is an argument.

    `job` are the fields of `scontrol show job`, empty where Slurm does not answer; `code` is the
    exit code of the stage or of srun; `signum` the first signal that the stage caught, 0 for none;
    `has_ended` tells that a task has decided on END since the job last started; `failures` counts
    the failures since the job saved its newest checkpoint, of which `retries` may be retried.
    """
    state = job.get("JobState", UNKNOWN)
    if code == 0:
        return Decision(Action.FINISH)
    if signum == signal.SIGINT:  # Ctrl-C
        return Decision(Action.END, "SIGINT")
    if state not in ("RUNNING", UNKNOWN):
        return Decision(Action.END, f"job is {state}")
    if has_ended:
        return Decision(Action.END)
    if signal.SIGUSR2 in (signum, code - 128):  # code: it came before Python could catch it
        return Decision(Action.REQUEUE, "time limit")
    if was_preempted(job):
        return Decision(Action.REQUEUE, "preempted")
    # srun also sends SIGTERM when a rank has crashed; then `code` is not EXIT_STOPPED
    if code == EXIT_STOPPED or (signum and state == UNKNOWN):
        return Decision(Action.REQUEUE, signal.Signals(signum).name if signum else "stopped")
    if code == EXIT_USAGE or failures >= retries:
        return Decision(Action.GIVE_UP)
    return Decision(Action.RETRY)


def was_preempted(job: Mapping[str, str]) -> bool:
    """Whether Slurm has preempted this start of a job (PreemptTime may be of an earlier one)."""
    preempted_at = job.get("PreemptTime", "None")
    return preempted_at != "None" and preempted_at >= job.get("StartTime", "")


def request_requeue(run: Path, stage: str) -> bool:
    """Ask Slurm to requeue this job; returns whether it will. A refusal is noted and printed."""
    refusal = slurm_commands.requeue(job_id())
    if refusal:
        note_in_job(run, "requeue refused", stage, step=last_step(run), reason=refusal)
        print(f"error: Slurm refuses to requeue: {refusal}", file=sys.stderr, flush=True)
    return not refusal
