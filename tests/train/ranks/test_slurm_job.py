"""Which rank a task of a Slurm step is, and where the ranks meet."""

import os
import socket
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from common.command_line import UsageError, UserError
from train.ranks.distributed import start_ranks
from train.ranks.slurm_job import become_rank, first_host, meeting_port


def called(name: str) -> ModuleType:
    """As much of the module __main__ as is read."""
    module = ModuleType("__main__")
    module.__spec__ = ModuleSpec(name, None)
    return module


RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Task 5 of 7 in a step of two nodes, as srun was seen to say, with another job's variables."""
    for name in RANK:
        monkeypatch.setenv(name, "99")  # of the submitter's shell
    seen = {
        "SLURM_JOB_ID": "70", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "7", "SLURM_STEP_NUM_TASKS": "7", "SLURM_TASKS_PER_NODE": "4,3",
        "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_NODELIST": "n[2-3]",
    }  # fmt: skip
    for name, value in seen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return monkeypatch


def test_a_task_becomes_the_rank_that_slurm_numbers_it(environment: pytest.MonkeyPatch) -> None:
    become_rank()
    rank = {name: os.environ[name] for name in RANK}
    assert rank.pop("MASTER_PORT") == str(meeting_port())
    assert rank == {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "7", "MASTER_ADDR": "n2"}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,m2", "n1"),
        ("n[1-3,7],m4", "n1"),
        ("n[03,07-09]", "n03"),
        ("gpu-a[007-010]-ib", "gpu-a007-ib"),
        ("rack[2-3]node[10-11]", "rack2node10"),
        ("host.example.org,n[1-2]", "host.example.org"),
        ("", ""),
    ],
)
def test_ranks_meet_on_the_first_node(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_the_port_is_another_one_at_each_start_and_in_each_step(
    environment: pytest.MonkeyPatch,
) -> None:
    ports = []
    for start in range(10):
        environment.setenv("SLURM_RESTART_COUNT", str(start))
        ports.append(meeting_port())
    environment.setenv("SLURM_STEP_ID", "1")
    ports.append(meeting_port())
    environment.setenv("SLURM_JOB_ID", "71")
    ports.append(meeting_port())
    assert len(set(ports)) == len(ports)
    assert all(1024 < port < 32768 for port in ports)  # from there on systems give them away


def test_a_port_that_is_taken_is_told_in_a_sentence(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        where = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (where | {"MASTER_PORT": str(port)}).items():
            environment.setenv(name, value)
        with pytest.raises(UserError, match=rf"^port {port} of .* is taken by another program"):
            start_ranks("cpu", 5.0).__enter__()


class TestLoneTasks:
    """srun python -m train, without launch.job or torchrun between."""

    @pytest.mark.parametrize("left", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
    def test_each_would_train_by_itself(
        self, left: dict[str, str], environment: pytest.MonkeyPatch
    ) -> None:
        """Whatever is left in the shell of a training before."""
        environment.delenv("RANK")
        for name, value in left.items():
            environment.setenv(name, value)
        environment.setattr("sys.argv", ["train", "run=a b", "lr=1"])
        environment.setitem(sys.modules, "__main__", called("train.__main__"))
        with pytest.raises(UsageError) as refused:
            start_ranks("cpu").__enter__()
        command = "srun --ntasks=7 python -m launch.job train 'a b' 'run=a b' lr=1"
        assert f": {command} (for trainings of their own, put env -u" in str(refused.value)

    def test_of_another_command_one_task_is_enough(self, environment: pytest.MonkeyPatch) -> None:
        environment.delenv("RANK")
        environment.setattr("sys.argv", ["predict", "input=x"])
        environment.setitem(sys.modules, "__main__", called("train.predict"))
        with pytest.raises(UsageError, match=r"srun --ntasks=1 python -m train\.predict input=x$"):
            start_ranks("cpu").__enter__()

    @pytest.mark.parametrize("tasks", ["1", None])
    def test_one_task_or_a_shell_in_an_allocation_is_right(
        self, tasks: str | None, environment: pytest.MonkeyPatch
    ) -> None:
        """salloc and the script of a job say SLURM_NTASKS=7 too."""
        for name in RANK:
            environment.delenv(name)
        if tasks:
            environment.setenv("SLURM_STEP_NUM_TASKS", tasks)
        else:
            environment.delenv("SLURM_STEP_NUM_TASKS")
        with start_ranks("cpu") as ranks:
            assert ranks.world_size == 1
