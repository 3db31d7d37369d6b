"""A copy of the pack on a machine's own disk: whole or not used, and no file of others touched."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.dataset import staged_pack
from data_prep.dataset.staged_pack import stage_pack

CONTENT = os.urandom(3_000_000)  # longer than the chunks below, and no multiple of them


def never() -> bool:
    return False


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared pack."""
    monkeypatch.setattr(staged_pack, "CHUNK_BYTES", 2**20)
    path = tmp_path / "prepared" / "packed" / "0123456789abcdef.u8"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A node's own disk."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def own(disk: Path) -> Path:
    return disk / f"eosin-{os.getuid()}"


def leftovers(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*") if path.name.endswith(".tmp")]


def test_it_is_copied_once_and_used_again(pack: Path, disk: Path) -> None:
    path, is_new = stage_pack(pack, disk, never)
    assert is_new
    assert path == own(disk) / pack.name
    assert path.read_bytes() == CONTENT
    assert own(disk).stat().st_mode & 0o777 == 0o700
    before = path.stat()
    pack.unlink()  # a later job reads the shared pack no more
    assert stage_pack(pack, disk, never) == (path, False)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert leftovers(disk) == []


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(bytes([CONTENT[1_500_000] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: os.truncate(path, 2**20), lambda path: path.write_bytes(b""), os.unlink],
    ids=["flipped", "cut", "emptied", "removed"],
)
def test_a_damaged_copy_is_noticed_and_copied_anew(
    damage: Callable[[Path], None], pack: Path, disk: Path
) -> None:
    path, _ = stage_pack(pack, disk, never)
    in_use = path.open("rb")  # by a job that has mapped it
    damage(path)
    assert stage_pack(pack, disk, never) == (path, True)
    assert path.read_bytes() == CONTENT
    in_use.close()


def test_a_copy_that_was_only_touched_is_read_and_kept(pack: Path, disk: Path) -> None:
    path, _ = stage_pack(pack, disk, never)
    os.utime(path)
    assert stage_pack(pack, disk, never) == (path, False)


def test_a_disk_that_returns_other_bytes_is_not_used(
    pack: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_pack, "read_from_disk", flip)
    with pytest.raises(UserError, match="does not return what was written to it"):
        stage_pack(pack, disk, never)
    assert not (own(disk) / pack.name).exists()
    assert leftovers(disk) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond two megabytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)


def test_a_full_disk_gives_the_reason_and_leaves_nothing(pack: Path, disk: Path) -> None:
    with full_disk(), pytest.raises(UserError, match="File too large"):
        stage_pack(pack, disk, never)
    assert not (own(disk) / pack.name).exists()
    assert leftovers(disk) == []
    assert stage_pack(pack, disk, never)[1], "there is room again"


def test_a_folder_that_cannot_be_used_gives_the_reason(pack: Path, disk: Path) -> None:
    with pytest.raises(UserError, match=r"no/such.*No such file or directory"):
        stage_pack(pack, disk / "no" / "such", never)
    (disk / "file").touch()
    with pytest.raises(UserError, match=r"disk/file.*(Not a directory|exists)"):
        stage_pack(pack, disk / "file", never)
    assert stage_pack(pack, disk / "new", never)[1], "its last part is made"


class TestOthers:
    """What is not ours stays as it is."""

    def test_a_file_or_a_link_with_the_name_of_our_folder(self, pack: Path, disk: Path) -> None:
        elsewhere = disk / "elsewhere"
        elsewhere.mkdir()
        own(disk).symlink_to(elsewhere)
        with pytest.raises(UserError, match="is somebody else's"):
            stage_pack(pack, disk, never)
        assert list(elsewhere.iterdir()) == []

    @pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
    def test_a_folder_of_another_user(self, pack: Path, disk: Path) -> None:
        own(disk).mkdir()
        os.chown(own(disk), 1, 1)
        with pytest.raises(UserError, match="is somebody else's"):
            stage_pack(pack, disk, never)
        assert list(own(disk).iterdir()) == []

    def test_a_file_with_the_name_of_the_copy(self, pack: Path, disk: Path) -> None:
        own(disk).mkdir(mode=0o700)
        (own(disk) / pack.name).write_text("mine")
        with pytest.raises(UserError, match="not written by this command"):
            stage_pack(pack, disk, never)
        assert (own(disk) / pack.name).read_text() == "mine"

    def test_other_files_beside_it(self, pack: Path, disk: Path) -> None:
        own(disk).mkdir(mode=0o700)
        others = [own(disk) / "notes", own(disk) / "fedcba9876543210.u8", disk / ".0.tmp"]
        for path in others:
            path.write_text("mine")
        path, _ = stage_pack(pack, disk, never)
        flip(path)
        stage_pack(pack, disk, never)
        assert [path.read_text() for path in others] == ["mine"] * 3


COPY = """
import sys, time
from pathlib import Path
from data_prep.dataset import staged_pack
staged_pack.CHUNK_BYTES = 2**18
print("ready", flush=True)
sys.stdin.readline()
def not_stopped():
    time.sleep(0.05)  # a chunk
    return False
print(staged_pack.stage_pack(Path(sys.argv[1]), Path(sys.argv[2]), not_stopped)[1], flush=True)
"""


def start(number: int, pack: Path, disk: Path) -> list[subprocess.Popen[str]]:
    """Processes that copy at once, slowly, and say whether they did."""
    command = [sys.executable, "-c", COPY, str(pack), str(disk)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes, text=True) for _ in range(number)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_of_several_at_once_one_copies(pack: Path, disk: Path) -> None:
    """The ranks of a node, or two jobs."""
    processes = start(3, pack, disk)
    told = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(told) == ["False\n", "False\n", "True\n"]
    assert (own(disk) / pack.name).read_bytes() == CONTENT


def test_what_a_killed_process_began_is_removed(pack: Path, disk: Path) -> None:
    (killed,) = start(1, pack, disk)
    while not leftovers(disk):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    assert leftovers(disk)
    assert stage_pack(pack, disk, never)[1]
    assert leftovers(disk) == []


@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_stop_ends_the_wait_and_the_copying(is_waiting: bool, pack: Path, disk: Path) -> None:
    own(disk).mkdir(mode=0o700)
    with (own(disk) / "lock").open("w") as lock:
        if is_waiting:
            fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="stopped"):
            stage_pack(pack, disk, lambda: True)
    assert leftovers(disk) == []
