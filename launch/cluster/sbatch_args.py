"""Arguments of sbatch and srun that a profile adds: which are refused, which are about GPUs."""

import re
from collections.abc import Sequence

GPUS = "gpus_per_node:, as in 2 or a100:2"
RANKS = "gpus_per_node:, or ranks_per_node: without GPUs"
LOGS = "run=; the logs are in RUN/launch/jobs"
CHAIN = "--stages; each job waits for the one before"
COME_BACK = "retries:; after preemption or the time limit a job always comes back"
STATUS = "python launch/jobs.py status RUN"
# Argument that Eosin gives to sbatch or srun itself -> what to use instead
OF_BOTH = {
    **{name: f"{name}:" for name in ("account", "partition", "qos", "constraint")},
    "nodes": "nodes:, or the flag --nodes",
    **dict.fromkeys(("gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket"), GPUS),
    **dict.fromkeys(("tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task"), GPUS),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-core"), RANKS),
    **dict.fromkeys(("ntasks-per-gpu", "ntasks-per-socket"), RANKS),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus_per_task:"),
    "mincpus": "cpus_per_task:",
    "mem": "mem_gb:",
    "time": "time_min:",
    "signal": "signal_lead_s:",
    **dict.fromkeys(("requeue", "no-requeue"), COME_BACK),
    **dict.fromkeys(("export", "export-file"), "environment:"),
    **dict.fromkeys(("get-user-env", "wrap"), "setup:"),
    "chdir": "setup:; jobs run in the run's copy of the code",
    "job-name": "run=; jobs are named after their stage",
    **dict.fromkeys(("output", "error", "open-mode"), LOGS),
    "clusters": "SLURM_CONF, which names the cluster",
    **dict.fromkeys(("help", "usage", "version"), "man sbatch"),
}
OF_SBATCH = {
    "array": "prep_jobs:",
    **dict.fromkeys(("dependency", "kill-on-invalid-dep"), CHAIN),
    "test-only": "the flag --dry-run",
    **dict.fromkeys(("wait", "parsable", "quiet"), STATUS),
}
# srun takes the last of several: a profile's arguments come after Eosin's
OF_SRUN = {"kill-on-bad-exit": "retries:; ranks cannot go on without one that failed"}
REFUSED = {"sbatch_args": OF_BOTH | OF_SBATCH, "srun_args": OF_BOTH | OF_SRUN}
"""Key of a profile -> what it may not hold."""
EXAMPLES = {"sbatch_args": "--exclude=n3", "srun_args": "--mpi=pmix"}


def parse(key: str, arguments: Sequence[str]) -> dict[str, str]:
    """Return name -> value ('' for none) of each argument under a key of a profile.

    Raises ValueError for a refused one. Slurm accepts a shortened name too: --part=high would
    change the partition.
    """
    parsed = {}
    for argument in arguments:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.+))?", argument)
        if match is None:
            raise ValueError(
                f"{key}: '{argument}': expected --name or --name=value, as in {EXAMPLES[key]}; in"
                " quotes where it holds a comma"
            )
        name, value = match.groups(default="")
        for refused, instead in REFUSED[key].items():
            if refused.startswith(name):
                raise ValueError(f"{key}: {argument}: Eosin sets --{refused}; use {instead}")
        parsed[name] = value
    return parsed


def without_gpus(arguments: dict[str, str]) -> dict[str, str]:
    """Return the arguments for a job that asks for no GPUs."""
    left = {name: value for name, value in arguments.items() if "gpu" not in name}
    if "gres" in left:
        parts = [part for part in left.pop("gres").split(",") if not is_gpu(part)]
        left |= {"gres": ",".join(parts)} if parts else {}
    return left


def gres_gpus(arguments: dict[str, str]) -> int:
    """Return how many GPUs per node --gres asks for."""
    parts = [part for part in arguments.get("gres", "").split(",") if is_gpu(part)]
    counts = [re.search(r":(\d+)(?:\(.*\))?$", part) for part in parts]
    return sum(int(count[1]) if count else 1 for count in counts)


def is_gpu(part: str) -> bool:
    """Return whether an entry of --gres asks for GPUs, as gpu:a100:2 does."""
    return part.split(":")[0].removeprefix("gres/") == "gpu"
