"""Queue the jobs of a chain, with a copy of the code that they run."""

import contextlib
import dataclasses
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from common.command_line import UserError
from launch.cluster import slurm_commands
from launch.cluster.pending import why_never
from launch.cluster.profiles import Profile
from launch.job_requests import Job, script
from launch.record.events import JOBS, LAUNCH, note, write_submission
from launch.record.run_jobs import known_jobs, number_of
from launch.record.submitting import StillQueuedError, cancelled_on_failure

ROOT = Path(__file__).resolve().parents[1]
KEPT_CONFIG = "config.yaml"
LOOK = "`squeue --me` shows it if there is one, and `scancel <its id>` ends it"
PACKAGES = ("common", "data_prep", "model", "train", "launch")


def queue(run: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Queue the jobs, each after the one before; returns label -> job id.

    Raises UserError where Slurm refuses one, or would never start it, after cancelling all.
    """
    ids: dict[str, str] = {}
    with cancelled_on_failure(ids):
        for job in jobs:
            queue_one(run, job, ids)
        for label, job_id in ids.items():
            refuse_what_waits_for_ever(label, job_id)
    return ids


def queue_one(run: Path, job: Job, ids: dict[str, str]) -> None:
    """Queue a job behind the last one of `ids`, add its id to them, and note it.

    Raises UserError; then, too, `ids` has every job that was queued.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = run / LAUNCH / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{job.label}-{uuid.uuid4().hex}.sh"
    path.write_text(script(run, job, list(ids.values())[-1] if ids else ""))
    pickles = []
    for number, work in enumerate(job.work(run)):
        pickles.append(path.with_suffix(f".{number}.pkl"))
        call = DelayedSubmission(work)
        call.set_timeout(job.parameters["time"], max_num_timeout=3)
        call.dump(pickles[-1])
    cluster = slurm_commands.cluster_name()
    known = {job.job for job in known_jobs(run)}
    try:
        ids[job.label] = submitted(job, path, known)
    except BaseException:
        for left in jobs_of(path, known):
            ids[f"{job.label} {left}"] = left
            note(run, "queued", "chain", jobs={job.label: left}, cluster=cluster)
        raise
    job_id = ids[job.label]
    # At once: this process may be killed, and a trial of a study may start and ask for the others
    note(run, "queued", "chain", jobs={job.label: job_id}, cluster=cluster)
    note_members(job, job_id, cluster)
    for task, pickle in zip(tasks_of(job, job_id), pickles, strict=True):
        JobPaths(folder / "%j", task).move_temporary_file(pickle, "submitted_pickle")
    paths = JobPaths(folder / "%j", job_id)
    paths.move_temporary_file(path, "submission_file", keep_as_symlink=True)


def note_members(job: Job, job_id: str, cluster: str) -> None:
    """Note in each run of an array which task of the job trains it, and as which of its ranks."""
    for number, run in enumerate(job.runs):
        task, place = divmod(number, job.pack)
        about: dict[str, Any] = {"task": task} if job.num_tasks > 1 else {}
        about |= {"rank": place * job.ranks_each, "cluster": cluster}
        (run / LAUNCH).mkdir(parents=True, exist_ok=True)
        note(run, "queued", "chain", jobs={job.label: job_id}, **about)


def tasks_of(job: Job, job_id: str) -> list[str]:
    """Return the id of each task of an array, or of the job."""
    count = job.num_tasks
    return [f"{job_id}_{number}" for number in range(count)] if count > 1 else [job_id]


def submitted(job: Job, path: Path, known: Collection[str]) -> str:
    """Call sbatch with a script; returns the id of the job, which scontrol says is that script's.

    sbatch of a site may print more, even with numbers, or id;cluster. `known`: earlier jobs of the
    run. Raises UserError where Slurm refuses the job, StillQueuedError where its id is not told.
    """
    code, text = slurm_commands.ask("sbatch", "--parsable", str(path))
    if code:
        raise UserError(f"{job.label}: Slurm refuses the job: {slurm_commands.reason(text)}")
    numbers = re.findall(r"^\s*(\d+)(?:;\S*)?\s*$", text, re.MULTILINE)
    for number in dict.fromkeys([*numbers, *re.findall(r"\d+", text)]):
        # Before scontrol, which may take long: Slurm opens the logs as soon as the job starts
        folders = [path.parent / task for task in tasks_of(job, number)]
        made = [folder for folder in folders if not folder.exists()]
        for folder in made:
            folder.mkdir()
        with contextlib.suppress(UserError):  # no answer
            if any(is_of(path, task, known) for task in slurm_commands.show_tasks(number)):
                return number
        for folder in made:
            folder.rmdir()
    if listed := jobs_of(path, known):
        return listed[0]
    raise StillQueuedError(
        f"{job.label}: sbatch printed '{slurm_commands.last_line(text)}', and scontrol shows no job"
        f" with the script {path.name}, or with a log in {path.parent}; {LOOK}"
    )


def jobs_of(path: Path, known: Collection[str]) -> list[str]:
    """Return the ids of all jobs in the queue that have this script.

    Raises StillQueuedError where Slurm does not answer.
    """
    try:
        tasks = slurm_commands.show_all(tries=slurm_commands.TRIES)
    except UserError as error:
        raise StillQueuedError(f"whether a job was queued is not known: {error}; {LOOK}") from None
    found = {number_of(task) for task in tasks if is_of(path, task, known)}
    return sorted(found, key=int)


def is_of(path: Path, task: dict[str, str], known: Collection[str]) -> bool:
    """Return whether Slurm speaks of the job with this script, whose name no other has.

    Where a site hands on a copy of the script, its log tells, beside those of `known` jobs.
    """
    if Path(task.get("Command", "")).name == path.name:
        return True
    is_log_here = Path(task.get("StdOut", "")).parents[1:2] == (path.parent,)
    return is_log_here and slurm_commands.is_in_queue([task]) and number_of(task) not in known


def refuse_what_waits_for_ever(label: str, job_id: str) -> None:
    """Raise UserError where Slurm says of a queued job that it will never start as it is."""
    for task in slurm_commands.show_tasks(job_id):
        if task.get("JobState") == "PENDING" and (why := why_never(task)):
            raise UserError(
                f"{label}: Slurm would never start the job: {task['Reason']}: {why}; `python"
                " launch/doctor.py` shows the limits of the partition, `sacctmgr show assoc` and"
                " `sacctmgr show qos` those of accounts"
            )


def with_kept_config(arguments: dict[str, list[str]], code: Path) -> dict[str, list[str]]:
    """Return the arguments, with config= naming the snapshot's copy of the file."""
    return {
        stage: [
            f"config={code / KEPT_CONFIG}" if setting.startswith("config=") else setting
            for setting in given
        ]
        for stage, given in arguments.items()
    }


def take_snapshot(code: Path, config: str | None) -> None:
    """Copy the code into the run folder, so that days later a job runs what was submitted."""
    code.mkdir(parents=True)
    if config:
        shutil.copy(config, code / KEPT_CONFIG)
    for name in PACKAGES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, code / name)
    shutil.copytree(ROOT / "slurm", code / "slurm")


def record(
    run: Path, argv: Sequence[str], profile: Profile, ids: dict[str, str], prepare: Sequence[str]
) -> None:
    """Write submission.json, with the arguments of `prepare`; earlier submissions stay."""
    about = {
        "command": shlex.join(["python", "launch/submit.py", *argv]),
        "folder": str(Path.cwd()),
        "revision": git_revision(),
        "time_s": round(time.time(), 1),
        "profile": dataclasses.asdict(profile),
        "jobs": ids,
        "prepare": prepare,
    }
    write_submission(run, about)


def git_revision() -> str:
    """Return the commit of the code, marked -dirty where files differ from it; '' outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
