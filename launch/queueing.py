"""Queue the jobs of a chain, with a copy of the code that they run."""

import dataclasses
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile
from launch.job import Stage
from launch.job_requests import Job, after, too_large
from launch.record.events import JOBS, LAUNCH, note, write_submission

ROOT = Path(__file__).resolve().parents[1]
KEPT_CONFIG = "config.yaml"
PACKAGES = ("common", "data_prep", "model", "train", "launch")


def queue(run: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Queue the jobs, each after the one before; returns label -> job id.

    Raises UserError where Slurm refuses one, after cancelling those before it.
    """
    from submitit.core.utils import FailedJobError

    ids: dict[str, str] = {}
    for job in jobs:
        try:
            with slurm_commands.overriding_nothing():
                ids[job.label] = queue_one(run, job, list(ids.values())[-1] if ids else "")
        except (FailedJobError, KeyboardInterrupt) as error:
            for queued in ids.values():
                slurm_commands.ask("scancel", queued)
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = slurm_commands.last_line(str(error))
            raise UserError(
                f"{job.label}: Slurm refuses the job: {reason}{too_large(job, reason)}; queued none"
            ) from None
    return ids


def queue_one(run: Path, job: Job, before: str) -> str:
    """Queue a job behind the job `before`, and note it; returns its id."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder=run / LAUNCH / JOBS / "%j")
    executor.update_parameters(**job.parameters, **after(before))
    calls = [Stage(job.stage, str(run), given) for given in job.arguments]
    if len(calls) == 1:
        queued = executor.submit(calls[0])
    else:
        with executor.batch():
            tasks = [executor.submit(call) for call in calls]
        queued = tasks[0]
    job_id = str(queued.job_id).split("_")[0]
    note(run, "queued", "chain", jobs={job.label: job_id})  # at once: this process may be killed
    return job_id


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
