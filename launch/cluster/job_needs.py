"""What the jobs of a profile need of each node."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.command_line import counted
from launch.cluster.facts import Node, Partition
from launch.cluster.profiles import Profile


@dataclass(frozen=True)
class Asked:
    """What the job of a stage asks for."""

    stage: str
    least_nodes: int
    most_nodes: int
    tasks: int
    gpus: int


def asked_by(profile: Profile, stages: Sequence[str]) -> list[Asked]:
    """Return what each stage asks for; training, which asks for most, first.

    Runs that share a job ask for the CPUs of all, and for the GPUs of one.
    """
    least, most, tasks = profile.least_nodes, profile.most_nodes, profile.tasks_per_node
    every = [
        Asked("train", least, most, tasks * profile.pack, profile.gpus),
        Asked("prepare", 1, 1, 1, 0),
        Asked("evaluate", 1, 1, 1, min(1, profile.gpus)),
        Asked("compare", 1, 1, 1, 0),
    ]
    return [asked for asked in every if asked.stage in stages]


@dataclass(frozen=True)
class Need:
    """Something that each node of a job must have."""

    key: str
    asked: str
    """In words: 8 CPUs (2 ranks of cpus_per_task=4)."""
    amount: float
    has: Callable[[Node], float]
    """Returns how much of it a node has; infinity where Slurm does not tell."""
    change: Callable[[float], dict[str, Any]]
    """Returns what to ask for where nodes have this much."""
    hint: str = ""


def needs_of(
    profile: Profile, asked: Asked, partition: Partition, nodes: Sequence[Node]
) -> list[Need]:
    """Return what a job needs of each node."""
    needs = [cpus_needed(profile, asked, partition)]
    if asked.gpus:
        needs.append(gpus_needed(profile, asked, nodes))
    if mem_mb := int(profile.mem_gb * 1024):
        needs.append(
            Need(
                "mem_gb",
                f"{mem_mb} MB of memory",
                mem_mb,
                lambda node: at_most(node.memory_mb, partition.max_mem_mb),
                lambda most: {"mem_gb": math.floor(most / 1024 * 10) / 10 or most / 1024},
            )
        )
    return needs


def at_most(has: int, limit: int | None) -> float:
    """Return the smaller one; 0 of a node, and no limit, stand for infinity."""
    return min(has or math.inf, math.inf if limit is None else limit)


def cpus_needed(profile: Profile, asked: Asked, partition: Partition) -> Need:
    """Return the CPUs that a job needs of each node."""
    cpus, each = asked.tasks * profile.cpus_per_task, f"cpus_per_task={profile.cpus_per_task}"

    def change(most: float) -> dict[str, Any]:
        if most >= asked.tasks:
            return {"cpus_per_task": int(most) // asked.tasks}
        if most >= profile.tasks_per_node and asked.stage == "train":
            return {"pack": int(most) // profile.tasks_per_node, "cpus_per_task": 1}
        key = "gpus_per_node" if profile.gpus else "ranks_per_node"
        ranks = typed(profile.gpu_type, int(most)) if profile.gpus else int(most)
        return {key: ranks, "cpus_per_task": 1} if most >= 1 else {}

    text = f"{cpus} CPUs"
    if asked.tasks > 1:
        text += f" ({asked.tasks} ranks of {each})"
    return Need(
        "cpus_per_task",
        text,
        cpus,
        lambda node: at_most(node.cpus, partition.max_cpus_per_node),
        change,
    )


def gpus_needed(profile: Profile, asked: Asked, nodes: Sequence[Node]) -> Need:
    """Return the GPUs that a job needs of each node."""
    kind = profile.gpu_type
    totals: dict[str, int] = {}
    for node in nodes:
        for name, count in node.gpus.items():
            totals[name] = max(totals.get(name, 0), count)

    def change(most: float) -> dict[str, Any]:
        if most:
            return {"gpus_per_node": typed(kind, int(most))}
        other = max(totals, key=lambda name: totals[name], default="")
        return {"gpus_per_node": typed(other, min(profile.gpus, totals[other]))} if totals else {}

    hint = f"; types there are {', '.join(sorted(totals))}" if kind and any(totals) else ""
    text = counted(asked.gpus, "GPU") + (f" of type {kind}" if kind else "")
    return Need(
        "gpus_per_node",
        text,
        asked.gpus,
        lambda node: gpus_named(node, kind) if kind else node.num_gpus,
        change,
        hint,
    )


def typed(kind: str, count: int) -> int | str:
    """Return a number of GPUs as gpus_per_node takes it."""
    return f"{kind}:{count}" if kind else count


def gpus_named(node: Node, kind: str) -> int:
    """Return how many GPUs of a type a node has."""
    return sum(count for name, count in node.gpus.items() if name.lower() == kind.lower())


def has_features(node: Node, constraint: str) -> bool:
    """Return whether a node meets a constraint of names with | or with & between them.

    True for others, such as [a|b] or a*2, which are left to Slurm.
    """
    name = r"[\w.:/=-]+"
    if re.fullmatch(rf"{name}(\|{name})*", constraint):
        return any(feature in node.features for feature in constraint.split("|"))
    if re.fullmatch(rf"{name}(&{name})+", constraint):
        return all(feature in node.features for feature in constraint.split("&"))
    return True
