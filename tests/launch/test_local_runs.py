"""Logs, state and end of a run on this machine; kill -9 of the process that runs it."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.command_line import UsageError
from launch import jobs
from launch.record.events import note, write_submission
from launch.record.local_runs import about_this_process, identity, local_stages
from launch.record.submitting import submitting
from launch.record.tee import Log

ROOT = Path(__file__).parents[2]
LAUNCHER = """
import sys
from pathlib import Path
from launch.cluster.profiles import Profile
from launch.local import run_here
run, program = sys.argv[1:]
sys.exit(run_here(Path(run), ["run=" + run], {"train": [sys.executable, "-c", program]}, Profile()))
"""
SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("begun", file=sys.stderr)
time.sleep(60)
"""
DRAWS = """
import sys, tqdm
bar = tqdm.tqdm(total=3, desc="fields", ncols=60, mininterval=0, miniters=1)
for field in "abc":
    tqdm.tqdm.write(f"has {field}", file=sys.stdout)
    bar.update()
bar.close()
sys.exit("error: a reason")
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a launcher whose only stage is a program; what still runs in the end is killed."""
    begun = []

    def launch(program: str, terminal: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path), program],
            cwd=ROOT,
            stdout=terminal,
            stderr=terminal,
        )
        begun.append(process)
        return process

    yield launch
    for process in begun:
        process.kill()
        process.wait()


def log_of(run: Path, number: int = 1) -> str:
    """The log of a start, '' before there is one."""
    path = run / "launch" / "jobs" / f"local-{number}" / "train_log.out"
    return path.read_text() if path.is_file() else ""


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def state(run: Path) -> str:
    """The state of the only stage in the table of `status`."""
    lines = jobs.status(run)
    (header,) = [number for number, line in enumerate(lines) if line.startswith("stage")]
    return lines[header + 1].split()[2]


