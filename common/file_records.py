"""Tell by a record whether files are as this program wrote them.

The files of an item get the time of change that their record has, to the nanosecond. A file is
ours, and unchanged, where it has that time and the recorded size, or else (touched, copied) the
recorded sha256. A power loss may empty a file of ours: an empty one under a recorded name counts
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
    """A file as it was written."""

    num_bytes: int
    sha256: str
    """Of its content, or of its two ends."""
    is_by_ends: bool = False
    """Whether the hash is of its ends."""

    def is_at(self, path: Path, mtime_ns: int) -> bool:
        """Whether this is what stands at a path, as it surely is with a time of change; a link
        never is."""
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
    """What is recorded of an item."""

    files: dict[str, list[Version]] = field(default_factory=dict)
    """Path from the output folder -> the file's version; of one that is being replaced the old and
    the new."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the command notes once all its files are there; empty before."""
    mtime_ns: int = 0
    """Its time of change, which its files have too."""


def read_record(path: Path) -> Record:
    """Read a record; return an empty one where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text())
        versions = {
            name: [Version(*version) for version in entries]
            for name, entries in content["files"].items()
            if is_inside(name)  # a record may come from elsewhere
        }
        return Record(versions, dict(content["about"]), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Record()


def is_whole(record: Record, out: Path, name: str) -> bool:
    """Whether a file is as its item's record says."""
    versions = record.files.get(name, ())
    return any(version.is_at(out / name, record.mtime_ns) for version in versions)


def owns(record: Record, out: Path, name: str) -> bool:
    """Whether a file may be replaced or removed: it is as recorded, or was emptied, as a power loss
    does; nobody loses anything with that one."""
    return is_whole(record, out, name) or (name in record.files and is_empty(out / name))


def is_empty(path: Path) -> bool:
    """Whether a file without content stands at a path, and no link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and not found.st_size


def remove_own(record: Record, out: Path, name: str) -> None:
    """Remove a file of an item where nobody has changed it."""
    if not link_above(out, name) and owns(record, out, name):
        (out / name).unlink()


def link_above(out: Path, name: str) -> str:
    """The first folder of a path below `out` that is a link; '' where none is."""
    above = ""
    for part in name.split("/")[:-1]:
        above = f"{above}/{part}" if above else part
        if os.path.islink(out / above):
            return above
    return ""
