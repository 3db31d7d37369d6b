"""Ask Slurm, through its own commands."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from common.command_line import UserError

# Variables of a shell that override what a script or a command says; jobs would inherit them too
OVERRIDING, KEPT = ("SBATCH_", "SRUN_", "SLURM_"), "SLURM_CONF"
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
TRIES, WAIT_S = 5, 3.0  # a busy controller answers late, or not the first time
COMMAND_TIMEOUT_S = 60


def is_here() -> bool:
    """Whether this machine can submit to a Slurm."""
    return shutil.which("sbatch") is not None


def ask(*command: str) -> tuple[int, str]:
    """Exit code and output (or error) of a command of Slurm's."""
    environment = {key: value for key, value in os.environ.items() if not is_overriding(key)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


def is_overriding(variable: str) -> bool:
    """Whether a variable of the environment changes what Slurm's commands do."""
    return variable.startswith(OVERRIDING) and variable != KEPT


def tell_unused() -> None:
    """Say which variables of this shell are not used, and where to put what they should do."""
    names = sorted(filter(is_overriding, os.environ))
    if job := os.environ.get("SLURM_JOB_ID"):  # dozens, which nobody has set
        names = [name for name in names if not name.startswith("SLURM_")]
        names.append(f"SLURM_* (of job {job})")
    if names:
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        print(
            f"{', '.join(names)} of your shell {are} not used: put {them} into the profile, as in"
            " partition: or sbatch_args:",
            file=sys.stderr,
        )


@contextlib.contextmanager
def overriding_nothing() -> Iterator[None]:
    """While this context lasts, the environment has nothing that overrides a script."""
    aside = {key: os.environ.pop(key) for key in list(os.environ) if is_overriding(key)}
    try:
        yield
    finally:
        os.environ.update(aside)


def show_job(job: str) -> dict[str, str]:
    """What `scontrol show job` says of a job or array task, asked again where it says nothing.

    Empty where Slurm does not answer at all: then nobody knows whether the job is to go on.
    """
    code, text = ask_again("scontrol", "show", "job", "--oneliner", job)
    return dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[0])) if code == 0 and text else {}


def show_config() -> dict[str, str]:
    """Slurm's own settings; empty where no controller answers."""
    code, text = ask("scontrol", "show", "config")
    return dict(re.findall(r"^(\w+)\s*= (.*)$", text, re.MULTILINE)) if code == 0 else {}


def show_partition(name: str) -> dict[str, str]:
    """The settings of a partition; empty where there is none of that name."""
    code, text = ask("scontrol", "show", "partition", "--oneliner", name)
    return dict(re.findall(r"(\w+)=(\S*)", text)) if code == 0 else {}


def requeue(job: str) -> str:
    """Ask for a job to be brought back, again where Slurm refuses; '' or its last refusal."""
    code, refusal = ask_again("scontrol", "requeue", job)
    return refusal if code else ""


def ask_again(*command: str) -> tuple[int, str]:
    """The same as `ask`, several times until it succeeds."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_S)
        code, text = ask(*command)
        if code == 0:
            break
    return code, text


def show_tasks(job: str) -> list[dict[str, str]]:
    """What `scontrol` says of a job, or of each task of an array; none where it has ended long ago.

    Raises UserError where Slurm does not answer: then nobody knows.
    """
    code, text = ask("scontrol", "show", "job", "--oneliner", job)
    if code and "Invalid job id" not in text:
        raise UserError(f"Slurm does not say how job {job} stands: {last_line(text)}")
    return [fields(line) for line in text.splitlines()] if code == 0 else []


def fields(line: str) -> dict[str, str]:
    """The values in a line of scontrol's; the script's path may hold spaces."""
    values = dict(re.findall(r"(\w+)=(\S*)", line))
    if command := re.search(r" Command=(.*?) WorkDir=", line):
        values["Command"] = command[1]
    return values


def last_line(text: str) -> str:
    """The last line of a message of Slurm's, which names the reason."""
    return text.strip().splitlines()[-1] if text.strip() else "no answer"


def accounted_states(jobs: Sequence[str]) -> dict[str, str]:
    """Job id -> final state, where the cluster keeps accounts (sacct); else empty."""
    if not jobs:
        return {}
    code, text = ask("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs))
    if code:
        return {}
    pairs = [line.split("|") for line in text.splitlines() if "|" in line]
    return {job.split("_")[0]: state.split()[0] for job, state in pairs if state}
