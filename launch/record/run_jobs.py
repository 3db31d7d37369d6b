"""The jobs of a run, whoever submitted them and when, and which of them are in the queue."""

import re
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import slurm_commands
from launch.record.events import JOBS, LAUNCH, read_events, read_submission
from train.runs.history import JOB
from train.runs.several import folder_above


@dataclass(frozen=True)
class RunJob:
    """A job, or an array of jobs, of a run."""

    label: str
    """Its stage, or join."""
    job: str
    by_hand: bool = False
    """Whether launch/submit.py did not queue it."""
    cluster: str = ""
    """The cluster where it was queued or began, '' where that is not known."""
    task: int | None = None
    """The task of the array that the run is in, where its job is one of several runs."""
    rank: int = 0
    """The task of the step that is the run's rank 0, where it shares its job with others."""

    @property
    def name(self) -> str:
        """The id of the job, or of the run's task of an array."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    def is_this(self, run: Path, task: dict[str, str], cluster: str) -> bool:
        """Return whether the cluster speaks of this job, and not of another with its number.

        A new cluster counts from 1 again, and two clusters may share a file system. The script of
        submit.py and the log are in the folder of the run; some sites hand on a copy of the script.
        """
        if self.cluster and cluster and self.cluster != cluster:
            return False
        script, log = task.get("Command", ""), task.get("StdOut", "")
        folders = [Path(script).parent, *Path(log).parents[1:2]]  # the log is in jobs/<id>/
        if self.task is not None and not has_task(task, self.task):
            return False
        ours = {each.resolve() for each in jobs_folders(run)}
        if not ours.isdisjoint(each.resolve() for each in folders if each.root):
            return True
        is_of_another = any(each.parts[-2:] == (LAUNCH, JOBS) for each in folders)
        return not script or (self.by_hand and not is_of_another)


def jobs_folders(run: Path) -> list[Path]:
    """Return where the scripts and logs of a run's jobs are: a run among several has them in the
    folder of all, unless it was submitted by itself."""
    above = folder_above(run)
    return [folder / LAUNCH / JOBS for folder in (run, *([above] if above else []))]


def has_task(about: dict[str, str], task: int) -> bool:
    """Return whether Slurm speaks of a task of an array, or of all that wait, as in 0,4-7%2."""
    for part in about.get("ArrayTaskId", "").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, by = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if first <= task <= last and (task - first) % max(1, by) == 0:
                return True
    return False


def known_jobs(run: Path) -> list[RunJob]:
    """Return every job that was submitted for a run, or that began in it; the oldest first."""
    newest = read_submission(run) or {"jobs": {}}
    queued = [about["jobs"] for about in [newest, *newest.get("earlier", [])]]
    events = read_events(run)
    queued += [event["jobs"] for event in events if "jobs" in event]
    labels = {job: label for jobs in queued for label, job in jobs.items()}
    clusters: dict[str, str] = {}
    by_hand: dict[str, str] = {}
    places: dict[str, tuple[int | None, int]] = {}
    for event in events:
        if event["event"] == "queued":
            place = event.get("task"), event.get("rank", 0)
            places |= dict.fromkeys(event.get("jobs", {}).values(), place)
        job = str(event.get("job", "")).split("_")[0]
        if JOB.fullmatch(job) and job not in labels:
            by_hand.setdefault(job, event["stage"])
        for number in [job, *event.get("jobs", {}).values()]:
            clusters[number] = event.get("cluster") or clusters.get(number, "")
    known = [
        RunJob(label, job, job in by_hand, clusters.get(job, ""), *places.get(job, ()))
        for job, label in {**labels, **by_hand}.items()
    ]
    return sorted(known, key=lambda each: int(each.job))


def with_tasks(run: Path) -> dict[RunJob, list[dict[str, str]]]:
    """Return the jobs of a run, the oldest first, with what Slurm says of each, or of each task of
    its array: [] once forgotten. Raises UserError where Slurm does not answer."""
    if not (jobs := known_jobs(run)):
        return {}
    tasks: dict[str, list[dict[str, str]]] = {}
    for task in slurm_commands.show_all():
        tasks.setdefault(number_of(task), []).append(task)
    cluster = slurm_commands.cluster_name()
    return {
        job: [task for task in tasks.get(job.job, []) if job.is_this(run, task, cluster)]
        for job in jobs
    }


def number_of(task: dict[str, str]) -> str:
    """Return the id of a job, of a task that of its array."""
    return task.get("ArrayJobId") or task["JobId"]


def queued_jobs(run: Path) -> dict[RunJob, str]:
    """Return the jobs of a run that are in the queue, with their states; the oldest first.

    Raises UserError where Slurm does not answer.
    """
    return {
        job: ", ".join(dict.fromkeys(task.get("JobState", "state unknown") for task in tasks))
        for job, tasks in with_tasks(run).items()
        if slurm_commands.is_in_queue(tasks)
    }
