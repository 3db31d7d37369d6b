"""Answers of doctor.py: whether jobs come back on the cluster after preemption and time limit, and
what a job of seconds saw on its nodes."""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UsageError
from launch.cluster import containers, node_check, slurm_commands
from launch.cluster.encoders import without_cache
from launch.cluster.facts import Cluster, Partition
from launch.cluster.profiles import Profile

FINE, DOUBTFUL, FATAL = "fine", "doubtful", "FATAL"
SHM_NEEDED_GB = 1.0
IMMEDIATE_S, JOB_MIN, WAIT_S = 10, 5, 240
MOST_NAMES = 64
# Arguments of sbatch that choose nodes; srun takes them too
CHOOSING = ("exclude", "nodelist", "reservation", "gres", "mem-per-cpu", "mem-per-gpu", "licenses")
ON_CPUS = "ranks will compute on CPUs"
# As in on_exit.sh, which needs it: it may be beside srun, but not on this PATH
FIND_SCONTROL = (
    "scontrol=$(command -v scontrol >/dev/null ||"
    ' PATH=$PATH:$(dirname "$(readlink -f "$(command -v srun)")"); command -v scontrol)'
)


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    verdict: str
    question: str
    answer: str


def about_cluster(profile: Profile, cluster: Cluster, save_s: float) -> Iterator[Finding]:
    """Check what decides whether a preempted run comes back."""
    settings = cluster.settings
    yield Finding(FINE, "Slurm", f"{settings.get('SLURM_VERSION', '?')} answers")
    if settings.get("JobRequeue", "1").strip() == "1":
        yield Finding(FINE, "JobRequeue", "1: Slurm may requeue jobs")
    else:
        answer = "0: Slurm requeues only jobs with --requeue, which submit.py asks for"
        yield Finding(DOUBTFUL, "JobRequeue", answer)
    for name in profile.partition.split(","):
        if partition := cluster.partition(name):
            yield Finding(FINE, f"partition {partition.name}", partition.nodes or "no nodes")
            yield from about_preemption(partition, cluster, save_s)
    yield about_lead(profile, save_s)


def about_preemption(partition: Partition, cluster: Cluster, save_s: float) -> Iterator[Finding]:
    """Check what preemption does to the jobs of a partition, and whether the grace is enough."""
    mode, grace_s = partition.preempt_mode or "OFF", partition.grace_s
    if "SUSPEND" in mode:
        answer = (
            f"{mode}: a preempted job is stopped where it is, without a signal to save, and goes on"
            " later; its ranks keep their memory, on the GPUs too. That is no failure, but it waits"
            " for its own nodes; a partition with REQUEUE lets it go on anywhere"
        )
        yield Finding(DOUBTFUL, "PreemptMode", answer)
        return
    if mode == "CANCEL":
        answer = (
            "CANCEL: Slurm itself does not requeue a preempted job; the job's script asks for it"
        )
        yield Finding(DOUBTFUL, "PreemptMode", answer)
    else:
        yield Finding(FINE, "PreemptMode", mode)
    user_signal = "send_user_signal" in cluster.settings.get("PreemptParameters", "")
    after = f"{grace_s} s after SIGTERM" + (" and the user signal" if user_signal else "")
    if mode == "OFF" or grace_s >= save_s:
        answer = f"{after}; one step and one save take {save_s:g} s"
        yield Finding(FINE, "GraceTime", answer)
    else:
        answer = (
            f"{after}, but one step and one save take {save_s:g} s: preemption costs the steps"
            " since the last checkpoint (save_every_s=auto: those of about a minute)"
        )
        yield Finding(DOUBTFUL, "GraceTime", answer)


def about_lead(profile: Profile, save_s: float) -> Finding:
    """Check how long before the time limit the signal comes."""
    answer = f"{profile.signal_lead_s} s before the limit (Slurm may be a minute early)"
    if profile.signal_lead_s >= 2 * save_s:
        return Finding(FINE, "signal_lead_s", answer)
    return Finding(DOUBTFUL, "signal_lead_s", f"{answer}: less than two saves; raise it")


