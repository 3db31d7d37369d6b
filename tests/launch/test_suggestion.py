"""A profile for a cluster: which partition, which values, and that jobs can start with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError
from launch.cluster import profiles, suggestion
from launch.cluster.facts import Cluster, Node, Partition
from launch.cluster.limits import problems
from launch.cluster.profiles import load_profile
from launch.cluster.suggestion import choose_profile, suggestions
from launch.record.events import STAGES
from tests.launch.fakes import answer, write

PREEMPTION = {"PreemptType": "preempt/partition_prio", "ClusterName": "dev"}


def nodes(names: str, cpus: int, gpus: dict[str, int], *partitions: str) -> tuple[Node, ...]:
    return tuple(
        Node(name, cpus, 64_000, gpus, state="IDLE", partitions=frozenset(partitions))
        for name in names.split()
    )


CPU = Partition("cpu", is_default=True, num_nodes=2, max_time_min=60)
GPU = Partition("gpu", num_nodes=2, tier=5, preempt_mode="REQUEUE")
SPARE = Partition("spare", num_nodes=2, tier=1, preempt_mode="REQUEUE", grace_s=120)
PAUSED = replace(SPARE, name="paused", preempt_mode="GANG,SUSPEND")
EVERYWHERE = nodes("g1 g2", 64, {"a100": 4}, "gpu", "spare", "paused")
CPUS = nodes("c1 c2", 12, {}, "cpu")


def first(*partitions: Partition, of: tuple[Node, ...] = EVERYWHERE + CPUS) -> dict[str, Any]:
    """The values of the best suggestion."""
    (best, *_) = suggestions(Cluster(partitions, of, PREEMPTION), STAGES)
    return best.settings


class TestPartition:
    """GPUs, then preemption, then the default."""

    @pytest.mark.parametrize(
        ("there", "best"),
        [
            ((CPU, GPU, SPARE, PAUSED), "spare"),
            ((CPU, GPU), "gpu"),
            ((CPU, GPU, PAUSED), "gpu"),
            ((CPU, GPU, replace(SPARE, state="DOWN")), "gpu"),
            ((CPU, GPU, replace(SPARE, is_open=False)), "gpu"),
            ((CPU, GPU, replace(SPARE, max_time_min=1)), "gpu"),
            ((CPU, replace(GPU, is_default=True), replace(GPU, name="a")), "gpu"),
            ((CPU,), "cpu"),
        ],
    )
    def test_the_best_one(self, there: tuple[Partition, ...], best: str) -> None:
        assert first(*there)["partition"] == best

    def test_a_named_one_alone(self) -> None:
        cluster = Cluster((CPU, GPU, SPARE), EVERYWHERE + CPUS, PREEMPTION)
        (only,) = suggestions(cluster, STAGES, "cpu")
        assert only.settings["partition"] == "cpu"
        assert suggestions(cluster, STAGES, "nosuch") == []

    def test_slurm_has_the_last_word(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other users may be charged for the best one."""
        write(tmp_path, "sbatch", 'case "$*" in *partition=spare*) exit 1;; esac\n')
        monkeypatch.setenv("PATH", str(tmp_path))
        cluster = Cluster((CPU, GPU, SPARE), EVERYWHERE + CPUS, PREEMPTION)
        monkeypatch.setattr(suggestion.facts, "look", lambda: cluster)
        best = suggestion.best(STAGES)
        assert best is not None
        assert best.settings["partition"] == "gpu"


class TestValues:
    """What the nodes have."""

    def test_gpus_and_their_cpus(self) -> None:
        assert first(CPU, GPU) == {
            "partition": "gpu", "nodes": 1, "gpus_per_node": 4, "cpus_per_task": 16,
            "time_min": 720,
        }  # fmt: skip

    def test_of_several_types_the_one_of_which_there_is_most(self) -> None:
        mixed = nodes("a1 a2 a3", 32, {"a100": 2}, "gpu") + nodes("h1", 96, {"h100": 8}, "gpu")
        values = first(replace(GPU, num_nodes=4), of=mixed)
        assert (values["gpus_per_node"], values["cpus_per_task"]) == ("h100:8", 12)

    def test_nodes_that_are_away_do_not_count_while_others_are_there(self) -> None:
        away = tuple(replace(node, state="DOWN*") for node in nodes("h1", 96, {"h100": 8}, "gpu"))
        here = nodes("a1", 32, {"a100": 2}, "gpu")
        assert first(GPU, of=away + here)["gpus_per_node"] == "a100:2"
        assert first(replace(GPU, num_nodes=1), of=away)["gpus_per_node"] == 8

    def test_without_gpus_a_rank_has_two_cpus(self) -> None:
        values = first(CPU)
        assert (values["gpus_per_node"], values["ranks_per_node"]) == (0, 6)
        assert (values["cpus_per_task"], values["time_min"]) == (2, 60)
        tiny = first(CPU, of=nodes("c1 c2", 1, {}, "cpu"))
        assert (tiny["ranks_per_node"], tiny["cpus_per_task"]) == (1, 1)

    def test_the_limits_of_the_partition(self) -> None:
        values = first(replace(GPU, max_cpus_per_node=20, max_time_min=3))
        assert (values["cpus_per_task"], values["time_min"]) == (5, 3)
        assert values["signal_lead_s"] == 60  # of 180 s, 60 are Slurm's

    def test_memory_where_the_default_is_little(self) -> None:
        # 4 ranks of 16 CPUs have all of a node with 64 CPUs and 64,000 MB
        assert first(replace(GPU, default_mem_per_cpu_mb=100))["mem_gb"] == 62
        capped = first(replace(GPU, default_mem_mb=1000, max_mem_mb=20_000))
        assert capped["mem_gb"] == 19
        assert "mem_gb" not in first(replace(GPU, default_mem_per_cpu_mb=900))


