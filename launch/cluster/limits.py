"""Why jobs of a profile could not start on a cluster, and what could.

Slurm queues many a job that it can never start, and leaves it pending.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.cluster.facts import Cluster, Node, Partition
from launch.cluster.job_needs import Asked, asked_by, has_features, needs_of
from launch.cluster.profiles import SIGNAL_EARLY_S, Profile

MOST_CHANGES = 8


@dataclass(frozen=True)
class Problem:
    """Why a job would not start."""

    key: str
    """Key of the profile that asks for too much."""
    text: str
    change: dict[str, Any] = field(default_factory=dict)
    """Key -> value that the partition allows; empty where nobody can tell."""
    is_fatal: bool = True
    """Whether nothing but another request mends it."""
    is_away: bool = False
    """Whether nodes are down at the moment. Slurm's words for that are those for no such node."""

    @property
    def weight(self) -> tuple[bool, bool]:
        """How much it matters, beside others of its key."""
        return self.is_fatal, self.is_away


def problems(profile: Profile, stages: Sequence[str], cluster: Cluster) -> list[Problem]:
    """Return why the jobs of these stages would not start, one problem a key at most.

    Several partitions with commas between them are as good as the best of them. Returns [] where
    no controller answers.
    """
    if not cluster.partitions:
        return []
    found = []
    for name in profile.partition.split(","):
        partition = cluster.partition(name)
        if partition is None:
            return [unknown_partition(name, cluster)]
        each: dict[str, Problem] = {}
        for asked in asked_by(profile, stages):
            for problem in in_partition(profile, asked, partition, cluster):
                if problem.key not in each or problem.weight > each[problem.key].weight:
                    each[problem.key] = problem
        found.append(list(each.values()))
    return min(found, key=lambda listed: (len(fatal(listed)), len(listed)))


def unknown_partition(name: str, cluster: Cluster) -> Problem:
    """Say that a partition is unknown, or that there is no default one."""
    known = ", ".join(partition.name for partition in cluster.partitions)
    if name:
        return Problem("partition", f"partition={name}: not on this cluster, which has {known}")
    return Problem("partition", f"partition: this cluster has no default; it has {known}")


def in_partition(
    profile: Profile, asked: Asked, partition: Partition, cluster: Cluster
) -> Iterator[Problem]:
    """Yield what keeps a job from starting in a partition: first its limits, then its nodes."""
    name = partition.name
    if not partition.is_up:
        text = f"partition={name}: starts no jobs, its state is {partition.state}"
        # sbatch refuses jobs of the other states
        is_queued = partition.state == "DOWN"
        if is_queued:
            text += " at the moment; the job waits until it is up"
        yield Problem("partition", text, is_fatal=not is_queued)
    by_qos = f", unless qos={profile.qos} allows more" if profile.qos else ""
    most_min = partition.max_time_min
    if most_min is not None and profile.time_min > most_min:
        text = f"time_min={profile.time_min}: partition {name} allows {most_min} (MaxTime)"
        yield Problem("time_min", text + by_qos, shorter(profile, most_min), not profile.qos)
    if asked.most_nodes < partition.min_nodes:
        text = (
            f"nodes={asked.most_nodes}: partition {name} is for {partition.min_nodes} nodes and"
            f" more (MinNodes), and {asked.stage} asks for fewer"
        )
        yield Problem(
            "nodes", text, {"nodes": partition.min_nodes} if asked.stage == "train" else {}
        )
    most = partition.max_nodes
    if most is not None and asked.most_nodes > most:
        text = f"nodes={profile.nodes}: partition {name} allows {most} (MaxNodes){by_qos}"
        yield too_many_nodes(profile, asked, most, text, is_sure=not profile.qos)
        asked = dataclasses.replace(
            asked, least_nodes=min(asked.least_nodes, most), most_nodes=most
        )
    nodes = cluster.nodes_of(partition)
    if nodes and len(nodes) >= partition.num_nodes:  # else some are hidden: nobody can tell
        yield from on_nodes(profile, asked, partition, nodes)


def shorter(profile: Profile, most_min: int) -> dict[str, Any]:
    """Return the change to a shorter time limit, with a signal that still fits into it."""
    most_lead_s = (60 * most_min - SIGNAL_EARLY_S) // 2
    if most_lead_s < 1:
        return {}
    change = {"time_min": most_min}
    if profile.signal_lead_s + SIGNAL_EARLY_S >= 60 * most_min:
        change["signal_lead_s"] = most_lead_s
    return change


