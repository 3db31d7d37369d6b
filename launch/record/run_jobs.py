"""The jobs of a run, whoever submitted them and when, and which of them are in the queue."""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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


def missing_folders(run: Path) -> list[Path]:
    """Return the folders that are to be made for a run, the innermost first."""
    return [folder for folder in (run, *run.parents) if not folder.exists()]


@contextmanager
def submitting(run: Path, made: Sequence[Path] = ()) -> Iterator[None]:
    """Hold a run while its jobs are queued, so that nobody else queues a second chain beside it.

    A failure removes what was made meanwhile, and the folders `made` for it. Raises UsageError
    while the run has jobs in the queue, or runs on this machine. Raises UserError where somebody
    else is submitting it, where Slurm does not answer, or where another program wrote
    submission.json.
    """
    try:
        (run / LAUNCH).mkdir(parents=True, exist_ok=True)
        with Lease(run, "run", name=f"{LAUNCH}/submit.lock", doing="submitting it"):
            submission_of(run).check([SUBMISSION], "name another run=")
            refuse_busy(run)
            with removed_on_failure(run):
                yield
    except BaseException:
        for folder in (run / LAUNCH, *made):
            with suppress(OSError):  # not empty: another process uses it
                folder.rmdir()
        raise


def refuse_busy(run: Path) -> None:
    """Raise UsageError while a run has jobs in the queue, or runs on this machine."""
    busy = [f"{stage.name} runs here (process {stage.launcher})" for stage in running_stages(run)]
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


@contextmanager
def removed_on_failure(run: Path) -> Iterator[None]:
    """If this context fails, remove what it made in RUN/launch. The run must be held."""
    before = set(contents(run))
    try:
        yield
    except BaseException:
        for path in set(contents(run)) - before:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def contents(run: Path) -> list[Path]:
    """Return what is in RUN/launch, and in its folder of jobs."""
    return [*(run / LAUNCH).glob("*"), *(run / LAUNCH / JOBS).glob("*")]
