"""The Slurm job that a process belongs to."""

import os


def job_id() -> str:
    """Return the id of the job, or of the task of an array, for scontrol; '' outside Slurm.

    SLURM_JOB_ID is wrong for an array: its last task has the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
