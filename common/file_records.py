"""Find out from a record whether files are as this program wrote them.

The files of an item get the modification time of their record, to the nanosecond. A file is ours
and unchanged if it has that time and the recorded size; if it was touched or copied, it must have
the recorded sha256. A power loss may empty our files, so an empty file with a recorded name counts
as ours.
"""

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.files import ends_sha256, file_sha256, is_inside


class Version(NamedTuple):
    """The size and hash of a file as it was written."""

    num_bytes: int
    sha256: str
    """Hash of its content, or of its two ends."""
    is_by_ends: bool = False
    """Whether the hash is of its ends."""

    def is_at(self, path: Path, mtime_ns: int) -> bool:
        """Return whether the file at a path is this version; a link never is.

        Compares hashes only if the modification time is not `mtime_ns`.
        """
        try:
            found = path.lstat()
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != self.num_bytes:
            return False
        if found.st_mtime_ns == mtime_ns:
            return True
        return (ends_sha256 if self.is_by_ends else file_sha256)(path) == self.sha256


@dataclass
class Record:
    """The record of an item."""

    files: dict[str, list[Version]] = field(default_factory=dict)
    """Path from the output folder -> the file's version; the old and the new version while it is
    being replaced."""
    about: dict[str, Any] = field(default_factory=dict)
    """The command's own notes, written once all files have their names; empty before."""
    mtime_ns: int = 0
    """The modification time of the record, which its files have too."""


def read_record(path: Path) -> Record:
    """Read a record; return an empty one if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        versions = {
            name: [Version(*version) for version in entries]
            for name, entries in content["files"].items()
            if is_inside(name)  # do not trust a record from another computer
        }
        return Record(versions, dict(content["about"]), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Record()


def is_whole(record: Record, out: Path, name: str) -> bool:
    """Return whether a file is as its item's record says."""
    versions = record.files.get(name, ())
    return any(version.is_at(out / name, record.mtime_ns) for version in versions)


def owns(record: Record, out: Path, name: str) -> bool:
    """Return whether a file may be replaced or removed: it is as recorded, or empty.

    A power loss can empty a file, and nobody loses anything with an empty one.
    """
    return is_whole(record, out, name) or (name in record.files and is_empty(out / name))


def is_empty(path: Path) -> bool:
    """Return whether a path is an empty file, and not a link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and not found.st_size


def remove_own(record: Record, out: Path, name: str) -> None:
    """Remove a file of an item, unless somebody changed it."""
    if not link_above(out, name) and owns(record, out, name):
        (out / name).unlink()


def link_above(out: Path, name: str) -> str:
    """Return the first folder of a path below `out` that is a link; '' if none is."""
    above = ""
    for folder in name.split("/")[:-1]:
        above = f"{above}/{folder}" if above else folder
        if os.path.islink(out / above):
            return above
    return ""