class TestKilled:
    """kill -9 of the launcher."""

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the stage")
    def test_the_stage_saves_and_says_so_in_its_log(
        self,
        tmp_path: Path,
        launched: Callable[..., subprocess.Popen[bytes]],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        process = launched(SAVES)
        wait_for(lambda: "begun" in log_of(tmp_path))
        assert state(tmp_path) == "RUNNING"
        process.kill()
        process.wait()
        assert state(tmp_path) == "KILLED"
        wait_for(lambda: log_of(tmp_path) == "begun\nsaved\n")
        assert jobs.main(["logs", str(tmp_path)]) == 0
        assert capfd.readouterr().out == "begun\nsaved\n"
        assert jobs.status(tmp_path)[-1].endswith("killed")

    def test_a_killed_run_may_be_submitted_again_and_gets_a_log_of_its_own(
        self, tmp_path: Path, launched: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        killed = launched(SAVES)
        wait_for(lambda: "begun" in log_of(tmp_path))
        killed.kill()
        killed.wait()
        assert launched("print('again')").wait(timeout=60) == 0
        assert (log_of(tmp_path, 2), state(tmp_path)) == ("again\n", "COMPLETED")


class TestCancel:
    """jobs.py cancel, and a submission of what runs."""

    def test_it_stops_what_runs_here_and_a_second_submission_does_not(
        self,
        tmp_path: Path,
        launched: Callable[..., subprocess.Popen[bytes]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        process = launched(SAVES)
        wait_for(lambda: "begun" in log_of(tmp_path))
        with pytest.raises(UsageError) as refused, submitting(tmp_path):
            pass
        assert f"train runs here (process {process.pid}); nothing was queued" in str(refused.value)
        assert f"`python launch/jobs.py cancel {tmp_path}`" in str(refused.value)
        assert jobs.main(["cancel", str(tmp_path)]) == 0
        assert f"process {process.pid} was told to stop" in capsys.readouterr().out
        assert process.wait(timeout=60) == 75
        assert (state(tmp_path), log_of(tmp_path)) == ("STOPPED", "begun\nsaved\n")
        assert jobs.main(["cancel", str(tmp_path)]) == 0
        assert "nothing of" in capsys.readouterr().out
        with submitting(tmp_path):
            pass

    def test_a_later_process_with_the_same_number_is_left_alone(self, tmp_path: Path) -> None:
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            begun(tmp_path, about_this_process() | {"pid": other.pid})
            assert state(tmp_path) == "KILLED"
            assert jobs.main(["cancel", str(tmp_path)]) == 0
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    def test_another_machine_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        begun(tmp_path, about_this_process() | {"nodes": "elsewhere"})
        assert state(tmp_path) == "UNKNOWN"
        assert jobs.main(["cancel", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "train was started on elsewhere; there: python launch/jobs.py cancel" in printed

    def test_without_a_name_those_that_run_are_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a", "b", "c"):
            begun(tmp_path / "runs" / name, about_this_process())
        note(tmp_path / "runs" / "b", "finished", "train", job="local-1")
        with pytest.raises(UsageError) as refused:
            jobs.main(["cancel"])
        assert str(refused.value).splitlines()[1:] == [
            "  python launch/jobs.py cancel runs/a",
            "  python launch/jobs.py cancel runs/c",
        ]


def begun(run: Path, about: dict[str, object]) -> None:
    """Let a run look as if a process had started its training."""
    (run / "launch" / "jobs" / "local-1").mkdir(parents=True)
    write_submission(run, {"time_s": 0, "revision": "", "jobs": {}})
    note(run, "started", "train", job="local-1", **about)


class TestLogs:
    """What goes to the terminal, and into the log."""

    def test_a_terminal_sees_bars_and_the_log_gets_lines(
        self, tmp_path: Path, launched: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # none: no bars
        process = launched(DRAWS, theirs)
        os.close(theirs)
        shown = b""
        while piece := read(ours):
            shown += piece
        assert process.wait(timeout=60) == 1
        for part in (b"1/3", b"2/3", b"3/3", b"has c", b"error: a reason"):
            assert part in shown
        lines = log_of(tmp_path).splitlines()
        assert [line for line in lines if "fields" not in line] == [
            "has a",
            "has b",
            "has c",
            "error: a reason",
        ]
        (bar,) = [line for line in lines if "fields" in line]
        assert "3/3" in bar
        assert "1/3" not in bar
        assert state(tmp_path) == "FAILED"
        assert jobs.status(tmp_path)[-1].endswith("gave up: a reason")

    def test_what_was_drawn_over_is_left_out(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("wb") as file:
            log = Log(file.fileno())
            for piece in (
                b"one\ntw",
                b"o\n\n\rbar 1\rbar 2",
                b"\r     \rthree\r\n\rbar 3\r   \r\n",
            ):
                log.add(piece)
            log.written_s -= 60
            log.add(b"\rbar 4")
            log.add(b"\rbar 5")
        assert (tmp_path / "log").read_text() == "one\ntwo\n\nthree\nbar 4\n"

    def test_all_ranks_share_one(self, tmp_path: Path) -> None:
        begun(tmp_path, about_this_process())
        (tmp_path / "launch/jobs/local-1/train_log.out").write_text("")
        with pytest.raises(UsageError, match=r"all ranks share one log; .*logs .* --stage train"):
            jobs.main(["logs", str(tmp_path), "--rank", "1", "--stage", "train"])

    @pytest.mark.parametrize(
        "name", ["local-../7", "local-", "local-\u0667", "local-1/..", "local-" + "9" * 5000]
    )
    def test_what_is_no_name_of_a_start_is_passed_over(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "launch").mkdir()
        note(tmp_path, "started", "train", job=name, **about_this_process())
        note(tmp_path, "started", "../x", job="local-1", **about_this_process())
        assert local_stages(tmp_path) == []


def read(terminal: int) -> bytes:
    """What comes next on a terminal, b'' once it is closed."""
    try:
        return os.read(terminal, 2**16)
    except OSError:
        return b""


def test_a_process_is_known_by_its_start_and_command() -> None:
    ours = identity(os.getpid())
    assert re.fullmatch("[0-9a-f]{16}", ours)
    assert ours == identity(os.getpid())
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert identity(other.pid) not in ("", ours)
    other.send_signal(signal.SIGKILL)
    wait_for(lambda: identity(other.pid) == "")  # although nobody has waited for it
    other.wait()
    assert about_this_process()["nodes"] == socket.gethostname()
    assert json.dumps(about_this_process())
