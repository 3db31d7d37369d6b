"""Ask Slurm, through its own commands."""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

TRIES, WAIT_S = 5, 3.0  # a busy controller answers late, or not the first time
COMMAND_TIMEOUT_S = 60


def is_here() -> bool:
    """Whether this machine can submit to a Slurm."""
    return shutil.which("sbatch") is not None


def ask(*command: str) -> tuple[int, str]:
    """Exit code and output (or error) of a command of Slurm's."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


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


def queue_states(jobs: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Job id -> state, nodes, reason and restarts of it, or of each task of an array.

    Jobs that ended a while ago are not in the queue any more, and not in the answer.
    """
    states = {}
    for job in jobs:
        code, text = ask("scontrol", "show", "job", "--oneliner", job)
        if code == 0 and text:
            tasks = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
            states[job] = [
                {
                    "state": task.get("JobState", "?"),
                    "nodes": task.get("NodeList", "").replace("(null)", ""),
                    "reason": task.get("Reason", "").replace("None", ""),
                    "restarts": task.get("Restarts", "0"),
                }
                for task in tasks
            ]
    return states


def accounted_states(jobs: Sequence[str]) -> dict[str, str]:
    """Job id -> final state, where the cluster keeps accounts (sacct); else empty."""
    if not jobs:
        return {}
    code, text = ask("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs))
    if code:
        return {}
    pairs = [line.split("|") for line in text.splitlines() if "|" in line]
    return {job.split("_")[0]: state.split()[0] for job, state in pairs if state}
