"""Queue the jobs of a chain, with a copy of the code that they run."""

import contextlib
import dataclasses
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile
from launch.job import Stage
from launch.job_requests import Job, script
from launch.record.events import JOBS, LAUNCH, note, write_submission

ROOT = Path(__file__).resolve().parents[1]
KEPT_CONFIG = "config.yaml"
# Reasons of a pending job that time does not heal (manual of squeue)
NEVER = re.compile(
    r"Partition(Time|Node)Limit|PartitionConfig|BadConstraints|Invalid(Account|QOS)"
    r"|(Account|QOS)NotAllowed|MaxMemPerLimit|(Assoc|QOS)Max\w*Per(Job|Node)\w*|QOSMin\w+"
)
PACKAGES = ("common", "data_prep", "model", "train", "launch")


def queue(run: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Queue the jobs, each after the one before; returns label -> job id.

    Raises UserError where Slurm refuses one, or would never start it, after cancelling all.
    """
    ids: dict[str, str] = {}
    try:
        for job in jobs:
            ids[job.label] = queue_one(run, job, list(ids.values())[-1] if ids else "")
        for label, job_id in ids.items():
            refuse_what_waits_for_ever(label, job_id)
    except (UserError, KeyboardInterrupt) as error:
        for queued in ids.values():
            slurm_commands.ask("scancel", queued)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"{error}; nothing is left in the queue") from None
    return ids


def queue_one(run: Path, job: Job, before: str) -> str:
    """Queue a job behind the job `before`, and note it; returns its id. Raises UserError."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = run / LAUNCH / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{job.label}-{uuid.uuid4().hex}.sh"
    path.write_text(script(run, job, before))
    pickles = []
    for number, given in enumerate(job.arguments):
        pickles.append(path.with_suffix(f".{number}.pkl"))
        call = DelayedSubmission(Stage(job.stage, str(run), given))
        call.set_timeout(job.parameters["time"], max_num_timeout=3)
        call.dump(pickles[-1])
    job_id = submitted(job, path)
    note(run, "queued", "chain", jobs={job.label: job_id})  # at once: this process may be killed
    for task, pickle in zip(tasks_of(job, job_id), pickles, strict=True):
        JobPaths(folder / "%j", task).move_temporary_file(pickle, "submitted_pickle")
    paths = JobPaths(folder / "%j", job_id)
    paths.move_temporary_file(path, "submission_file", keep_as_symlink=True)
    return job_id


def tasks_of(job: Job, job_id: str) -> list[str]:
    """Return the id of each task of an array, or of the job."""
    count = len(job.arguments)
    return [f"{job_id}_{number}" for number in range(count)] if count > 1 else [job_id]


def submitted(job: Job, path: Path) -> str:
    """Call sbatch with a script; returns the id of the job, of which scontrol says the same script.

    sbatch of a site may print more, even with numbers, or id;cluster. Raises UserError, after
    cancelling what was queued, where Slurm refuses the job or does not tell its id.
    """
    try:
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
                if any(is_of(path, task) for task in slurm_commands.show_tasks(number)):
                    return number
            for folder in made:
                folder.rmdir()
        if listed := jobs_of(path):
            return listed[0]
        raise UserError(
            f"{job.label}: sbatch printed '{slurm_commands.last_line(text)}', and scontrol shows no"
            f" job with the script {path.name}"
        )
    except (UserError, KeyboardInterrupt):
        for number in jobs_of(path):
            slurm_commands.ask("scancel", number)
        raise


def jobs_of(path: Path) -> list[str]:
    """Return the ids of all jobs in the queue that have this script."""
    tasks = slurm_commands.show_all()
    return sorted(
        {task.get("ArrayJobId") or task["JobId"] for task in tasks if is_of(path, task)}, key=int
    )


def is_of(path: Path, task: dict[str, str]) -> bool:
    """Return whether Slurm speaks of the job with this script, whose name no other has."""
    return Path(task.get("Command", "")).name == path.name


def refuse_what_waits_for_ever(label: str, job_id: str) -> None:
    """Raise UserError where Slurm says of a queued job that it will never start as it is."""
    for task in slurm_commands.show_tasks(job_id):
        reason = task.get("Reason", "")
        if task.get("JobState") == "PENDING" and NEVER.fullmatch(reason):
            raise UserError(
                f"{label}: Slurm would never start the job: {reason}; `python launch/doctor.py`"
                " shows the limits of the partition, `sacctmgr show assoc` and `sacctmgr show qos`"
                " those of accounts"
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