def about_shm(question: str, free_bytes: int) -> Finding:
    """Judge how much shared memory is free."""
    answer = f"{free_bytes / 1e9:.1f} GB free"
    if free_bytes >= 1e9 * SHM_NEEDED_GB:
        return Finding(FINE, question, answer)
    advice = "loader workers need it to pass images on; enlarge it, or use loader_workers=0"
    return Finding(DOUBTFUL, question, f"{answer}: {advice}")


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
        try:
            look = command(profile, project, Path(folder.name), names[:MOST_NAMES])
        except UsageError as error:
            yield Finding(FATAL, "image", str(error))
            return
        code, text = 1, ""
        for number in (2, 1) if len(names) > 1 else (1,):
            asked = ["srun", f"--nodes={number}", f"--ntasks={number}", *arguments(profile)]
            code, text = slurm_commands.ask(*asked, *look, timeout_s=WAIT_S)
            if code == 0:
                break
        written = {path.name for path in Path(folder.name).iterdir()}
    if code and "pyxis" in text:
        answer = f"does not start there: {slurm_commands.reason(text)}"
        yield Finding(FATAL, f"image {profile.image} on a node", answer)
        return
    if code:
        reason = slurm_commands.reason(text)
        yield Finding(DOUBTFUL, "a node", f"not looked at, no job can start at once: {reason}")
        return
    marked = [line for line in text.splitlines() if line.startswith(node_check.MARK)]
    if not marked:
        reason = slurm_commands.last_line(text)
        python = f"{profile.python or 'python3'} in {profile.image}"
        python = python if profile.image else profile.python or sys.executable
        answer = f"{python} does not start there: {reason}; put project and environment on a file"
        answer += " system that all nodes share, or load Python in setup:"
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


def command(profile: Profile, project: Path, folder: Path, names: list[str]) -> list[str]:
    """Return what srun starts on a node: the lines before a stage's program, then a look by the
    Python of the jobs, in their container. Raises UsageError for an image that cannot be used."""
    given = {"look": [f"data={project}"]}  # mounted in a container, as the folder is
    profile = without_cache(profile)  # which may not be there yet
    environment, has_gpus = profile.environment, bool(profile.gpus)
    start = containers.start_python(profile, environment, given, folder, has_gpus=has_gpus)
    words = ["-c", Path(node_check.__file__).read_text(), str(project), str(folder)]
    if profile.image and profile.container == containers.PYXIS:
        # srun itself starts the container, without a shell of the node's before it
        return [*shlex.split(start.python), *words, node_check.UNSEEN, *names]
    lines = [
        "exec 2>&1",
        *profile.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
        FIND_SCONTROL,
        f'{start.python} {shlex.join(words)} "$scontrol" {shlex.join(names)}',
        "true",  # what failed is read from the output
    ]
    return ["bash", "-c", "\n".join(lines)]


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
    if seen["scontrol"] is not None:
        answer = "found" if seen["scontrol"] else "not found"
        advice = "a job cannot have itself requeued; put it on PATH in setup:"
        yield finding(seen["scontrol"], FATAL, "scontrol", answer, advice)
    unresolved = seen["unresolved"]
    answer = f"unknown: {', '.join(unresolved)}" if unresolved else "are known"
    advice = "ranks on several nodes find each other by name; ask your administrators"
    yield finding(not unresolved, FATAL, "names of nodes", answer, advice)
    yield about_shm(f"/dev/shm on {seen['node']}", seen["shm"])
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
            f"the profile asks for {profile.gpus_per_node}; without GPUs that torch sees,"
            f" {ON_CPUS}; install a torch for the CUDA of the node",
        )


def is_seen(sees: bool) -> str:
    """Say whether a file is seen."""
    return "is seen" if sees else "is not seen"
