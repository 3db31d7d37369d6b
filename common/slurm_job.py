"""The Slurm job that a process belongs to."""

import os


def job_id() -> str:
    """The job, or the task of an array, as scontrol knows it; '' outside Slurm.

    SLURM_JOB_ID will not do for an array: its last task has the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
