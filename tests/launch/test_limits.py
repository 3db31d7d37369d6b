"""What cannot start is told with what could, by the facts of clusters written down here."""

from dataclasses import replace
from typing import Any

import pytest

from launch.cluster.facts import Cluster, Node, Partition
from launch.cluster.limits import Problem, accepted, fatal, problems
from launch.cluster.profiles import Profile

ALL = ("prepare", "train", "evaluate")
PARTITIONS = (
    Partition("low", is_default=True, num_nodes=4, max_time_min=60, max_nodes=3),
    Partition("big", num_nodes=2, max_cpus_per_node=24, max_mem_mb=100_000),
    Partition("cpus", num_nodes=1, min_nodes=1),
    Partition("broken", num_nodes=4, state="INACTIVE"),
    Partition("wide", num_nodes=4, min_nodes=2),
    Partition("cloud", num_nodes=9),
)
NODES = (
    *(
        Node(f"n{k}", 4, 8000, {"": 2}, frozenset({f"n{k}", "old"}), "IDLE",
             frozenset({"low", "broken", "wide", "cloud"}))
        for k in (1, 2, 3, 4)
    ),
    Node("g1", 32, 256_000, {"a100": 4}, frozenset({"a100", "ib"}), "IDLE", frozenset({"big"})),
    Node("g2", 32, 256_000, {"h100": 8}, frozenset({"h100"}), "MIXED", frozenset({"big"})),
    Node("c1", 16, 64_000, {}, frozenset(), "IDLE", frozenset({"cpus"})),
)  # fmt: skip
CLUSTER = Cluster(PARTITIONS, NODES, {})
FITS = Profile(gpus_per_node=2, cpus_per_task=2, time_min=60)


def told(cluster: Cluster = CLUSTER, **asked: Any) -> list[Problem]:
    """The problems of the fitting profile with something else asked for."""
    return problems(replace(FITS, **asked), ALL, cluster)


def test_what_fits_has_no_problem() -> None:
    assert told() == []
    assert told(partition="big", gpus_per_node="a100:4", cpus_per_task=6, mem_gb=90) == []
    assert told(partition="cpus", gpus_per_node=0, ranks_per_node=8, time_min=9999) == []
    assert told(nodes=3, constraint="n1|n2|n3") == []


@pytest.mark.parametrize(
    ("asked", "key", "text", "change"),
    [
        ({"time_min": 90}, "time_min", "partition low allows 60 (MaxTime)", {"time_min": 60}),
        ({"nodes": 4}, "nodes", "nodes=4: partition low allows 3 (MaxNodes)", {"nodes": 3}),
        (
            {"cpus_per_task": 4},
            "cpus_per_task",
            "cpus_per_task=4: train asks for 8 CPUs (2 ranks of cpus_per_task=4) per node, and"
            " nodes of partition low have 4 at most",
            {"cpus_per_task": 2},
        ),
        ({"gpus_per_node": 3, "cpus_per_task": 1}, "gpus_per_node", "3 GPUs per node, and nodes of"
         " partition low have 2 at most", {"gpus_per_node": 2}),
        ({"mem_gb": 9.0}, "mem_gb", "asks for 9216 MB of memory per node", {"mem_gb": 7.8}),
        ({"constraint": "a100"}, "constraint", "features there are n1, n2, n3, n4, old",
         {"constraint": ""}),
        ({"constraint": "n1&n2"}, "constraint", "no node of partition low", {"constraint": ""}),
        ({"nodes": 2, "constraint": "n1"}, "nodes", "of partition low have that and constraint=n1",
         {"nodes": 1}),
        ({"partition": "nosuch"}, "partition", "which has low, big, cpus, broken, wide, cloud",
         {"partition": "low"}),
        ({"partition": "broken"}, "partition", "its state is INACTIVE", {"partition": "low"}),
        ({"partition": "big", "gpus_per_node": "v100:4"}, "gpus_per_node",
         "types there are a100, h100", {"gpus_per_node": "h100:4"}),
        ({"partition": "big", "gpus_per_node": "a100:2", "nodes": 2}, "nodes",
         "1 of the nodes of partition big have that", {"nodes": 1}),
        ({"partition": "big", "gpus_per_node": "a100:4", "constraint": "h100"}, "gpus_per_node",
         "4 GPUs of type a100 per node, and nodes of partition big have 0 at most; types there are"
         " h100", {"gpus_per_node": "h100:4"}),
        ({"partition": "big", "gpus_per_node": 4, "cpus_per_task": 7}, "cpus_per_task",
         "28 CPUs (4 ranks of cpus_per_task=7) per node, and nodes of partition big have 24",
         {"cpus_per_task": 6}),
        ({"partition": "big", "mem_gb": 200}, "mem_gb", "have 100000", {"mem_gb": 97.6}),
        ({"partition": "cpus", "time_min": 60}, "gpus_per_node", "have 0 at most",
         {"partition": "low"}),
        ({"partition": "cpus", "gpus_per_node": 0, "ranks_per_node": 20, "cpus_per_task": 1},
         "cpus_per_task", "20 CPUs", {"ranks_per_node": 16, "cpus_per_task": 1}),
        ({"partition": "wide"}, "nodes", "is for 2 nodes and more", {"partition": "low"}),
    ],
)  # fmt: skip
def test_what_cannot_start_is_told_and_what_could(
    asked: dict[str, Any], key: str, text: str, change: dict[str, Any]
) -> None:
    found = told(**asked)
    assert found[0].key == key
    assert text in found[0].text
    assert found[0].is_fatal
    profile = replace(FITS, **asked)
    assert accepted(profile, ALL, CLUSTER) == change
    assert problems(replace(profile, **change), ALL, CLUSTER) == []


