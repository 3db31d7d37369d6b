"""A profile that suits a cluster, with the reason for each value."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from common import plain_yaml
from common.command_line import counted
from launch.cluster import facts, profiles, slurm_commands
from launch.cluster.facts import Cluster, Node, Partition
from launch.cluster.limits import fatal, problems, shorter
from launch.cluster.profiles import DEFAULT, MINE, Profile, load_profile

PROFILE_HELP = (
    "settings of the cluster, slurm/NAME.yaml (slurm/mine.yaml if it is there, else what the"
    " cluster has; without Slurm slurm/default.yaml, on this machine with its GPUs)"
)
DEVICES = Path("/dev")
MOST_TIME_MIN = 720
CPUS_WITHOUT_GPUS, MOST_RANKS = 2, 8  # one computes, the other loads
LEAST_MB_PER_RANK = 4096


@dataclass(frozen=True)
class Value:
    """What a key should be, and why."""

    value: Any
    why: str


@dataclass(frozen=True)
class Suggestion:
    """Values for a profile, by key."""

    values: dict[str, Value]

    @property
    def settings(self) -> dict[str, Any]:
        """The values alone."""
        return {key: about.value for key, about in self.values.items()}

    @property
    def profile(self) -> Profile:
        """The profile of these values. Raises ValueError where they contradict each other."""
        return Profile(**self.settings)

    def as_yaml(self, cluster: str) -> str:
        """Return the file of a profile, each value with its reason."""
        lines = [f"# Found on the cluster {cluster} by `python launch/doctor.py --write-profile`."]
        lines.append("# slurm/template.yaml explains every key.")
        for key, about in self.values.items():
            setting = plain_yaml.dump({key: about.value}).strip()
            lines.append(f"{setting:<25} # {about.why}")
        return "\n".join(lines) + "\n"

    def in_words(self) -> str:
        """Return the values in one line."""
        return ", ".join(f"{key} {about.value}" for key, about in self.values.items())


def suggestions(cluster: Cluster, stages: Sequence[str], name: str = "") -> list[Suggestion]:
    """Return a profile for each partition that suits, the best first; `name`: for this one alone.

    With each of them the jobs of the stages can start, as far as the facts tell.
    """
    partitions = [
        partition
        for partition in cluster.partitions
        if (partition.name == name if name else partition.is_open and partition.is_up)
    ]
    ranked = sorted(partitions, key=lambda partition: rank(partition, cluster))
    found = [suggestion(partition, cluster) for partition in ranked]
    return [each for each in found if each and not fatal(problems(each.profile, stages, cluster))]


def best(stages: Sequence[str], name: str = "") -> Suggestion | None:
    """Look at the cluster; return the best suggestion that Slurm accepts from this user, or None.

    `name`: a partition to which to keep. Where Slurm accepts none at the moment: the best of all.
    """
    found = suggestions(facts.look(), stages, name)
    return next(filter(is_accepted, found), found[0] if found else None)


def is_accepted(found: Suggestion) -> bool:
    """Return whether Slurm would take such a job from this user: groups and accounts may differ."""
    profile = found.profile
    asked = [f"--partition={profile.partition}", f"--time={profile.time_min}", "--nodes=1"]
    asked += [f"--ntasks-per-node={profile.tasks_per_node}"]
    asked += [f"--cpus-per-task={profile.cpus_per_task}"]
    asked += [f"--gpus-per-node={profile.gpus_per_node}"] if profile.gpus else []
    return slurm_commands.ask("sbatch", "--test-only", *asked, "--wrap=true")[0] == 0


def rank(partition: Partition, cluster: Cluster) -> tuple[Any, ...]:
    """Return a key to sort by: GPUs, then preemption (jobs start soon there), then the default."""
    nodes = cluster.nodes_of(partition)
    return (
        not any(node.num_gpus for node in nodes),
        not is_preemptible(partition, cluster),
        not partition.is_default,
        -len(nodes),
        partition.name,
    )


def is_preemptible(partition: Partition, cluster: Cluster) -> bool:
    """Return whether jobs are preempted there, and not just suspended."""
    return cluster.is_preempted(partition) and "SUSPEND" not in partition.preempt_mode


def suggestion(partition: Partition, cluster: Cluster) -> Suggestion | None:
    """Return a profile for a partition; None where it has no nodes, or no time for a job."""
    listed = cluster.nodes_of(partition)
    nodes = [node for node in listed if not node.is_away()] or listed
    if not nodes:
        return None
    values = {"partition": Value(partition.name, why_there(partition, cluster))}
    kind, count, chosen = most_gpus(nodes)
    values["nodes"] = Value(1, f"up to {len(chosen)} suit; --nodes gives another number")
    cpus = min(node.cpus for node in chosen)
    if partition.max_cpus_per_node is not None:
        cpus = min(cpus, partition.max_cpus_per_node)
    if count:
        several = len({name for node in listed for name in node.gpus}) > 1
        gpus = min(count, max(cpus, 1))
        what = f"{counted(len(chosen), 'node')} of the partition have {count}"
        values["gpus_per_node"] = Value(f"{kind}:{gpus}" if several and kind else gpus, what)
        ranks, each = gpus, max(1, cpus // gpus)
        values["cpus_per_task"] = Value(each, f"the CPUs of a node ({cpus}) for each GPU")
    else:
        values["gpus_per_node"] = Value(0, "no node of the partition has GPUs")
        ranks = max(1, min(cpus // CPUS_WITHOUT_GPUS, MOST_RANKS))
        values["ranks_per_node"] = Value(ranks, f"from {cpus} CPUs of a node; {MOST_RANKS} at most")
        each = max(1, min(cpus, CPUS_WITHOUT_GPUS))
        values["cpus_per_task"] = Value(each, "one computes, the others load images")
    values |= memory(partition, chosen, ranks, each) | times(partition)
    try:
        found = Suggestion(values)
        found.profile  # noqa: B018
    except ValueError:  # MaxTime leaves no time for the signal before it
        return None
    return found


def why_there(partition: Partition, cluster: Cluster) -> str:
    """Say why this partition."""
    reasons = []
    if any(node.num_gpus for node in cluster.nodes_of(partition)):
        reasons.append("it has GPUs")
    if is_preemptible(partition, cluster):
        grace = f"GraceTime {partition.grace_s} s"
        reasons.append(
            f"jobs are preempted ({partition.preempt_mode}, {grace}), so they start soon"
        )
    if partition.is_default:
        reasons.append("it is the default")
    others = [other.name for other in cluster.partitions if other.name != partition.name]
    text = "; ".join(reasons) or "it suits"
    return text + (f"; others are {', '.join(others)}" if others else "")


def most_gpus(nodes: Sequence[Node]) -> tuple[str, int, list[Node]]:
    """Return the type and number of GPUs of which nodes have most, and the nodes with as many."""
    totals: Counter[tuple[str, int]] = Counter()
    for node in nodes:
        for kind, count in node.gpus.items():
            totals[kind, count] += count
    if not totals:
        return "", 0, list(nodes)
    kind, count = max(totals, key=lambda entry: (totals[entry], entry[1], entry[0]))
    return kind, count, [node for node in nodes if node.gpus.get(kind, 0) >= count]


def memory(partition: Partition, nodes: Sequence[Node], ranks: int, cpus: int) -> dict[str, Value]:
    """Return mem_gb where the partition's default would be too little for the ranks."""
    default = partition.default_mem_mb
    if default is None and partition.default_mem_per_cpu_mb is not None:
        default = partition.default_mem_per_cpu_mb * cpus * ranks
    if default is None or default >= LEAST_MB_PER_RANK * ranks:
        return {}
    share = min(node.memory_mb * min(1, ranks * cpus / max(1, node.cpus)) for node in nodes)
    most = math.inf if partition.max_mem_mb is None else partition.max_mem_mb
    wanted_gb = math.floor(min(share, most) / 1024)
    if wanted_gb * 1024 <= default:
        return {}
    why = f"the default, {default} MB, is little for {counted(ranks, 'rank')}; their part of a node"
    return {"mem_gb": Value(wanted_gb, why)}


