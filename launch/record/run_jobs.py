"""The jobs of a run, whoever submitted them and when, and which of them are in the queue."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UsageError
from common.lease import Lease
from launch.cluster import slurm_commands
from launch.record.events import (
    JOBS,
    LAUNCH,
    SUBMISSION,
    read_events,
    read_submission,
    submission_of,
)
from launch.record.local_runs import running_stages
from train.runs.history import JOB


@dataclass(frozen=True)
class RunJob:
    """A job, or an array of jobs, of a run."""

    label: str
    """Its stage, or join."""
    job: str
    by_hand: bool = False
    """Whether launch/submit.py did not queue it."""

    def tasks(self, run: Path) -> list[dict[str, str]]:
        """Return what Slurm says of the job, or of each task of the array; [] once forgotten.

        Raises UserError where Slurm does not answer.
        """
        return [task for task in slurm_commands.show_tasks(self.job) if self.is_this(run, task)]

    def is_this(self, run: Path, task: dict[str, str]) -> bool:
        """Return whether Slurm speaks of this job, and not of a later one with the same number.

        A new cluster counts from 1 again. A script of submit.py is in the folder of its run.
        """
        folder = Path(task.get("Command", "")).parent
        if folder.parts[-2:] == (LAUNCH, JOBS):
            return folder.parts[-3:-2] == (run.resolve().name,)
        return self.by_hand or not folder.is_absolute()


def known_jobs(run: Path) -> list[RunJob]:
    """Return every job that was submitted for a run, or that began in it; the oldest first."""
    newest = read_submission(run) or {"jobs": {}}
    queued = [about["jobs"] for about in [newest, *newest.get("earlier", [])]]
    events = read_events(run)
    queued += [event["jobs"] for event in events if "jobs" in event]
    known = {job: RunJob(label, job) for jobs in queued for label, job in jobs.items()}
    for event in events:
        job = str(event.get("job", "")).split("_")[0]
        if JOB.fullmatch(job) and job not in known:
            known[job] = RunJob(event["stage"], job, by_hand=True)
    return [known[job] for job in sorted(known, key=int)]


def in_queue(tasks: list[dict[str, str]]) -> bool:
    """Return whether a job, or a task of an array, has not ended for good."""
    return any(task.get("JobState") not in slurm_commands.ENDED for task in tasks)


def queued_jobs(run: Path) -> dict[RunJob, str]:
    """Return the jobs of a run that are in the queue, with their states; the oldest first.

    Raises UserError where Slurm does not answer.
    """
    tasks_of = {job: job.tasks(run) for job in known_jobs(run)}
    return {
        job: ", ".join(dict.fromkeys(task.get("JobState", "state unknown") for task in tasks))
        for job, tasks in tasks_of.items()
        if in_queue(tasks)
    }


@contextmanager
def submitting(run: Path) -> Iterator[None]:
    """Hold a run while its jobs are queued, so that nobody else queues a second chain beside it.

    Raises UsageError while the run has jobs in the queue, or runs on this machine. Raises UserError
    where somebody else is submitting it, where Slurm does not answer, or where another program
    wrote submission.json.
    """
    (run / LAUNCH).mkdir(parents=True, exist_ok=True)
    with Lease(run, "run", name=f"{LAUNCH}/submit.lock", doing="submitting it"):
        submission_of(run).check([SUBMISSION], "name another run=")
        busy = [
            f"{stage.name} runs here (process {stage.launcher})" for stage in running_stages(run)
        ]
        if slurm_commands.is_here() and (queued := queued_jobs(run)):
            jobs = ", ".join(f"{job.label} {job.job} ({state})" for job, state in queued.items())
            busy.append(f"still in the queue: {jobs}")
        if busy:
            folder = shlex.quote(str(run))
            raise UsageError(
                f"run={run}: {'; '.join(busy)}; nothing was queued. See them with `python"
                f" launch/jobs.py status {folder}`, end them with `python launch/jobs.py cancel"
                f" {folder}`, or name another run="
            )
        yield