def too_many_nodes(
    profile: Profile, asked: Asked, most: int, text: str, *, is_sure: bool = True
) -> Problem:
    """Return the problem of a job that gets `most` nodes: of a range, Slurm starts it on fewer."""
    if asked.least_nodes <= most:
        text += f"; {asked.stage} starts on {most} at most"
        return Problem("nodes", text, is_fatal=False)
    return Problem("nodes", text, fewer(profile, most), is_fatal=is_sure)


def fewer(profile: Profile, most: int) -> dict[str, Any]:
    """Return the change to fewer nodes; a range stays one where its least fits."""
    if most < 1:
        return {}
    is_range = profile.least_nodes < min(most, profile.most_nodes)
    return {"nodes": f"{profile.least_nodes}-{most}" if is_range else most}


def on_nodes(
    profile: Profile, asked: Asked, partition: Partition, nodes: Sequence[Node]
) -> Iterator[Problem]:
    """Yield why no nodes of a partition hold a job, whether ever or at the moment."""
    where = f"partition {partition.name}"
    with_features = [node for node in nodes if has_features(node, profile.constraint)]
    if not with_features:
        known = ", ".join(sorted({name for node in nodes for name in node.features})) or "none"
        text = f"no node of {where} has that; features there are {known}"
        yield Problem("constraint", f"constraint={profile.constraint}: {text}", {"constraint": ""})
        return
    needs = needs_of(profile, asked, partition, with_features)
    short = [need for need in needs if max(map(need.has, with_features)) < need.amount]
    for need in short:
        most = max(map(need.has, with_features))
        text = f"{need.key}={getattr(profile, need.key)}: {asked.stage} asks for {need.asked} per"
        text += f" node, and nodes of {where} have {most:g} at most{need.hint}"
        yield Problem(need.key, text, need.change(most))
    if short:
        return
    fitting = [
        node for node in with_features if all(need.has(node) >= need.amount for need in needs)
    ]
    free = [node for node in fitting if not node.is_away(profile.reservation)]
    if len(free) < asked.least_nodes <= len(fitting):
        text = (
            f"nodes={profile.nodes}: {len(fitting) - len(free)} of the {len(fitting)} nodes of"
            f" {where} that {asked.stage} fits on are down, drained or reserved at the moment; the"
            " job waits for them"
        )
        yield Problem("nodes", text, is_fatal=False, is_away=True)
    elif len(fitting) < asked.most_nodes:
        listed = " and ".join(need.asked for need in needs)
        text = f"nodes={profile.nodes}: {asked.stage} asks for {listed} per node, and"
        text += f" {len(fitting)} of the nodes of {where} have that"
        if profile.constraint:
            text += f" and constraint={profile.constraint}"
        yield too_many_nodes(profile, asked, len(fitting), text)


def accepted(profile: Profile, stages: Sequence[str], cluster: Cluster) -> dict[str, Any] | None:
    """Return the changes of a profile with which its jobs can start; None where there are none.

    It asks for less in the same partition, else takes another one, else does without GPUs.
    """
    others = sorted(
        (partition for partition in cluster.partitions if partition.is_open and partition.is_up),
        key=lambda partition: not partition.is_default,
    )
    moves: list[dict[str, Any]] = [{"partition": partition.name} for partition in others]
    for start in ({}, *moves, {"gpus_per_node": 0}):
        if (changes := lowered(profile, stages, cluster, start)) is not None:
            return changes
    return None


def lowered(
    profile: Profile, stages: Sequence[str], cluster: Cluster, start: dict[str, Any]
) -> dict[str, Any] | None:
    """Return `start` with more changes, within a partition, for the jobs to start; else None."""
    changes = dict(start)
    for _ in range(MOST_CHANGES):
        try:
            found = fatal(problems(dataclasses.replace(profile, **changes), stages, cluster))
        except ValueError:  # the profile contradicts itself then, as with --gres
            return None
        if not found:
            return changes
        if not found[0].change:
            return None
        changes |= found[0].change
    return None


def fatal(found: Sequence[Problem]) -> list[Problem]:
    """Return the problems that nothing but another request mends."""
    return [problem for problem in found if problem.is_fatal]
