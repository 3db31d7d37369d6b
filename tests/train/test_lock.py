"""One run folder, one run."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import UserError
from train import lock
from train.config import TrainConfig
from train.lock import RunLock
from train.trainer import Trainer

HOLD = """
import sys, time
from pathlib import Path
from train.lock import RunLock
held = RunLock(Path(sys.argv[1]))
held.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_soon_and_told_by_whom(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()}"):
        RunLock(tmp_path).acquire()
    assert time.monotonic() - start < 8  # once its holder has touched it again


def test_what_a_killed_process_left_is_taken_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    RunLock(tmp_path).acquire()
    assert time.monotonic() - start < 5


def as_from_another_node(folder: Path, touched: float) -> None:
    """A lock as a process of another node leaves it."""
    (folder / "lock").write_text(
        f"filelock/2\npid=1\nhost=n7\nmode=lease\ntoken={'a' * 32}\n"
        f"duration={lock.LEASE_S}\nstart=5\n"
    )
    (folder / "lock").chmod(0o600)
    os.utime(folder / "lock", (touched, touched))


def test_one_left_by_a_dead_process_of_another_node_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged by whether it is touched, never by clocks, which differ between nodes."""
    monkeypatch.setattr(lock, "LEASE_S", 1.0)
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    as_from_another_node(tmp_path, time.time() + 3600)
    RunLock(tmp_path).acquire()
    assert "waiting whether process 1 on n7 lives" in capsys.readouterr().err


def test_one_of_a_living_process_of_another_node_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_S", 1.0)
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    as_from_another_node(tmp_path, time.time())
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.2):
            os.utime(tmp_path / "lock")

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 1 on n7 is training it"):
            RunLock(tmp_path).acquire()
    finally:
        ended.set()
        thread.join()


def test_a_run_that_was_taken_over_ends(
    tiny: Callable[..., TrainConfig],
    new_trainer: Callable[[TrainConfig], Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that stood still for longer than a lease must not write beside its successor."""
    monkeypatch.setattr(lock, "LEASE_S", 0.3)
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    trainer = new_trainer(tiny(tmp_path / "run", "epochs=1000"))
    trainer.lock = RunLock(tmp_path / "run")
    trainer.lock.acquire()
    original = trainer.train_step

    def taken_over_in_step_2() -> None:
        if trainer.state.progress.step == 2:
            (tmp_path / "run" / "lock").unlink()
            time.sleep(1)
        original()

    trainer.train_step = taken_over_in_step_2
    with pytest.raises(UserError, match="another has taken the run over"):
        trainer.fit()
    assert trainer.state.progress.step == 3
