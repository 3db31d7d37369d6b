"""Ranks and GPUs: pretended ones, on ranks that are forked and meet through gloo."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common.command_line import UsageError
from train.ranks.distributed import choose_device, start_ranks

FORK = multiprocessing.get_context("fork")
TIMEOUT_S = 60


def run_on_gpus(rank: int, port: int, visible: Sequence[Sequence[str]], said: Any) -> None:
    """Start as a rank that sees GPUs of these UUIDs; say what device it has, or is told."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(visible))}
    os.environ.update(where | world)
    torch.cuda.device_count = lambda: len(visible[rank])
    torch.cuda.set_device = lambda device: None
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(
        uuid=visible[rank][device.index]
    )
    original = dist.init_process_group
    # there is no NCCL here, and it is not to be needed
    dist.init_process_group = lambda backend, **named: original("gloo", **named)
    try:
        with start_ranks("auto", TIMEOUT_S) as ranks:
            said.put((rank, str(ranks.device)))
    except UsageError as error:
        # it can: a GPU of this node may be dead, and a job may start on another
        said.put((rank, str(error) if error.can_heal else "cannot heal"))


def told(*visible: Sequence[str]) -> list[str]:
    """What each of as many ranks says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: Any = FORK.Queue()
    ranks = [
        FORK.Process(target=run_on_gpus, args=(rank, port, visible, said), daemon=True)
        for rank in range(len(visible))
    ]
    for process in ranks:
        process.start()
    words = dict(said.get(timeout=TIMEOUT_S) for _ in ranks)
    for process in ranks:
        process.join(TIMEOUT_S)
    return [words[rank] for rank in range(len(visible))]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ((["a", "b"], ["a", "b"]), ["cuda:0", "cuda:1"]),
        ((["a"], ["b"]), ["cuda:0", "cuda:0"]),  # as srun --gpus-per-task=1 shows them
        (([], []), ["cpu", "cpu"]),
    ],
)
def test_ranks_with_a_gpu_each_or_none_start(
    visible: Sequence[Sequence[str]], devices: list[str]
) -> None:
    assert told(*visible) == devices


@pytest.mark.parametrize(("gpus", "num_ranks"), [(["a"], 2), (["a", "b"], 3)])
def test_ranks_that_share_a_gpu_are_refused_on_every_rank(gpus: list[str], num_ranks: int) -> None:
    """Before NCCL meets them, whose message names neither the number of ranks nor a way out."""
    words = told(*[gpus] * num_ranks)
    expected = (
        f"2 ranks share one GPU ({socket.gethostname()}, GPU-a), and NCCL takes one rank per GPU:"
        f" start {len(gpus)} on {socket.gethostname()} (--nproc-per-node), or give device=cpu"
    )
    assert words == [expected] * num_ranks


def test_a_node_without_its_gpus_is_refused_though_another_may_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="sees no GPU here") as refused:
        choose_device("cuda", 0)
    assert refused.value.can_heal


def run_with_few_files(rank: int, port: int, said: Any) -> None:
    """Start as a rank that may open eight files more than it has."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(where | {"RANK": str(rank), "WORLD_SIZE": "4"})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 8, hard))
    try:
        with start_ranks("cpu", TIMEOUT_S) as ranks:
            said.put(ranks.beside(TIMEOUT_S).gather(rank))
    except Exception as error:
        said.put(str(error))


def test_ranks_need_no_more_open_files_than_the_system_allows() -> None:
    """The soft limit, mostly 1024, would end at 500 ranks: two groups connect each to all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: Any = FORK.Queue()
    ranks = [
        FORK.Process(target=run_with_few_files, args=(rank, port, said), daemon=True)
        for rank in range(4)
    ]
    for process in ranks:
        process.start()
    assert [said.get(timeout=TIMEOUT_S) for _ in ranks] == [[0, 1, 2, 3]] * 4
    for process in ranks:
        process.join(TIMEOUT_S)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_rank_is_told_that_torchrun_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise kill -9 of torchrun leaves ranks that train on, unseen."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of torchrun")
    reads, writes = os.pipe()
    torchrun = os.fork()
    if torchrun == 0:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: os.write(writes, b"told") and os._exit(0))
            with start_ranks("cpu"):
                os.write(writes, b"ready")
                time.sleep(60)
        time.sleep(60)
        os._exit(1)
    os.close(writes)
    assert os.read(reads, 5) == b"ready"
    os.kill(torchrun, signal.SIGKILL)
    os.waitpid(torchrun, 0)
    assert os.read(reads, 5) == b"told"
    os.close(reads)
