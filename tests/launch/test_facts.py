"""What scontrol prints, of several releases and sites, written down by hand."""

import pytest

from launch.cluster.facts import (
    Cluster,
    Node,
    gpus_in,
    minutes,
    nodes_in,
    partitions_in,
    seconds,
)

# 20.02: no JobDefaults, a clock as the grace; 22.05 prints more; 25.05 again other fields
OLD = (
    "PartitionName=batch AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES"
    " QoS=N/A DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO"
    " MaxNodes=UNLIMITED MaxTime=7-00:00:00 MinNodes=1 LLN=NO MaxCPUsPerNode=UNLIMITED"
    " Nodes=c[01-02] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO"
    " OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=32 TotalNodes=2"
    " SelectTypeParameters=NONE DefMemPerCPU=2000 MaxMemPerNode=UNLIMITED"
)
NEW = (
    "PartitionName=scavenge AllowGroups=ALL DenyAccounts=guest AllowQos=ALL AllocNodes=ALL"
    " Default=NO QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO"
    " GraceTime=120 Hidden=YES MaxNodes=8 MaxTime=1-12:30:00 MinNodes=2 LLN=NO MaxCPUsPerNode=48"
    " MaxCPUsPerSocket=UNLIMITED NodeSets=gpus Nodes=g[1-3],h1 PriorityJobFactor=1 PriorityTier=0"
    " RootOnly=NO ReqResv=NO OverSubscribe=FORCE:1 OverTimeLimit=NONE PreemptMode=GANG,SUSPEND"
    " State=DRAIN TotalCPUs=256 TotalNodes=4 SelectTypeParameters=NONE JobDefaults=DefCpuPerGPU=8"
    " DefMemPerNode=4096 MaxMemPerNode=250000 TRES=cpu=256,mem=1000G,node=4,gres/gpu=16"
)
NODES = (
    "NodeName=g1 Arch=x86_64 CoresPerSocket=24 CPUAlloc=0 CPUEfctv=92 CPUTot=96 CPULoad=0.01"
    " AvailableFeatures=a100,ib ActiveFeatures=a100,ib Gres=gpu:a100:4(S:0,2),shard:a100:16(S:0-1)"
    " NodeAddr=g1 NodeHostName=g1 Version=23.11.4 OS=Linux 5.14 #1 SMP"
    " RealMemory=512000 AllocMem=0 FreeMem=1 Sockets=2 Boards=1 MemSpecLimit=2000"
    " State=MIXED+PLANNED ThreadsPerCore=2 Partitions=scavenge,high BootTime=2024-01-01T00:00:00\n"
    "NodeName=h1 Arch=x86_64 CPUAlloc=0 CPUTot=64 AvailableFeatures=(null) ActiveFeatures=(null)"
    " Gres=gpu:h100:8 RealMemory=1000000 State=DOWN*+DRAIN Partitions=scavenge"
    " Reason=was State=IDLE with Gres=gpu:9 [root@2024-01-01T00:00:00]\n"
    "NodeName=cloud-7 CPUTot=8 Gres=(null) RealMemory=16000 State=IDLE+CLOUD+POWERED_DOWN\n"
)


class TestPartitions:
    """`scontrol show partition --oneliner`."""

    def test_an_old_one(self) -> None:
        (batch,) = partitions_in(OLD, {})
        assert (batch.name, batch.is_default, batch.state, batch.is_open) == (
            "batch", True, "UP", True,
        )  # fmt: skip
        assert (batch.max_time_min, batch.default_time_min) == (7 * 24 * 60, 60)
        assert (batch.max_nodes, batch.min_nodes, batch.num_nodes) == (None, 1, 2)
        assert (batch.max_cpus_per_node, batch.max_mem_mb) == (None, None)
        assert (batch.default_mem_mb, batch.default_mem_per_cpu_mb) == (None, 2000)
        assert (batch.preempt_mode, batch.grace_s, batch.tier) == ("OFF", 0, 1)

    def test_a_new_one_with_limits(self) -> None:
        (scavenge,) = partitions_in(NEW, {})
        assert (scavenge.is_default, scavenge.state, scavenge.is_open) == (False, "DRAIN", False)
        assert (scavenge.max_time_min, scavenge.default_time_min) == (24 * 60 + 12 * 60 + 30, None)
        assert (scavenge.max_nodes, scavenge.min_nodes, scavenge.num_nodes) == (8, 2, 4)
        assert (scavenge.max_cpus_per_node, scavenge.max_mem_mb) == (48, 250000)
        assert (scavenge.default_mem_mb, scavenge.nodes) == (4096, "g[1-3],h1")
        assert (scavenge.preempt_mode, scavenge.grace_s, scavenge.tier) == ("GANG,SUSPEND", 120, 0)

    def test_what_a_partition_does_not_say_it_inherits(self) -> None:
        settings = {"PreemptMode": "REQUEUE ", "DefMemPerCPU": "1000", "MaxMemPerNode": "UNLIMITED"}
        (plain,) = partitions_in("PartitionName=plain State=UP", settings)
        assert (plain.preempt_mode, plain.default_mem_per_cpu_mb) == ("REQUEUE", 1000)
        assert (plain.max_mem_mb, plain.max_time_min) == (None, None)


