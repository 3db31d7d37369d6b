"""Copy the pack to a machine's own disk, once for all processes and later runs there.

    DIR/eosin-<user id>/<hash>.u8   the copy, named as the pack is: by a hash of its content
    DIR/eosin-<user id>/.eosin/     its record, see common.ownership
    DIR/eosin-<user id>/lock        locked by the process that looks, or copies

The folder is this user's alone, so nobody else's file is used, replaced or removed. A copy gets its
name when it was read back from the disk with the bytes of the pack. It is used again while its
record says that it is unchanged.
"""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.command_line import UserError, os_error_text
from common.file_records import is_whole
from common.files import file_sha256, sync
from common.ownership import Item, Made, clear_temporaries
from data_prep.dataset.pack import KIND

CHUNK_BYTES = 2**23
POLL_S = 0.1

IsStopped = Callable[[], bool]


class StagingError(UserError):
    """The pack cannot be copied to this machine's disk."""


def stage_pack(pack: Path, folder: Path, is_stopped: IsStopped) -> tuple[Path, bool]:
    """Return the copy of a pack in a folder of this machine's, and whether it was made now.

    Waits while another process copies. Raises UserError with the reason if there can be no copy, or
    once `is_stopped` says so.
    """
    try:
        own = own_folder(folder)
        with locked(own / "lock", is_stopped):
            item = Item(own, KIND, pack.stem)
            if is_whole(item.read(), own, pack.name):
                return own / pack.name, False
            clear_temporaries(own, KIND)  # of processes that were killed
            copy(pack, item, is_stopped)
            return own / pack.name, True
    except OSError as error:
        raise StagingError(os_error_text(error)) from None


def own_folder(folder: Path) -> Path:
    """Return this user's folder in `folder`; make both where they are missing."""
    own = folder / f"eosin-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StagingError(f"{own}: is somebody else's; move it away")
    return own


@contextmanager
def locked(file: Path, is_stopped: IsStopped) -> Iterator[None]:
    """While this context lasts, keep out the other processes; a killed one frees the lock."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while not is_locked_by_us(descriptor):
            if is_stopped():
                raise StagingError("stopped")
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def is_locked_by_us(descriptor: int) -> bool:
    """Try to take the lock; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def copy(pack: Path, item: Item, is_stopped: IsStopped) -> None:
    """Copy a pack to be the only file of its item. Raises StagingError or OSError."""
    with item:
        if pack.name in item.read().files:  # a damaged copy of ours
            (item.out / pack.name).unlink(missing_ok=True)
        item.check([pack.name], "train without stage=")
        temporary = item.make(pack.name)
        sha256 = copy_bytes(pack, temporary, is_stopped)
        read_from_disk(temporary)
        if file_sha256(temporary) != sha256:
            raise StagingError(f"{item.out}: the disk does not return what was written to it")
        item.made[pack.name] = Made(temporary, sha256)
        item.publish()


def copy_bytes(source: Path, target: Path, is_stopped: IsStopped) -> str:
    """Copy a file; return the sha256 of what was read. A full disk fails before the first byte."""
    sha256 = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as written:
        size = os.fstat(read.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(written.fileno(), 0, size)
        while chunk := read.read(CHUNK_BYTES):
            if is_stopped():
                raise StagingError("stopped")
            sha256.update(chunk)
            written.write(chunk)
    return sha256.hexdigest()


def read_from_disk(path: Path) -> None:
    """Let the next reader of a file get its bytes from the disk, where the system can do that."""
    sync(path)
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
