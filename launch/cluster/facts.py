"""What a cluster has, as scontrol tells it: partitions with their limits, nodes, settings.

Slurm 20 to 25 print different fields. One that is missing counts as no limit, or as unknown; no
text makes these functions raise.
"""

import re
from dataclasses import dataclass, field

from launch.cluster import slurm_commands

# States of a node that gets no new job at the moment, beside any with a *: it does not answer
AWAY = ("DOWN", "DRAIN", "FAIL", "UNKNOWN", "NOT_RESPONDING", "INVAL")
RESERVED = ("MAINT", "RESERVED")  # it gets jobs of its reservation


@dataclass(frozen=True)
class Partition:
    """A partition; None stands for no limit."""

    name: str
    is_default: bool = False
    nodes: str = ""
    """Its nodes, as in n[1-4]."""
    num_nodes: int = 0
    """All its nodes, also those that Slurm does not list, such as cloud nodes without power."""
    state: str = "UP"
    """UP, DOWN (takes jobs, starts none), DRAIN (takes none, starts queued ones) or INACTIVE."""
    max_time_min: int | None = None
    default_time_min: int | None = None
    max_nodes: int | None = None
    min_nodes: int = 0
    max_cpus_per_node: int | None = None
    max_mem_mb: int | None = None
    """Most memory per node that a job may ask for."""
    default_mem_mb: int | None = None
    """Memory per node of a job that asks for none; None for all of the node."""
    default_mem_per_cpu_mb: int | None = None
    preempt_mode: str = ""
    """OFF, REQUEUE, CANCEL, SUSPEND or GANG,SUSPEND; '' where Slurm does not tell."""
    grace_s: int = 0
    tier: int = 1
    """Jobs of a partition with a higher tier come first, and may preempt."""
    is_open: bool = True
    """Whether it is neither hidden nor for root alone."""

    @property
    def is_up(self) -> bool:
        """Whether it takes jobs and starts them."""
        return self.state in ("UP", "")


@dataclass(frozen=True)
class Node:
    """A node."""

    name: str
    cpus: int = 0
    memory_mb: int = 0
    gpus: dict[str, int] = field(default_factory=dict)
    """Type -> number; the type is '' where the cluster names none."""
    features: frozenset[str] = frozenset()
    state: str = ""
    partitions: frozenset[str] = frozenset()

    @property
    def num_gpus(self) -> int:
        """Number of GPUs of all types."""
        return sum(self.gpus.values())

    def is_away(self, reservation: str = "") -> bool:
        """Return whether it gets no new job at the moment, of this reservation where there is one.

        Which nodes a reservation has, nobody tells here.
        """
        away = AWAY if reservation else AWAY + RESERVED
        return "*" in self.state or any(flag.startswith(away) for flag in self.state.split("+"))