@pytest.mark.parametrize(
    "partition",
    [
        GPU, CPU, SPARE, PAUSED, replace(GPU, max_time_min=2), replace(GPU, max_cpus_per_node=3),
        replace(GPU, default_mem_mb=1, max_mem_mb=500), replace(CPU, max_nodes=1),
        replace(GPU, name="with space: #1"),
    ],
)  # fmt: skip
def test_a_suggestion_is_a_profile_that_can_start(
    partition: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = tuple(replace(node, partitions=frozenset({partition.name})) for node in EVERYWHERE)
    cluster = Cluster((partition,), of, PREEMPTION)
    (found,) = suggestions(cluster, STAGES)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    text = found.as_yaml("dev")
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load_profile("mine", {})
    assert loaded == replace(loaded, **found.settings)
    assert problems(loaded, STAGES, cluster) == []
    assert all(" # " in line for line in text.splitlines() if not line.startswith("#"))


class TestChoice:
    """Which profile counts without --profile."""

    @pytest.fixture(autouse=True)
    def slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(profiles, "PROFILES", tmp_path)
        (tmp_path / "default.yaml").write_text("cpus_per_task: 3\n")
        return folder

    @pytest.fixture
    def cluster(self, slurm: Path) -> None:
        answer(slurm, "sbatch", "")
        partition = "PartitionName=low Default=YES TotalNodes=1 MaxTime=1:00:00 State=UP"
        node = "NodeName=n1 CPUTot=8 Gres=gpu:2 RealMemory=9 State=IDLE Partitions=low"
        write(
            slurm,
            "scontrol",
            f'case "$2" in config) echo "ClusterName = dev";; partition) echo "{partition}";;\n'
            f'node) echo "{node}";; esac\n',
        )

    def test_that_of_the_cluster_and_flags_last(self, cluster: None) -> None:
        profile, told = choose_profile("", {"cpus_per_task": "1"}, STAGES, on_slurm=True)
        assert (profile.partition, profile.gpus_per_node, profile.time_min) == ("low", 2, 60)
        assert profile.cpus_per_task == 1
        assert told.startswith("no --profile given, but the cluster has: partition low, nodes 1, g")
        assert "doctor.py --write-profile` keeps this" in told

    def test_ones_own_file_before_it(self, cluster: None, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("cpus_per_task: 5\n")
        profile, told = choose_profile("", {}, STAGES, on_slurm=True)
        assert (profile.cpus_per_task, told) == (5, "no --profile given: slurm/mine.yaml is used")
        assert choose_profile("", {}, STAGES, on_slurm=False)[0].cpus_per_task == 3
        assert choose_profile("default", {}, STAGES, on_slurm=True)[0].cpus_per_task == 3

    def test_without_slurm_the_default_one(self) -> None:
        profile, told = choose_profile("", {}, STAGES, on_slurm=True)
        assert profile.cpus_per_task == 3
        assert (
            told == "no --profile given, and no Slurm on this machine (no sbatch): default is used"
        )

    def test_a_cluster_that_does_not_answer_is_told(self, slurm: Path) -> None:
        answer(slurm, "sbatch", "")
        answer(slurm, "scontrol", "", code=1)
        profile, told = choose_profile("", {}, STAGES, on_slurm=True)
        assert profile.cpus_per_task == 3
        assert "Slurm shows no partition that suits: default is used" in told

    def test_a_wrong_flag_is_told_as_such(self, cluster: None) -> None:
        with pytest.raises(UsageError, match=r"^nodes=0: expected a whole number from 1"):
            choose_profile("", {"nodes": "0"}, STAGES, on_slurm=True)
