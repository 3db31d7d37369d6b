"""Answers of doctor.py about nodes: what a job of seconds saw there."""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.cluster import node_check, slurm_commands
from launch.cluster.facts import Cluster
from launch.cluster.findings import DOUBTFUL, FATAL, FINE, Finding
from launch.cluster.profiles import Profile

SHM_NEEDED_GB = 1.0
IMMEDIATE_S, JOB_MIN, WAIT_S = 10, 5, 240
MOST_NAMES = 64
# Arguments of sbatch that choose nodes; srun takes them too
CHOOSING = ("exclude", "nodelist", "reservation", "gres", "mem-per-cpu", "mem-per-gpu", "licenses")


def about_nodes(
    profile: Profile, cluster: Cluster, project: Path, shared: Path
) -> Iterator[Finding]:
    """Run a job of seconds on two nodes, or on one, if it can start at once."""
    partition = cluster.partition(profile.partition.split(",")[0])
    names = [node.name for node in cluster.nodes_of(partition)] if partition else []
    try:
        folder = tempfile.TemporaryDirectory(prefix=".eosin-doctor-", dir=shared)
    except OSError:
        return  # not writable, which is said of this machine
    with folder:
        look = command(profile, project, Path(folder.name), names[:MOST_NAMES])
        code, text = 1, ""
        for number in (2, 1) if len(names) > 1 else (1,):
            asked = ["srun", f"--nodes={number}", f"--ntasks={number}", *arguments(profile)]
            code, text = slurm_commands.ask(*asked, "bash", "-c", look, timeout_s=WAIT_S)
            if code == 0:
                break
        written = {path.name for path in Path(folder.name).iterdir()}
    if code:
        reason = slurm_commands.reason(text)
        yield Finding(DOUBTFUL, "a node", f"not looked at, no job can start at once: {reason}")
        return
    marked = [line for line in text.splitlines() if line.startswith(node_check.MARK)]
    if not marked:
        reason = slurm_commands.last_line(text)
        answer = f"{sys.executable} does not start there: {reason}; put project and environment on"
        answer += " a file system that all nodes share, or load Python in setup:"
        yield Finding(FATAL, "Python on a node", answer)
        return
    for line in marked:
        seen = json.loads(line.removeprefix(node_check.MARK))
        seen["shared"] = seen["shared"] and seen["node"] in written
        yield from about_node(seen, profile, project, shared)


def arguments(profile: Profile) -> list[str]:
    """Return the arguments of srun for a short job on nodes like those of training."""
    given = profile.sbatch_arguments
    asked = {name: getattr(profile, name) for name in ("partition", "account", "qos", "constraint")}
    asked |= {name: given[name] for name in CHOOSING if name in given}
    if profile.gpus and "gres" not in given:
        asked["gpus-per-node"] = str(profile.gpus_per_node)
    if profile.mem_gb:
        asked["mem"] = f"{int(profile.mem_gb * 1024)}M"
    asked |= {"time": str(min(profile.time_min, JOB_MIN)), "immediate": str(IMMEDIATE_S)}
    asked |= {"cpus-per-task": str(profile.cpus_per_task), "job-name": "eosin-doctor"}
    return [f"--{name}={value}" for name, value in asked.items() if value]


def command(profile: Profile, project: Path, folder: Path, names: list[str]) -> str:
    """Return the lines of shell of the job: those before a stage's program, then the look."""
    words = [sys.executable, "-c", Path(node_check.__file__).read_text(), str(project), str(folder)]
    lines = [
        *profile.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()),
        shlex.join([*words, *names]),
        "true",  # what failed is read from the output
    ]
    return "exec 2>&1\n" + "\n".join(lines)


def about_node(
    seen: dict[str, Any], profile: Profile, project: Path, shared: Path
) -> Iterator[Finding]:
    """Judge what the job saw on a node."""

    def finding(is_good: bool, bad: str, question: str, answer: str, advice: str) -> Finding:
        verdict = FINE if is_good else bad
        said = answer if is_good else f"{answer}: {advice}"
        return Finding(verdict, f"{question} on {seen['node']}", said)

    shares = "put it on a file system that all nodes share"
    yield finding(seen["project"], FATAL, str(project), is_seen(seen["project"]), shares)
    answer = "is shared and writable" if seen["shared"] else "is not shared, or not writable"
    yield finding(seen["shared"], FATAL, f"folder for runs {shared}", answer, shares)
    missing = ", ".join(seen["missing"])
    torch = f"torch {seen['torch']}" if seen["torch"] else seen["error"]
    answer = f"{seen['python']} with {torch}" + (f", without {missing}" if missing else "")
    has_all = bool(seen["torch"]) and not missing
    advice = "install what environment.yml lists for this Python"
    yield finding(has_all, FATAL, "Python", answer, advice)
    answer = "found" if seen["scontrol"] else "not found"
    advice = "a job cannot have itself requeued; put it on PATH in setup:"
    yield finding(seen["scontrol"], FATAL, "scontrol", answer, advice)
    unresolved = seen["unresolved"]
    answer = f"unknown: {', '.join(unresolved)}" if unresolved else "are known"
    advice = "ranks on several nodes find each other by name; ask your administrators"
    yield finding(not unresolved, FATAL, "names of nodes", answer, advice)
    shm_gb = seen["shm"] / 1e9
    advice = "loader workers need it to pass images on; enlarge it, or use loader_workers=0"
    yield finding(shm_gb >= SHM_NEEDED_GB, DOUBTFUL, "/dev/shm", f"{shm_gb:.1f} GB free", advice)
    answer = f"{seen['cores']} for a task"
    advice = f"the profile asks for cpus_per_task={profile.cpus_per_task}"
    enough = seen["cores"] >= profile.cpus_per_task
    yield finding(enough, DOUBTFUL, "cores", answer, advice)
    if profile.gpus and seen["torch"]:
        answer = f"torch sees {seen['gpus']}, {'with' if seen['nccl'] else 'without'} NCCL"
        yield finding(
            seen["gpus"] >= profile.gpus and seen["nccl"],
            FATAL if seen["gpus"] else DOUBTFUL,
            "GPUs",
            answer,
            f"the profile asks for {profile.gpus_per_node}; without GPUs that torch sees, ranks"
            " compute on CPUs; install a torch for the CUDA of the node",
        )


def is_seen(sees: bool) -> str:
    """Say whether a file is seen."""
    return "is seen" if sees else "is not seen"
