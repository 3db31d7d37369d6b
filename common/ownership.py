"""What a command wrote into an output folder: only that does it ever replace or remove.

    OUT/.eosin/<kind>/<name>.json   a record: the files of one item (a field, a predicted image, an
                                    evaluation), each with its size and sha256
    OUT/.eosin/<kind>/.<hex>.tmp    a file that is being made
    OUT/.eosin/lock                 who writes results there, see train.ranks.lock

common.file_records says how files of ours are known. The record is written before the file gets its
name: a kill at any instant leaves no file of ours that would pass for the user's, and none of the
user's that would pass for ours. Each item has a record of its own, so processes and nodes never
write into one. Records of the same files are the same bytes.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from common.command_line import UserError, counted, named
from common.file_records import Record, Version, link_above, owns, read_record, remove_own
from common.files import (
    TEMPORARY,
    clear,
    ends_sha256,
    file_sha256,
    new_temporary,
    sync,
    write_atomically,
)

PRIVATE = ".eosin"


class Made(NamedTuple):
    """A file that does not have its name yet."""

    temporary: Path
    sha256: str = ""
    """Of its content, where that is known."""
    is_by_ends: bool = False
    """Whether it is to be known by its ends."""

    def version(self) -> Version:
        """What it is, now that it is written."""
        hashed = ends_sha256 if self.is_by_ends else file_sha256
        sha256 = self.sha256 or hashed(self.temporary)
        return Version(self.temporary.stat().st_size, sha256, self.is_by_ends)


class Item:
    """The files of one item in an output folder; `with item:` clears away what was not published.

    Files are made under temporary names (`write`, `make`), and get their own all at once
    (`publish`).
    """

    def __init__(self, out: Path, kind: str, name: str, making: Path | None = None) -> None:
        """`name` is a plain file name, of which there is one a kind. `making`: the private folder
        of the files that are being made, where that is one of the item's own."""
        self.out, self.kind, folder = out, kind, out / PRIVATE / kind
        self.file, self.making = folder / f"{name}.json", making or folder
        self.made: dict[str, Made] = {}
        self.is_begun = False

    def __enter__(self) -> "Item":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for made in self.made.values():
            made.temporary.unlink(missing_ok=True)
        self.made.clear()

    def read(self) -> Record:
        """What is recorded; nothing where there is no record, or a damaged one."""
        return read_record(self.file)

    def save(
        self, files: Mapping[str, list[Version]], about: Mapping[str, Any], mtime_ns: int
    ) -> None:
        """Write the record, and wait until it is on the disk."""
        content = json.dumps({"files": files, "about": about}) + "\n"
        write_atomically(self.file, content.encode(), mtime_ns, is_synced=True)

    def conflicts(self, names: Iterable[str], record: Record | None = None) -> list[str]:
        """Those of some paths at which something stands that is not ours, or was changed.

        A link among the folders above a path is named instead of the path.
        """
        record = record or self.read()
        found: dict[str, None] = {}
        for name in names:
            if link := link_above(self.out, name):
                found[link] = None
            elif not self.is_free(name, record):
                found[name] = None
        return list(found)

    def is_free(self, name: str, record: Record) -> bool:
        """Whether a path may be written: nothing stands there, or a file of ours does."""
        # in this order: another process may take our file away in between
        return owns(record, self.out, name) or not os.path.lexists(self.out / name)

    def check(self, names: Iterable[str], way_out: str = "name another out=") -> None:
        """Raises UserError that names the conflicts and says what to do."""
        if conflicts := self.conflicts(names):
            raise refusal(self.out, conflicts, way_out)

    def make(self, name: str, *, is_by_ends: bool = False) -> Path:
        """Where to write a file that is to be published as OUT/NAME.

        `is_by_ends`: it is too large to be read again, and is known by its size and its ends.
        """
        self.made[name] = Made(self.new_file(), is_by_ends=is_by_ends)
        return self.made[name].temporary

    def write(self, name: str, content: bytes) -> str:
        """Write a file that is to be published as OUT/NAME; returns its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.made[name] = made = Made(self.new_file(), sha256)
        with made.temporary.open("xb") as file:
            file.write(content)
        return sha256

    def new_file(self) -> Path:
        """A name for a file that is being made."""
        self.begin()
        return new_temporary(self.making)

    def begin(self) -> None:
        """Make the private folder. Raises UserError where something else is there."""
        if not self.is_begun:
            begin(self.out, self.kind)
            self.is_begun = True

    def publish(self, about: Mapping[str, Any] | None = None, *, durably: bool = False) -> None:
        """Give the files that were made their names, in place of all that the item had before.

        A last file that says that all are there is true at any instant: it is removed first and
        named last. With `durably` each name stands for the old file or for the new one at any
        instant, after a power loss too. Raises UserError, and changes nothing, where something
        stands in the way that is not ours.
        """
        self.begin()
        new = {name: [made.version()] for name, made in self.made.items()}
        record = self.read()
        if conflicts := self.conflicts(new, record):
            raise refusal(self.out, conflicts)
        both = {
            name: record.files.get(name, []) + new.get(name, []) for name in {**record.files, **new}
        }
        now_ns = time.time_ns()
        self.save(both, {}, now_ns)
        for made in self.made.values():
            os.utime(made.temporary, ns=(now_ns, now_ns))
            if durably:
                sync(made.temporary)
        going = [] if durably else [*reversed(new)]
        for name in [*going, *(name for name in record.files if name not in new)]:
            remove_own(record, self.out, name)
        for name, made in list(self.made.items()):
            made.temporary.rename(self.out / name)
            del self.made[name]
        if durably:
            sync(self.out)
        self.save(new, about or {}, now_ns)

    def take_away(self, name: str) -> None:
        """Remove one of the item's files; raises UserError where what stands there is not ours.

        Other processes may be doing the same."""
        if os.path.lexists(self.out / name):
            self.check([name])
            (self.out / name).unlink(missing_ok=True)

    def remove(self) -> bool:
        """Remove those of the item's files that nobody has changed; and its record, where no file
        stays. Returns whether none does."""
        record = self.read()
        for name in reversed(record.files):
            remove_own(record, self.out, name)
        if any(os.path.lexists(self.out / name) for name in record.files):
            return False
        self.file.unlink(missing_ok=True)
        return True


def begin(out: Path, kind: str) -> None:
    """Make the private folder of a kind. Raises UserError where something else is there."""
    for folder in (out / PRIVATE, out / PRIVATE / kind):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UserError(
                f"{folder}: must be a folder of this program's own, and no link; move it away, or"
                " name another out="
            )
        folder.mkdir(parents=True, exist_ok=True)


def leave(out: Path, kind: str) -> None:
    """Remove the private folder of a kind where nothing is in it any more."""
    for folder in (out / PRIVATE / kind, out / PRIVATE):
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def clear_temporaries(out: Path, kind: str) -> None:
    """Remove what was being made by processes that were killed. Not where others may be at it."""
    if not (out / PRIVATE).is_symlink():
        clear(out / PRIVATE / kind, lambda name: bool(TEMPORARY.fullmatch(name)))


def recorded(out: Path, kind: str) -> list[str]:
    """The names of the items of a kind."""
    with suppress(FileNotFoundError):
        names = os.listdir(out / PRIVATE / kind)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    return []


def refusal(out: Path, names: Iterable[str], way_out: str = "name another out=") -> UserError:
    """The error of files that would have to be replaced or removed, and are not ours."""
    listed = list(names)
    return UserError(
        f"{out}: {counted(len(listed), 'file')} in the way, not written by this command or changed"
        f" since: {named(listed)}; move away what is yours and run again, or {way_out}"
    )
