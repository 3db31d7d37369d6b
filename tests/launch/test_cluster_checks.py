"""submit.py refuses what could not start, with a command line that is accepted."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError
from launch import submit
from launch.cluster.limits import Problem
from launch.cluster.profiles import load_profile
from launch.cluster_checks import check_cluster, check_with_slurm
from launch.job_requests import Job
from launch.stages import Request
from tests.launch.fakes import answer, write

PARTITION = "PartitionName=low Default=YES TotalNodes=4 MaxNodes=3 MaxTime=1:00:00 State=UP"
NODE = "NodeName=n{} CPUTot=4 Gres=gpu:2 RealMemory=4000 State={} Partitions=low"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A partition of four nodes with 4 CPUs and 2 GPUs, an hour at most, on three nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    nodes(folder, "IDLE", "IDLE", "IDLE", "IDLE")
    answer(folder, "sbatch", "")
    return folder


def nodes(slurm: Path, *states: str) -> None:
    """Let scontrol show nodes in these states."""
    listed = "\\n".join(NODE.format(k, state) for k, state in enumerate(states))
    write(
        slurm,
        "scontrol",
        f'case "$2" in config) echo "ClusterName = dev";; partition) echo "{PARTITION}";;\n'
        f'node) printf "{listed}\\n";; *) echo "Invalid job id" >&2; exit 1;; esac\n',
    )


def check(flags: str, *settings: str) -> list[Problem]:
    """Check training with the flags of a command line."""
    given = dict(zip(shlex.split(flags)[::2], shlex.split(flags)[1::2], strict=True))
    keys = {flag[2:].replace("-", "_"): value for flag, value in given.items()}
    profile = load_profile(
        "", {"gpus_per_node": "2", "cpus_per_task": "2", "time_min": "60"} | keys
    )
    request = Request(dict(setting.split("=") for setting in settings), Path("/runs/a"))
    return check_cluster(["train"], request, profile, [*shlex.split(flags), *settings])


def accepted(flags: str, *settings: str) -> str:
    """The command that a refusal shows, which must be accepted in its turn."""
    with pytest.raises(UsageError) as refused:
        check(flags, *settings)
    command = str(refused.value).splitlines()[1]
    words = shlex.split(command)[2:]
    left = [word for word in words if "=" in word]
    check(shlex.join(word for word in words if "=" not in word), *left)
    return command.strip()


class TestCommands:
    """What is accepted."""

    def test_one_flag_takes_the_place_of_another(self, slurm: Path) -> None:
        command = accepted("--nodes 2 --time-min 90", "lr=0.1")
        assert command == "python launch/submit.py --nodes 2 --time-min 60 lr=0.1"

    def test_all_problems_are_mended_at_once(self, slurm: Path) -> None:
        command = accepted("--nodes 9 --cpus-per-task 8 --time-min 90 --gpus-per-node 2")
        assert command == (
            "python launch/submit.py --nodes 3 --cpus-per-task 2 --time-min 60 --gpus-per-node 2"
        )

    def test_a_batch_that_fewer_nodes_cannot_share_is_seen_to(self, slurm: Path) -> None:
        """On 3 nodes there are 6 ranks, too many for 4 crops."""
        command = accepted("--nodes 4", "batch_size=4")
        assert command in (
            "python launch/submit.py --nodes 3", "python launch/submit.py --nodes 2 batch_size=4",
        )  # fmt: skip


class TestSlurmsWord:
    """`sbatch --test-only`."""

    JOB = Job("train", "train", [[]], {"nodes": 1, "time": 5, "job_name": "x", "python": "python"})

    def refuse(self, slurm: Path, text: str) -> None:
        write(slurm, "sbatch", f'cp "$2" {slurm}/script\necho "{text}" >&2\nexit 1\n')

    def test_its_refusal_is_shown(self, slurm: Path) -> None:
        self.refuse(slurm, "Welcome 1\nallocation failure: Invalid account\nsee the wiki")
        with pytest.raises(UsageError, match="train: Slurm refuses the job: allocation failure: I"):
            check_with_slurm(Path("/runs/a"), [self.JOB], [])
        lines = (slurm / "script").read_text().splitlines()
        assert lines[0] == "#!/bin/bash"
        assert "#SBATCH --time=5" in lines
        assert (slurm / "called").read_text().startswith("--test-only ")

    @pytest.mark.parametrize("text", ["Requested nodes are busy", "Socket timed out on send/recv"])
    def test_what_passes_is_none(self, text: str, slurm: Path) -> None:
        self.refuse(slurm, f"allocation failure: {text}")
        check_with_slurm(Path("/runs/a"), [self.JOB], [])

    def test_nodes_that_are_down_are_waited_for(self, slurm: Path) -> None:
        """--test-only says the same of them and of nodes that are not there."""
        self.refuse(slurm, "allocation failure: Requested node configuration is not available")
        with pytest.raises(UsageError, match="not available; nothing was queued"):
            check_with_slurm(Path("/runs/a"), [self.JOB], [])
        nodes(slurm, "DOWN*", "DOWN*", "IDLE+DRAIN", "IDLE")
        waiting = check("--nodes 2")
        assert [problem.is_fatal for problem in waiting] == [False]
        check_with_slurm(Path("/runs/a"), [self.JOB], waiting)

    def test_a_range_that_starts_on_fewer_nodes_excuses_nothing(self, slurm: Path) -> None:
        """MaxNodes=3."""
        waiting = check("--nodes 1-4")
        assert [problem.is_fatal for problem in waiting] == [False]
        self.refuse(slurm, "allocation failure: Requested node configuration is not available")
        with pytest.raises(UsageError, match="not available; nothing was queued"):
            check_with_slurm(Path("/runs/a"), [self.JOB], waiting)


def test_submit_refuses_and_a_dry_run_tells(
    slurm: Path, raw_folder: Callable[..., Path], tmp_path: Path, cli: Any
) -> None:
    given = ["--stages", "prepare", "--cpus-per-task", "5", "--profile", "default"]
    given += [f"raw={raw_folder({'1': 1, '2': 1, '3': 1})}", f"run={tmp_path / 'run'}"]
    done = cli(submit.main, *given)
    assert done.code == 2
    assert (
        "cpus_per_task=5: prepare asks for 5 CPUs per node, and nodes of partition low have 4"
        in (done.err)
    )
    assert (
        "python launch/submit.py --stages prepare --cpus-per-task 4 --profile default --time-min 60"
        in done.err
    )
    assert not (tmp_path / "run").exists()
    told = cli(submit.main, "--dry-run", *given)
    assert told.code == 0
    assert told.err.startswith("this would be refused here: time_min=720: partition low allows 60")
    assert "#SBATCH --cpus-per-task=5" in told.out
    assert "--parsable" not in (slurm / "called").read_text()
