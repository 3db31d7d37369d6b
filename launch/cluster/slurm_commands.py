"""Questions to Slurm, through its own commands."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from common.command_line import UserError

# Variables of the submitter's shell that would change what a job is, or what a command answers.
# sbatch would hand them on to the job, with the rest of the shell's environment.
KEPT = "SLURM_CONF"
OF_REQUESTS = ("SBATCH_", "SALLOC_")
OF_JOBS = ("SLURM_", "SLURMD_", "SRUN_", "PYXIS_CONTAINER_")  # Slurm sets some in its jobs
OF_QUERIES = ("SQUEUE_", "SCONTROL_", "SINFO_", "SACCT_", "SCANCEL_")
OF_LAUNCHERS = ("TORCHELASTIC_", "PET_", "PMI", "OMPI_", "MPI_LOCAL", "MV2_COMM_", "SUBMITIT_")
OF_RANKS = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK"),
)
OF_GPUS = (
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
)
OF_CONTAINERS = ("APPTAINER_CLEANENV", "SINGULARITY_CLEANENV")  # a rank would not know its number
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
UNKNOWN = re.compile("Invalid job id|already completing or completed")
TRIES, WAIT_S = 5, 3.0  # a busy controller answers late, or not the first time
COMMAND_TIMEOUT_S = 60


def is_here() -> bool:
    """Return whether this machine can submit to a Slurm."""
    return shutil.which("sbatch") is not None


def ask(*command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[int, str]:
    """Run a command of Slurm's; returns its exit code, and its output or error."""
    try:
        done = subprocess.run(
            command, env=inherited(), capture_output=True, text=True, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


def is_overriding(variable: str) -> bool:
    """Return whether an environment variable changes what Slurm's commands or jobs do."""
    prefixes = OF_REQUESTS + OF_JOBS + OF_QUERIES + OF_LAUNCHERS
    names = OF_RANKS + OF_GPUS + OF_CONTAINERS
    return variable in names or (variable.startswith(prefixes) and variable != KEPT)


def inherited(keep: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of this shell without what is overriding, except for `keep`."""
    return {
        name: value for name, value in os.environ.items() if name in keep or not is_overriding(name)
    }


def set_by_hand() -> list[str]:
    """Return the names of overriding variables that a user has set, not Slurm or a launcher."""
    is_in_job, is_launched = "SLURM_JOB_ID" in os.environ, "TORCHELASTIC_RUN_ID" in os.environ
    prefixes = OF_REQUESTS + (() if is_in_job else OF_JOBS) + (() if is_launched else ("PET_",))
    names = OF_CONTAINERS + (() if is_in_job else OF_GPUS) + (() if is_launched else OF_RANKS)
    given = filter(is_overriding, os.environ)
    return sorted(name for name in given if name in names or name.startswith(prefixes))


def warn_of_unused_variables() -> None:
    """Print which variables of this shell are ignored, and where their values belong."""
    if names := set_by_hand():
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        print(
            f"{', '.join(names)} of your shell {are} ignored; put {them} into the profile, for"
            " example under partition:, sbatch_args: or environment:",
            file=sys.stderr,
        )


def show_config() -> dict[str, str]:
    """Return Slurm's own settings; {} where no controller answers."""
    code, text = ask("scontrol", "show", "config")
    return dict(re.findall(r"^(\w+)\s*= (.*)$", text, re.MULTILINE)) if code == 0 else {}


def cluster_name() -> str:
    """Return the name of the cluster that answers here; '' where none does."""
    return show_config().get("ClusterName", "").strip()


def show_tasks(job: str) -> list[dict[str, str]]:
    """Return what `scontrol` says of a job, or of each task of an array; [] once forgotten.

    Raises UserError where Slurm does not answer: then nobody knows.
    """
    code, text = ask("scontrol", "show", "job", "--oneliner", job)
    if code and not UNKNOWN.search(text):
        raise UserError(f"Slurm does not tell the state of job {job}: {last_line(text)}")
    return [fields(line) for line in text.splitlines()] if code == 0 else []


def show_all(tries: int = 1) -> list[dict[str, str]]:
    """Return what `scontrol` says of every job, also in partitions that it would hide.

    Raises UserError where Slurm does not answer.
    """
    code, text = 1, ""
    for attempt in range(tries):
        if attempt:
            time.sleep(WAIT_S)
        code, text = ask("scontrol", "show", "job", "--oneliner", "--all")
        if code == 0:
            return [fields(line) for line in text.splitlines() if line.startswith("JobId=")]
    raise UserError(f"Slurm does not tell the states of its jobs: {last_line(text)}")


def fields(line: str) -> dict[str, str]:
    """Parse a line of scontrol's output.

    From the script on there are paths, a comment and the like, which may hold anything.
    """
    facts, command, rest = line.partition(" Command=")
    values = dict(re.findall(r"(\w+)=(\S*)", facts))
    if command:
        values["Command"] = re.split(r" (?:SubmitLine|WorkDir)=", rest)[0]
        if out := re.search(r" StdOut=(.*?)(?= \w+=|\s*$)", rest):
            values["StdOut"] = out[1]
    return values


def cancel(jobs: Sequence[str]) -> list[str]:
    """Cancel jobs, the last one first; returns those of which Slurm does not confirm it."""
    left = list(reversed(jobs))
    for attempt in range(TRIES):
        if attempt and left:
            time.sleep(WAIT_S)
        left = [job for job in left if not is_cancelled(job)]
    return left


def is_cancelled(job: str) -> bool:
    """Ask once to cancel a job; returns whether Slurm has done it, or the job has ended."""
    code, text = ask("scancel", job)
    if code == 0 or UNKNOWN.search(text):
        return True
    try:  # a busy controller may have done it all the same
        return not is_in_queue(show_tasks(job))
    except UserError:
        return False


def is_in_queue(tasks: Sequence[dict[str, str]]) -> bool:
    """Return whether a job, or a task of an array, has not ended for good."""
    return any(task.get("JobState") not in ENDED for task in tasks)


def reason(text: str) -> str:
    """Return why Slurm refuses something, from all that it and a site's wrappers print."""
    errors = [
        line for line in text.splitlines() if re.search(r"error: |allocation failure: ", line)
    ]
    return last_line(errors[-1] if errors else text)


def last_line(text: str) -> str:
    """Return the last line of a message of Slurm's, which names the reason."""
    return text.strip().splitlines()[-1] if text.strip() else "no answer"


def accounted_states(jobs: Sequence[str]) -> dict[str, str]:
    """Return job id -> final state where the cluster keeps accounts (sacct), else {}."""
    if not jobs:
        return {}
    code, text = ask("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs))
    if code:
        return {}
    pairs = [line.split("|") for line in text.splitlines() if "|" in line]
    return {job.split("_")[0]: state.split()[0] for job, state in pairs if state}