def times(partition: Partition) -> dict[str, Value]:
    """Return the time limit, and the signal before it."""
    most = partition.max_time_min
    if most is None or most >= MOST_TIME_MIN:
        allowed = "no MaxTime" if most is None else f"MaxTime is {most}"
        time_min = Value(MOST_TIME_MIN, f"minutes; {allowed}; at the limit it is requeued")
        return {"time_min": time_min}
    found = {"time_min": Value(most, "minutes; MaxTime; at the limit the job is requeued")}
    change = shorter(Profile(), most)
    if lead_s := change.get("signal_lead_s"):
        found["signal_lead_s"] = Value(lead_s, "seconds before the limit at which it saves")
    return found


def choose_profile(
    name: str, flags: dict[str, Any], stages: Sequence[str], *, on_slurm: bool
) -> tuple[Profile, str]:
    """Return the profile to use, and a line about it if the user did not name it.

    Without a name: slurm/mine.yaml if it is there, else what suits the cluster. Without Slurm it is
    the default one; not `on_slurm`, with the GPUs of this machine. Flags come last. Raises
    UsageError.
    """
    if name:
        return load_profile(name, flags), ""
    if not on_slurm:
        return load_profile(DEFAULT, {"gpus_per_node": gpus_here()} | flags), ""
    if (profiles.PROFILES / f"{MINE}.yaml").is_file():
        return load_profile(MINE, flags), f"no --profile given: slurm/{MINE}.yaml is used"
    if not slurm_commands.is_here():
        told = f"no --profile given, and no Slurm on this machine (no sbatch): {DEFAULT} is used"
        return load_profile(DEFAULT, flags), told
    if not (found := best(stages, flags.get("partition", ""))):
        told = f"no --profile given, and Slurm shows no partition that suits: {DEFAULT} is used"
        return load_profile(DEFAULT, flags), told
    told = f"no --profile given, but the cluster has: {found.in_words()}"
    told += "; `python launch/doctor.py --write-profile` keeps this as a file"
    return load_profile("", found.settings | flags), told


def gpus_here() -> int:
    """Return the number of NVIDIA's GPUs on this machine, of those that the user's shell names.

    torch also knows those of ROCm and WSL, but takes seconds to be loaded.
    """
    there = len([path for path in DEVICES.glob("nvidia*") if path.name[6:].isdecimal()])
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return there
    # CUDA takes none from the first that is no GPU
    names = takewhile(lambda name: name.strip() not in ("", "-1"), named.split(","))
    return min(len([*names]), there)