def test_several_problems_are_mended_together() -> None:
    asked = replace(FITS, time_min=61, nodes=9, cpus_per_task=9, gpus_per_node=9)
    found = fatal(problems(asked, ALL, CLUSTER))
    assert [problem.key for problem in found] == [
        "time_min", "nodes", "cpus_per_task", "gpus_per_node",
    ]  # fmt: skip
    changes = accepted(asked, ALL, CLUSTER)
    assert changes is not None
    assert problems(replace(asked, **changes), ALL, CLUSTER) == []


def test_a_short_limit_takes_the_signal_with_it() -> None:
    cluster = replace(CLUSTER, partitions=(replace(PARTITIONS[0], max_time_min=3),))
    changes = accepted(FITS, ALL, cluster)
    assert changes == {"time_min": 3, "signal_lead_s": 60}  # of 180 s, 60 are Slurm's
    replace(FITS, **changes)


def test_each_stage_counts_by_itself() -> None:
    """Preparation needs no GPUs; evaluation one, whatever training takes."""
    wide = replace(FITS, gpus_per_node=3, cpus_per_task=1)
    assert problems(wide, ("prepare", "evaluate"), CLUSTER) == []
    only_cpus = replace(FITS, partition="cpus")
    assert problems(only_cpus, ("prepare",), CLUSTER) == []
    (problem,) = problems(only_cpus, ("evaluate",), CLUSTER)
    assert "evaluate asks for 1 GPU per node" in problem.text
    (problem,) = problems(replace(FITS, cpus_per_task=5), ("prepare",), CLUSTER)
    assert "prepare asks for 5 CPUs per node" in problem.text


def test_nodes_that_are_down_are_waited_for() -> None:
    """Nobody knows for how long; but a job that none of them ever holds is refused all the same."""
    down = tuple(
        replace(node, state="DOWN*") if node.name in ("n1", "n2", "n3") else node for node in NODES
    )
    cluster = replace(CLUSTER, nodes=down)
    assert told(cluster) == []
    (problem,) = told(cluster, nodes=2)
    assert not problem.is_fatal
    assert "3 of the 4 nodes" in problem.text
    assert fatal(told(cluster, nodes=2, cpus_per_task=4))