@dataclass(frozen=True)
class Cluster:
    """A cluster; without partitions where no controller answers."""

    partitions: tuple[Partition, ...] = ()
    nodes: tuple[Node, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    """Slurm's own, as `scontrol show config` prints them."""

    def partition(self, name: str) -> Partition | None:
        """Return a partition by name, or for '' the default one; None where there is none."""
        for partition in self.partitions:
            if partition.name == name or (not name and partition.is_default):
                return partition
        return None

    def nodes_of(self, partition: Partition) -> list[Node]:
        """Return the nodes of a partition that Slurm lists."""
        return [node for node in self.nodes if partition.name in node.partitions]

    def is_preempted(self, partition: Partition) -> bool:
        """Return whether other jobs may take nodes from the jobs of a partition."""
        kind = self.settings.get("PreemptType", "").strip()
        if partition.preempt_mode in ("", "OFF") or kind.endswith("/none"):
            return False
        if kind.endswith("/qos"):
            return True
        shared = {name for node in self.nodes_of(partition) for name in node.partitions}
        return any(other.tier > partition.tier for other in self.partitions if other.name in shared)


def look() -> Cluster:
    """Ask Slurm for all of it."""
    settings = slurm_commands.show_config()
    if not settings:
        return Cluster()
    code, partitions = slurm_commands.ask("scontrol", "show", "partition", "--oneliner", "--all")
    partitions = "" if code else partitions
    code, nodes = slurm_commands.ask("scontrol", "show", "node", "--oneliner", "--all")
    return Cluster(partitions_in(partitions, settings), nodes_in("" if code else nodes), settings)


def partitions_in(text: str, settings: dict[str, str]) -> tuple[Partition, ...]:
    """Parse `scontrol show partition --oneliner`; `settings` hold what partitions inherit."""
    return tuple(
        partition_of(values, settings) for values in lines_in(text) if values.get("PartitionName")
    )


def partition_of(values: dict[str, str], settings: dict[str, str]) -> Partition:
    """Make a partition of its fields."""

    def memory(key: str) -> int | None:
        return number(values.get(key, "")) or number(settings.get(key, "").strip())

    mode = values.get("PreemptMode") or settings.get("PreemptMode", "").strip()
    return Partition(
        name=values["PartitionName"],
        is_default=values.get("Default") == "YES",
        nodes=values.get("Nodes", "").replace("(null)", ""),
        num_nodes=number(values.get("TotalNodes", "")) or 0,
        state=values.get("State", "UP"),
        max_time_min=minutes(values.get("MaxTime", "")),
        default_time_min=minutes(values.get("DefaultTime", "")),
        max_nodes=number(values.get("MaxNodes", "")),
        min_nodes=number(values.get("MinNodes", "")) or 0,
        max_cpus_per_node=number(values.get("MaxCPUsPerNode", "")),
        max_mem_mb=memory("MaxMemPerNode"),
        default_mem_mb=memory("DefMemPerNode"),
        default_mem_per_cpu_mb=memory("DefMemPerCPU"),
        preempt_mode=mode.upper(),
        grace_s=seconds(values.get("GraceTime", "")),
        tier=number(values.get("PriorityTier", values.get("Priority", ""))) or 0,
        is_open="YES" not in (values.get("RootOnly"), values.get("Hidden")),
    )


def nodes_in(text: str) -> tuple[Node, ...]:
    """Parse `scontrol show node --oneliner`."""
    return tuple(
        Node(
            name=values["NodeName"],
            cpus=number(values.get("CPUEfctv", "")) or number(values.get("CPUTot", "")) or 0,
            memory_mb=(number(values.get("RealMemory", "")) or 0)
            - (number(values.get("MemSpecLimit", "")) or 0),
            gpus=gpus_in(values.get("Gres", "")),
            features=frozenset(
                name
                for key in ("AvailableFeatures", "ActiveFeatures", "Features")
                for name in values.get(key, "").split(",")
                if name not in ("", "(null)")
            ),
            state=values.get("State", "").upper(),
            partitions=frozenset(values.get("Partitions", "").split(",")) - {""},
        )
        for values in lines_in(text)
        if values.get("NodeName")
    )


def lines_in(text: str) -> list[dict[str, str]]:
    """Return the fields of each line; the first of a key that comes twice (OS= may hold any)."""
    return [
        dict(reversed(re.findall(r"(?:^|(?<=\s))(\w+)=(\S*)", line)))
        for line in text.splitlines()
        if "=" in line
    ]


def gpus_in(gres: str) -> dict[str, int]:
    """Parse Gres=gpu:a100:4(S:0-1),shard:8: type -> number."""
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = [part for part in entry.split(":") if part != "no_consume"]
        if name != "gpu":
            continue
        count = rest.pop() if rest and re.fullmatch(r"\d+[KMG]?", rest[-1]) else "1"
        kind = ":".join(rest)
        found[kind] = found.get(kind, 0) + (number(count) or 0)
    return {kind: count for kind, count in found.items() if count}


def number(text: str) -> int | None:
    """Parse a whole number; None for UNLIMITED, and for what is none."""
    return int(text) if text.isdecimal() else None


def minutes(text: str) -> int | None:
    """Parse a time limit as days-hours:minutes:seconds, its shorter forms; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, *clock = match.groups()
    given = [int(part) for part in clock if part is not None]
    if days is not None:
        hours, mins, *_ = [*given, 0, 0]
    elif len(given) == 3:
        hours, mins, *_ = given
    else:  # minutes, or minutes:seconds
        hours, mins = 0, given[0]
    return (int(days or 0) * 24 + hours) * 60 + mins


def seconds(text: str) -> int:
    """Parse a grace time: seconds, or a clock as in 00:02:00."""
    if number(text) is not None:
        return int(text)
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    days, hours, mins, secs = (int(part or 0) for part in parts.groups()) if parts else (0,) * 4
    return ((days * 24 + hours) * 60 + mins) * 60 + secs
