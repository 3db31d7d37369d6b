"""RUN/launch/: what was submitted, and what has happened to it since.

submission.json   command line, code revision, profile and job ids, of earlier submissions too
events.jsonl      one line per event: started, stopped, requeued, failed, gave up, finished
outcomes/         how a job's stage ended, for launch/on_exit.sh, which notes most events
code-<time>/      the code as it was submitted, which the jobs run
jobs/<id>/        the sbatch script, and one log per rank
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import through_no_link
from common.ownership import Item
from common.schema import read_small, validated
from train.checkpoints.published import read_pointer, step_of
from train.ranks.slurm_job import job_id, restart_count
from train.runs import history
from train.runs.history import EVENTS
from train.runs.newest import CHECKPOINTS, check_time
from train.runs.several import members_of

STAGES = ("prepare", "train", "evaluate")
COMPARE, TRIAL = "compare", "trial"  # stages of a sweep: its last one, and training by a study
LAUNCH, SUBMISSION, JOBS = "launch", "submission.json", "jobs"


@dataclass(frozen=True)
class Submission:
    """The schema of a submission, as far as it is read."""

    jobs: dict[str, str]
    time_s: float
    revision: str
    prepare: list[str]

    def __post_init__(self) -> None:
        check_time(self.time_s)
        if not all(history.JOB.fullmatch(job) for job in self.jobs.values()):
            raise ValueError("jobs: not the numbers of jobs")


def note(run: Path, event: str, stage: str, **facts: Any) -> None:
    """Append an event, in one write of one line: several jobs may write at once."""
    entry = {"time_s": round(time.time(), 1), "event": event, "stage": stage, **facts}
    descriptor = through_no_link(run / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(descriptor)


def note_in_job(run: Path, event: str, stage: str, **facts: Any) -> None:
    """Append an event of this job, with its number, how often it was restarted, nodes, cluster."""
    about = {
        "job": job_id(),
        "restart": restart_count(),
        "nodes": os.environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME", ""),
    }
    note(run, event, stage, **facts, **about)


def read_events(run: Path) -> list[dict[str, Any]]:
    """Return all events so far, in order."""
    return history.read_events(run)


def read_submission(run: Path) -> dict[str, Any] | None:
    """Return what was submitted; None where launch/submit.py did not start the run."""
    try:
        newest = validated(dict[str, Any], read_small(run / LAUNCH / SUBMISSION))
        earlier = validated(list[dict[str, Any]], json.dumps(newest.get("earlier", [])))
        for about in (newest, *earlier):
            validated(Submission, json.dumps({"prepare": [], **about}))
    except (OSError, ValueError):  # not there, or somebody else's file
        return None
    return newest


def write_submission(run: Path, about: dict[str, Any]) -> None:
    """Put a submission before the earlier ones, which stay. The file is never half written."""
    earlier = read_submission(run)
    before = [earlier, *earlier.pop("earlier", [])] if earlier else []
    with submission_of(run) as item:
        content = json.dumps(about | {"earlier": before}, indent=2) + "\n"
        item.write(SUBMISSION, content.encode())
        item.publish(durably=True)


def submission_of(run: Path) -> Item:
    """Return submission.json as the record of what we wrote there has it."""
    return Item(run / LAUNCH, "submit", "submission")


def last_step(run: Path) -> int:
    """Return the step of the newest published checkpoint, 0 where there is none; of folds the
    sum."""
    newest = (read_pointer(each / CHECKPOINTS, "latest") for each in (run, *members_of(run)))
    return sum(step_of(latest) for latest in newest if latest)