def test_a_job_of_a_reservation_gets_its_nodes() -> None:
    cluster = replace(CLUSTER, nodes=tuple(replace(node, state="IDLE+RESERVED") for node in NODES))
    assert [problem.is_away for problem in told(cluster)] == [True]
    assert told(cluster, sbatch_args=["--reservation=course"]) == []


class TestRanges:
    """Slurm starts a job of a range on fewer nodes, where the least that it takes fit."""

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            ({"nodes": "1-4"}, "low allows 3 (MaxNodes); train starts on 3 at most"),
            ({"nodes": "3-9"}, "low allows 3 (MaxNodes); train starts on 3 at most"),
            ({"nodes": "1-4", "constraint": "n1|n2"}, "low allows 3 (MaxNodes); train starts on 3"),
            (
                {"nodes": "1-3", "constraint": "n1|n2"},
                "constraint=n1|n2; train starts on 2 at most",
            ),
            (
                {"nodes": "1-2", "partition": "big", "gpus_per_node": "a100:2"},
                "starts on 1 at most",
            ),
        ],
    )
    def test_more_than_there_are_is_doubtful(self, asked: dict[str, Any], text: str) -> None:
        (problem,) = told(**asked)
        assert (problem.key, problem.is_fatal, problem.is_away) == ("nodes", False, False)
        assert text in problem.text

    @pytest.mark.parametrize(
        ("asked", "change"),
        [
            ({"nodes": "4-9"}, {"nodes": 3}),
            # three are allowed, and one has it
            ({"nodes": "2-9", "constraint": "n1"}, {"nodes": 1}),
        ],
    )
    def test_too_many_at_least_is_fatal(
        self, asked: dict[str, Any], change: dict[str, Any]
    ) -> None:
        (problem,) = told(**asked)
        assert problem.is_fatal
        assert accepted(replace(FITS, **asked), ALL, CLUSTER) == change

    def test_its_nodes_that_are_down_are_waited_for(self) -> None:
        down = tuple(replace(node, state="DOWN*") for node in NODES)
        (problem,) = told(replace(CLUSTER, nodes=down), nodes="1-4", constraint="n1|n2|n3")
        assert (problem.key, problem.is_fatal, problem.is_away) == ("nodes", False, True)


def test_a_partition_that_is_down_starts_its_jobs_later() -> None:
    """sbatch takes jobs for it; but nothing moves to it."""
    cluster = replace(CLUSTER, partitions=(replace(PARTITIONS[0], state="DOWN"), *PARTITIONS[1:]))
    (problem,) = told(cluster)
    assert (problem.key, problem.is_fatal) == ("partition", False)
    assert "its state is DOWN at the moment; the job waits" in problem.text
    assert told(cluster, partition="low,cloud") == []
    assert accepted(replace(FITS, partition="broken"), ALL, cluster) == {"partition": "big"}


def test_nodes_that_slurm_does_not_list_may_have_anything() -> None:
    assert told(partition="cloud", gpus_per_node=8, cpus_per_task=9, nodes=9) == []


def test_one_of_several_partitions_is_enough() -> None:
    assert told(partition="low,big", time_min=90) == []
    assert told(partition="low,nosuch")[0].key == "partition"
    assert fatal(told(partition="low,cpus", time_min=90))


def test_a_quality_of_service_may_allow_more_than_the_partition() -> None:
    (problem,) = told(time_min=90, qos="long")
    assert not problem.is_fatal
    assert "unless qos=long allows more" in problem.text


@pytest.mark.parametrize("constraint", ["[a100|h100]", "a100*2", "old&n1|x", "!old"])
def test_other_constraints_are_left_to_slurm(constraint: str) -> None:
    assert told(constraint=constraint) == []


def test_without_a_default_partition_one_must_be_named() -> None:
    cluster = replace(CLUSTER, partitions=PARTITIONS[1:3])
    (problem,) = told(cluster)
    assert problem.text == "partition: this cluster has no default; it has big, cpus"
    assert accepted(FITS, ALL, cluster) == {"partition": "big"}
    assert told(Cluster()) == [], "no controller answers"
