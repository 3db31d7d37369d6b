"""A collective that failed is told with the names of the ranks that are missing."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import Any, cast

import pytest
import torch.distributed as dist

from common.command_line import UserError
from train.ranks.liveness import Liveness

# As torch 2.13 and NCCL 2.28 word it
NCCL_LOST = """NCCL error in: /torch/NCCLUtils.cpp:93, remote process exited, NCCL version 2.28.9
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting.
Last error:
socketPollConnect: connect to 10.0.0.2<40123> returned Connection refused
Exception raised from checkForNCCLErrors"""
LOST = "[/gloo/pair.cc:5] Connection closed by peer [127.0.0.1]:1. This is typically caused by"


quick = partial(Liveness, beat_s=0.02, silent_s=0.5, answer_s=0.5)


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_the_silent_are_named_and_the_living_are_not(store: dist.TCPStore) -> None:
    """Of five: this one, one that beats, one that does not, and two that never came."""
    mine, living, silent = (quick(store, rank, 5) for rank in range(3))
    assert silent.rank == 2
    with living.watch(), pytest.raises(UserError) as caught, mine.watch():
        raise RuntimeError(LOST)
    here = re.escape(f"{socket.gethostname()}, process {os.getpid()}")
    never = r"rank 3 \(which never came\), rank 4 \(which never came\)"
    assert re.match(rf"no sign of life from rank 2 \({here}\), {never}: killed", str(caught.value))
    assert str(caught.value).endswith("(Connection closed by peer [127.0.0.1]:1)")


def test_who_left_in_order_is_not_missed(store: dist.TCPStore) -> None:
    """Of three: one that ended well, and one that had lost another and said so."""
    mine, well, lost = (quick(store, rank, 4) for rank in range(3))
    with well.watch():
        pass
    with pytest.raises(UserError, match=r"no sign of life from rank 0 .*, rank 3"), lost.watch():
        raise RuntimeError(LOST)
    with pytest.raises(UserError) as caught, mine.watch():
        raise RuntimeError(LOST)
    assert str(caught.value).startswith("no sign of life from rank 3 (which never came): killed")


def test_where_all_others_left_nobody_is_called_lost(store: dist.TCPStore) -> None:
    mine, other = quick(store, 0, 2), quick(store, 1, 2)
    with other.watch():
        pass
    with pytest.raises(UserError) as caught, mine.watch():
        raise RuntimeError(LOST)
    assert re.match(r"the ranks have lost each other: rank 1 \(.*\) left", str(caught.value))


def test_where_all_live_nobody_is_blamed(store: dist.TCPStore) -> None:
    mine, other = quick(store, 0, 2), quick(store, 1, 2)
    with other.watch(), pytest.raises(UserError, match="though all are alive"), mine.watch():
        raise RuntimeError("Timed out waiting 4000ms for recv operation to complete")


def test_what_nccl_says_last_is_kept(store: dist.TCPStore) -> None:
    """Its first words are the same whatever happened."""
    with pytest.raises(UserError) as caught, quick(store, 0, 2).watch():
        raise dist.DistBackendError(NCCL_LOST)
    assert str(caught.value).endswith(
        "(NCCL error in: /torch/NCCLUtils.cpp:93, remote process exited, NCCL version 2.28.9:"
        " socketPollConnect: connect to 10.0.0.2<40123> returned Connection refused)"
    )


def test_an_error_of_ones_own_is_no_lost_rank(store: dist.TCPStore) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), quick(store, 0, 2).watch():
        raise RuntimeError("shape mismatch")


def test_a_store_that_never_answers_is_not_waited_for() -> None:
    """It lives in a process that is stopped: without torchrun that is rank 0."""
    held = (
        "import time, torch.distributed as d\n"
        "s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(s.port, flush=True)\ntime.sleep(60)"
    )
    host = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    try:
        mine = quick(dist.TCPStore("127.0.0.1", int(host.stdout.readline())), 1, 2)
        start = time.monotonic()
        host.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match="the process that the ranks met at"), mine.watch():
            raise RuntimeError(LOST)
        assert time.monotonic() - start < 10
    finally:
        host.kill()
        host.wait()


def test_a_thousand_ranks_are_asked_for_at_once(store: dist.TCPStore) -> None:
    """A thousand that each ask a thousand times would wait longer than for an answer."""
    for rank in range(1000):
        store.add(f"beat/{rank}", rank)
    mine = quick(store, 0, 1000)
    requests = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            requests.append(name)
            return getattr(store, name)

    mine.store = cast(Any, Counting())
    assert mine.beats() == [*range(1000)]
    assert len(requests) == 2
