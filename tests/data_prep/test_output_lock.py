"""Runs of `python -m data_prep` at once on one out=: real processes, paused in the middle."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import lease
from data_prep import __main__ as command
from data_prep.output_lock import locked

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("warm_workers")]

ROOT = Path(__file__).parents[2]
LEASE_S, BEAT_S = 3.0, 0.2
SETTINGS = ["copies=1", "workers=1", "split.val=0", "split.test=0"]

# `python -m data_prep` that says when a worker has done a field, and then waits for a line
PAUSED = f"""
import sys
from common import command_line, lease
from data_prep import __main__, prepare

lease.LEASE_S, lease.BEAT_S = {LEASE_S}, {BEAT_S}

def track(items, label, **others):
    for item in items:
        if label == "prepare":
            print("at it", flush=True)
            sys.stdin.readline()
        yield item

prepare.track = track
command_line.run(__main__.main, sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    monkeypatch.setattr(lease, "BEAT_S", BEAT_S)


@pytest.fixture
def raw(raw_folder: Callable[..., Path]) -> Path:
    return raw_folder({"1": 2, "2": 2})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def arguments(raw: Path, out: Path) -> Callable[[str], list[str]]:
    return lambda share: [f"raw={raw}", f"out={out}", f"share={share}", *SETTINGS]


@pytest.fixture
def paused(arguments: Callable) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """paused("1/2") starts a run and returns it in the middle of its first field."""
    started = []

    def start(share: str) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, "-c", PAUSED, *arguments(share)], cwd=ROOT, text=True, **pipes
        )
        started.append(process)
        assert process.stdout.readline() == "at it\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def locks(out: Path) -> list[str]:
    return [path.name for path in out.glob(".lock*")]


@pytest.mark.parametrize(
    ("first", "second", "doing"),
    [
        ("", "", "preparing it"),
        ("1/2", "", "preparing share 1/2 of it"),
        ("", "1/2", "preparing it"),
        ("1/2", "01/2", "preparing share 1/2 of it"),
        ("1/2", "1/3", "preparing share 1/2 of it"),  # they have fields in common
    ],
)
def test_a_run_that_is_in_the_way_of_another_is_refused(
    first: str, second: str, doing: str, paused: Callable, cli: Callable, arguments: Callable
) -> None:
    holder = paused(first)
    code, said, errors = cli(command.main, *arguments(second))
    out = arguments("")[1]
    who = f"process {holder.pid} on {socket.gethostname()}"
    assert (code, said) == (1, "")
    assert errors == (
        f"error: {out}: {who} is {doing}; wait for its end or stop it, or name another out=\n"
    )
    said, errors = holder.communicate("\n" * 9)
    assert (holder.returncode, errors) == (0, "")


def test_a_refused_run_leaves_no_lock(
    paused: Callable, cli: Callable, arguments: Callable, out: Path
) -> None:
    paused("1/2")
    assert cli(command.main, *arguments("")).code == 1
    assert locks(out) == [".lock-1-of-2"]


def test_shares_of_one_set_run_side_by_side_and_are_joined(
    paused: Callable, cli: Callable, arguments: Callable, out: Path
) -> None:
    holder = paused("1/2")
    assert cli(command.main, *arguments("2/2")).code == 0
    holder.communicate("\n" * 9)
    assert holder.returncode == 0
    assert locks(out) == []
    joined = cli(command.main, *arguments(""))
    assert joined.code == 0
    assert "kept as they were: 4 fields" in joined.out


@pytest.mark.parametrize(("killed", "then"), [("", "1/2"), ("1/2", ""), ("1/2", "1/2")])
def test_what_a_killed_run_left_is_in_nobodys_way(
    killed: str, then: str, paused: Callable, cli: Callable, arguments: Callable, out: Path
) -> None:
    holder = paused(killed)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(locks(out)) == 1
    assert cli(command.main, *arguments(then)).code == 0
    assert locks(out) == []


def test_shares_that_start_together_after_a_killed_join_all_go_on(
    paused: Callable, arguments: Callable, out: Path
) -> None:
    """Each looks at the lock that it left, and none takes another that looks for its owner."""
    holder = paused("")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    preamble = f"from common import lease; lease.LEASE_S, lease.BEAT_S = {LEASE_S}, {BEAT_S}\n"
    code = preamble + "import sys, runpy; runpy.run_module('data_prep', run_name='__main__')"
    shares = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments(f"{k}/4")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(1, 5)
    ]
    ended = [(*share.communicate(timeout=60), share.returncode) for share in shares]
    assert [(errors, code) for _, errors, code in ended] == [("", 0)] * 4
    assert locks(out) == []


def test_a_run_that_stood_still_until_another_took_over_ends(
    paused: Callable, cli: Callable, arguments: Callable, out: Path
) -> None:
    holder = paused("")
    holder.send_signal(signal.SIGSTOP)
    try:
        assert cli(command.main, *arguments("")).code == 0
        written = (out / "dataset.json").stat().st_mtime_ns
    finally:
        holder.send_signal(signal.SIGCONT)
    _, errors = holder.communicate("\n" * 9)
    assert holder.returncode == 1
    assert f"out={out}: this process was paused for so long that another one took it" in errors
    assert (out / "dataset.json").stat().st_mtime_ns == written


def test_a_file_of_another_name_is_no_lock(out: Path) -> None:
    out.mkdir()
    (out / ".lock-of-mine").write_text("mine")
    with locked(out, ""):
        assert (out / ".lock-of-mine").read_text() == "mine"
