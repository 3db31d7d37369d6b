"""One folder, one process."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import lease
from common.command_line import UserError
from common.lease import Lease

HOLD = """
import sys, time
from pathlib import Path
from common.lease import Lease
held = Lease(Path(sys.argv[1]), "run", name="lock", doing="training it")
held.acquire()
print("held", flush=True)
time.sleep(60)
"""


def of(folder: Path) -> Lease:
    return Lease(folder, "run", name="lock", doing="training it")


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
        of(tmp_path).acquire()
    assert time.monotonic() - start < 8  # once its holder has touched it again


def test_what_a_killed_process_left_is_taken_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    of(tmp_path).acquire()
    assert time.monotonic() - start < 5


def test_one_whose_process_was_killed_before_it_wrote_its_name_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    (tmp_path / "lock").touch()
    of(tmp_path).acquire()
    assert f"pid={os.getpid()}" in (tmp_path / "lock").read_text()


@pytest.mark.parametrize("kind", ["text", "bytes", "link", "folder"])
def test_a_file_that_is_no_lock_is_left_alone(kind: str, tmp_path: Path) -> None:
    """Though nobody touches it: a user's own file called lock."""
    lock, mine = tmp_path / "lock", tmp_path / "mine"
    mine.write_text("mine")
    if kind == "folder":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(mine)
    else:
        lock.write_bytes(b"mine" if kind == "text" else b"\xff\xfe")
    before = lock.lstat()
    with pytest.raises(UserError, match="lock is in the way and is not a lock of this program"):
        of(tmp_path).acquire()
    assert (lock.lstat().st_ino, lock.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert mine.read_text() == "mine"


def test_one_that_was_taken_meanwhile_is_put_back(tmp_path: Path) -> None:
    ours, theirs = of(tmp_path), of(tmp_path)
    ours.acquire()
    theirs.remove_blank()
    ours.check()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_blank_one_that_is_touched_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    lock, is_over = tmp_path / "lock", threading.Event()
    lock.touch()

    def beat() -> None:
        while not is_over.wait(0.05):
            lock.touch()

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(UserError, match="a process that has not written its name yet is train"):
        of(tmp_path).acquire()
    is_over.set()
    beating.join()
    assert lock.read_text() == ""


def test_one_that_is_written_late_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.5)
    (tmp_path / "lock").touch()
    start, writing = time.monotonic(), threading.Timer(0.5, write_lock, [tmp_path / "lock"])
    writing.start()
    of(tmp_path).acquire()
    assert time.monotonic() - start > 2.0, "it then was another's, and had to run out"
    writing.join()


def write_lock(path: Path, touched: float | None = None) -> None:
    """As a process of another node does."""
    path.write_text(
        f"filelock/2\npid=1\nhost=n7\nmode=lease\ntoken={'a' * 32}\n"
        f"duration={lease.LEASE_S}\nstart=5\n"
    )
    path.chmod(0o600)
    if touched is not None:
        os.utime(path, (touched, touched))


@pytest.fixture
def left_by_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """left_by_another_node(lease_s=1.0) leaves a lock as a process there does; waits are short."""

    def leave(*, lease_s: float, touched: float | None = None) -> None:
        monkeypatch.setattr(lease, "LEASE_S", lease_s)
        monkeypatch.setattr(lease, "BEAT_S", 0.2)
        write_lock(tmp_path / "lock", touched)

    return leave


def test_one_left_by_a_dead_process_of_another_node_runs_out(
    left_by_another_node: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged by whether it is touched, never by clocks, which differ between nodes."""
    left_by_another_node(lease_s=1.0, touched=time.time() + 3600)
    of(tmp_path).acquire()
    assert "waiting to see whether process 1 on n7 is alive" in capsys.readouterr().err


def test_one_of_a_living_process_of_another_node_does_not(
    left_by_another_node: Callable[..., None], tmp_path: Path
) -> None:
    left_by_another_node(lease_s=1.0)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.2):
            os.utime(tmp_path / "lock")

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 1 on n7 is training it"):
            of(tmp_path).acquire()
    finally:
        ended.set()
        thread.join()


def test_one_that_changes_hands_is_not_taken_for_one_that_lives(
    left_by_another_node: Callable[..., None], tmp_path: Path
) -> None:
    """Each owner has it for an instant, as those who only look whether it is free."""
    left_by_another_node(lease_s=3.0)

    def hand_over() -> None:
        for pid in range(2, 12):
            time.sleep(0.1)
            (tmp_path / "lock").write_text(
                (tmp_path / "lock").read_text().replace(f"pid={pid - 1}", f"pid={pid}")
            )
        (tmp_path / "lock").unlink()

    thread = threading.Thread(target=hand_over)
    thread.start()
    try:
        with of(tmp_path) as taken:
            assert taken.claim().owner["pid"] == str(os.getpid())
    finally:
        thread.join()
    assert not (tmp_path / "lock").exists()


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """unreadable(2) lets the next two reads of the lock fail, as on NFS."""
    left = 0
    read_text = Path.read_text

    def fail(path: Path) -> str:
        nonlocal left
        if path == tmp_path / "lock" and left:
            left -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_text(path)

    def set_left(number: int) -> None:
        nonlocal left
        left = number

    monkeypatch.setattr(Path, "read_text", fail)
    return set_left


def take_over(folder: Path) -> None:
    """Another file under the lock's name, of another process."""
    write_lock(folder / "other")
    (folder / "other").replace(folder / "lock")


def test_a_lock_that_cannot_be_read_at_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: Callable[[int], None]
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    with of(tmp_path) as ours:
        unreadable(1)
        ours.check()
        take_over(tmp_path)
        unreadable(1)
        with pytest.raises(UserError, match="another one took it over"):
            ours.check()


def test_one_that_stays_unreadable_is_looked_at_by_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: Callable[[int], None]
) -> None:
    """The beat, which touches it, finds nothing wrong meanwhile."""
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    with of(tmp_path) as ours:
        unreadable(10**6)
        start = time.monotonic()
        ours.check()
        assert time.monotonic() - start >= 4 * 0.2
        unreadable(0)
        (tmp_path / "lock").unlink()
        with pytest.raises(UserError, match="another one took it over"):
            ours.check()


def test_one_that_another_took_is_lost_though_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: Callable[[int], None]
) -> None:
    """By another thread than the one that claimed it, as checkpoints are saved."""
    monkeypatch.setattr(lease, "BEAT_S", 0.5)
    with of(tmp_path) as ours, ThreadPoolExecutor(1) as pool:
        take_over(tmp_path)
        unreadable(10**6)
        with pytest.raises(UserError, match="another one took it over"):
            pool.submit(ours.check).result()
        assert ours.is_lost
