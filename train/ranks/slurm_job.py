"""The Slurm job that a process belongs to, and the rank that it is in a step of the job."""

import os
import re
import shlex
import sys

from common.command_line import UsageError

FIRST_PORT, NUM_PORTS = 20000, 12000
"""Ports that systems give to nobody who asks for any, from 32768 on."""
NEXT_START, NEXT_STEP = 1009, 211  # how far the port moves


def job_id() -> str:
    """Return the id of the job, or of the task of an array, for scontrol; '' outside Slurm.

    SLURM_JOB_ID is wrong for an array: its last task has the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def restart_count() -> int:
    """Return how often Slurm has restarted the job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def become_rank() -> None:
    """Set what torchrun would have set for this task of a step; never keeps inherited values.

    The port differs at each start of the job: at the last one it may have been taken.
    """
    of_step = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    os.environ.update(
        {
            "RANK": os.environ.get("SLURM_PROCID", "0"),
            "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
            "WORLD_SIZE": str(num_tasks()),
            "MASTER_ADDR": first_host(of_step) or "127.0.0.1",
            "MASTER_PORT": str(meeting_port()),
        }
    )


def num_tasks() -> int:
    """Return how many tasks the step of this process has, 1 outside of steps.

    The script of a job has SLURM_NTASKS too, but is one process.
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def meeting_port() -> int:
    """Return the port where the ranks of this step meet: another one at the job's next start."""
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    moved = 31 * job + NEXT_START * restart_count() + NEXT_STEP * step
    return FIRST_PORT + moved % NUM_PORTS


def first_host(nodes: str) -> str:
    """Return the first name of a list of Slurm's, as in n[01-03,7],m4."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first[0]) if first else ""


def refuse_lone_tasks() -> None:
    """Raise UsageError in one of several tasks that do not know each other: each would train."""
    tasks = num_tasks()
    has_ranks = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if tasks == 1 or has_ranks:
        return
    module = getattr(sys.modules["__main__"].__spec__, "name", "").removesuffix(".__main__")
    given, each = sys.argv[1:], f"srun started {tasks} tasks of python -m {module}"
    if module != "train":
        one = shlex.join(["srun", "--ntasks=1", "python", "-m", module, *given])
        raise UsageError(f"{each}, each of which would do all of it; start one: {one}")
    runs = [setting.removeprefix("run=") for setting in given if setting.startswith("run=")]
    run = runs[-1] if runs else "runs/first"
    ranks = ["srun", f"--ntasks={tasks}", "python", "-m", "launch.job", "train", run]
    ranks += given if runs else [*given, f"run={run}"]
    raise UsageError(
        f"{each}, each of which would train by itself; to start them as ranks of one run:"
        f" {shlex.join(ranks)} (for trainings of their own, put env -u SLURM_STEP_NUM_TASKS before"
        " python)"
    )
