"""Write files whole or not at all, even when killed; read them back, hash and remove them.

This module imports nothing of the project.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""The name of a file that is being written."""
END_BYTES = 2**20  # hashed of either end of a file that is too large to be read again
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # control characters


FULL = errno.ENOSPC, errno.EDQUOT
"""The errors of a full disk and of a full quota."""


def name_in(error: BaseException | None, path: Path) -> None:
    """Let the error of a full disk name what was written; the system names no file in it."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        error.filename = str(path)


def whole_path(path: str | Path) -> Path:
    """Return a path from the root. Links to folders are followed; a file keeps its name, which says
    what it is: in the hub's cache links name files that are named by their hash."""
    path = Path(path)
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def new_temporary(folder: Path) -> Path:
    """Return an unused path in a folder."""
    return folder / f".{secrets.token_hex(8)}.tmp"


def through_no_link(path: str | Path, flags: int) -> int:
    """Open a file to add to it. Raises OSError for a link: what it names may be another's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def named_when_whole(
    path: Path, mtime_ns: int | None = None, *, is_synced: bool = False
) -> Iterator[BinaryIO]:
    """Open a file to write that gets its name at the end; a failure leaves nothing.

    `mtime_ns`: the modification time to give it. `is_synced`: wait until it is on the disk before
    it gets the name, so that the named file is whole after a power loss too.
    """
    temporary = new_temporary(path.parent)
    try:
        with temporary.open("xb") as file:
            yield file
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        if mtime_ns is not None:
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        name_in(error, path)
        raise


def write_atomically(
    path: Path, content: bytes, mtime_ns: int | None = None, *, is_synced: bool = False
) -> None:
    """Write a file as `named_when_whole` does: nobody ever sees half of it under its name."""
    with named_when_whole(path, mtime_ns, is_synced=is_synced) as file:
        file.write(content)


def holds(path: Path, content: bytes) -> bool:
    """Return whether a file exists and has this content."""
    return path.is_file() and path.read_bytes() == content


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ends_sha256(path: Path) -> str:
    """Hash the first and the last END_BYTES of a file."""
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(0, path.stat().st_size - END_BYTES))
        ends.update(file.read(END_BYTES))
    return ends.hexdigest()


def is_plain(name: object) -> bool:
    """Return whether a value from a file is a plain file name: no path, nothing unprintable."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and not UNPRINTABLE.search(name)
    )


def is_inside(path: object) -> bool:
    """Return whether a value from a file is a relative path that does not leave its folder."""
    return isinstance(path, str) and all(map(is_plain, path.split("/")))


def clear(folder: Path, is_known: Callable[[str], bool]) -> None:
    """Remove the files below a folder whose relative paths are known, then empty folders.

    Never removes `folder` itself, a link, or what lies behind a link.
    """
    if folder.is_symlink():
        return
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent, name)
            if is_known(str(path.relative_to(folder))) and not path.is_symlink():
                path.unlink(missing_ok=True)
        for name in folders:
            with suppress(OSError):  # not empty, or a link
                os.rmdir(Path(parent, name))