class TestNodes:
    """`scontrol show node --oneliner`."""

    def test_each_has_its_parts(self) -> None:
        first, second, cloud = nodes_in(NODES)
        assert first == Node(
            "g1", 92, 510000, {"a100": 4}, frozenset({"a100", "ib"}),
            "MIXED+PLANNED", frozenset({"scavenge", "high"}),
        )  # fmt: skip
        assert (second.cpus, second.gpus, second.features) == (64, {"h100": 8}, frozenset())
        assert second.state == "DOWN*+DRAIN"
        assert (cloud.num_gpus, cloud.partitions) == (0, frozenset())

    @pytest.mark.parametrize(
        ("state", "is_away"),
        [
            ("IDLE", False), ("ALLOCATED", False), ("MIXED+PLANNED", False),
            ("IDLE+CLOUD+POWERED_DOWN", False), ("COMPLETING", False),
            ("DOWN", True), ("IDLE+DRAIN", True), ("MIXED*", True), ("DOWN*+DRAIN", True),
            ("IDLE+MAINTENANCE", True), ("RESERVED", True), ("FAILING", True),
            ("IDLE+NOT_RESPONDING", True),
        ],
    )  # fmt: skip
    def test_whether_it_gets_jobs_now(self, state: str, is_away: bool) -> None:
        assert Node("n", state=state).is_away() is is_away

    @pytest.mark.parametrize(
        ("state", "is_away"),
        [
            ("RESERVED", False),
            ("IDLE+MAINTENANCE", False),
            ("DOWN+RESERVED", True),
            ("IDLE*", True),
        ],
    )
    def test_a_job_of_a_reservation_gets_reserved_ones(self, state: str, is_away: bool) -> None:
        assert Node("n", state=state).is_away("course") is is_away


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("", {}),
        ("(null)", {}),
        ("gpu", {"": 1}),
        ("gpu:2", {"": 2}),
        ("gpu:2(S:0)", {"": 2}),
        ("gpu:a100:4", {"a100": 4}),
        ("gpu:a100:no_consume:4", {"a100": 4}),
        ("gpu:tesla:2(IDX:0-1),gpu:kepler:1(S:0,1),mps:100", {"tesla": 2, "kepler": 1}),
        ("gpu:1g.10gb:7(S:0-3),lic:gpu:3", {"1g.10gb": 7}),
        ("craynetwork:4,gpu:0", {}),
    ],
)
def test_gpus_by_type(gres: str, gpus: dict[str, int]) -> None:
    assert gpus_in(gres) == gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None), ("NONE", None), ("", None), ("soon", None), ("30", 30),
        ("00:30:00", 30), ("12:00:00", 720), ("100:00:00", 6000), ("2-00:00:00", 2880),
        ("1-01:01:59", 1501), ("45:30", 45), ("3-12", 5040), ("1-02:30", 1590),
    ],
)  # fmt: skip
def test_time_limits(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


def test_grace_times() -> None:
    assert [seconds(text) for text in ("90", "00:02:00", "1-00:00:01", "N/A")] == [
        90,
        120,
        86401,
        0,
    ]


def test_who_preempts_whom() -> None:
    """A higher tier on the same nodes, or another quality of service."""
    text = "PartitionName={} PriorityTier={} PreemptMode={}\n"
    partitions = partitions_in(
        text.format("low", 1, "REQUEUE") + text.format("high", 9, "REQUEUE")
        + text.format("elsewhere", 1, "REQUEUE") + text.format("safe", 1, "OFF"),
        {},
    )  # fmt: skip
    nodes = (
        Node("a", partitions=frozenset({"low", "high", "safe"})),
        Node("b", partitions=frozenset({"elsewhere"})),
    )

    def preempted(kind: str) -> list[str]:
        cluster = Cluster(partitions, nodes, {"PreemptType": kind})
        return [part.name for part in partitions if cluster.is_preempted(part)]

    assert preempted("preempt/partition_prio") == ["low"]
    assert preempted("preempt/qos") == ["low", "high", "elsewhere"]
    assert preempted("preempt/none") == []


@pytest.mark.parametrize(
    "text", ["", "slurm_load_partitions error: x", "No nodes in the system", "=", "a=b\n=\n"]
)
def test_what_is_no_list_is_an_empty_one(text: str) -> None:
    assert partitions_in(text, {}) == ()
    assert nodes_in(text) == ()
