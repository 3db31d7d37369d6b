"""Record what a command writes into an output folder: it replaces and removes only such files.

    OUT/.eosin/<kind>/<name>.json   a record: the files of one item (a field, a predicted image, an
                                    evaluation), each with its size and sha256
    OUT/.eosin/<kind>/.<hex>.tmp    a file that is being written
    OUT/.eosin/lock                 which process writes results, see train.ranks.lock

common.file_records recognizes our files. A record is written before its files get their names, so
after a kill at any instant no file of ours passes for the user's, and none of the user's for ours.
Each item has its own record, so two processes never write the same one. Records of the same files
are the same bytes.
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
    name_in,
    new_temporary,
    sync,
    write_atomically,
)

PRIVATE = ".eosin"


class Made(NamedTuple):
    """A file that does not have its name yet."""

    temporary: Path
    sha256: str = ""
    """Hash of its content, if known."""
    is_by_ends: bool = False
    """Whether to hash only its ends."""

    def version(self) -> Version:
        """Return its size and hash, once it is written."""
        hashed = ends_sha256 if self.is_by_ends else file_sha256
        sha256 = self.sha256 or hashed(self.temporary)
        return Version(self.temporary.stat().st_size, sha256, self.is_by_ends)


class Item:
    """The files of one item in an output folder; `with item:` clears away what was not published.

    Files are made under temporary names (`write`, `make`), and get their own all at once
    (`publish`).
    """

    def __init__(self, out: Path, kind: str, name: str, making: Path | None = None) -> None:
        """`name`: a plain file name, unique within the kind. `making`: a private folder of the
        item's own for files that are being written, if it has one."""
        self.out, self.kind, folder = out, kind, out / PRIVATE / kind
        self.file, self.making = folder / f"{name}.json", making or folder
        self.made: dict[str, Made] = {}
        self.has_folder = False

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
        name_in(error, self.out)

    def read(self) -> Record:
        """Read the record; an empty one if it is missing or damaged."""
        return read_record(self.file)

    def save(
        self, files: Mapping[str, list[Version]], about: Mapping[str, Any], mtime_ns: int
    ) -> None:
        """Write the record, and wait until it is on the disk."""
        content = json.dumps({"files": files, "about": about}) + "\n"
        write_atomically(self.file, content.encode(), mtime_ns, is_synced=True)

    def conflicts(self, names: Iterable[str], record: Record | None = None) -> list[str]:
        """Return the paths that a file which is not ours, or was changed, already has.

        For a path below a link, return the link.
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
        """Return whether a path may be written: it is unused, or has our own file."""
        # in this order: another process may remove our file in between
        return owns(record, self.out, name) or not os.path.lexists(self.out / name)

    def check(self, names: Iterable[str], way_out: str = "name another out=") -> None:
        """Raise UserError that names the conflicts, if any, and says what to do."""
        if conflicts := self.conflicts(names):
            raise refusal(self.out, conflicts, way_out)

    def make(self, name: str, *, is_by_ends: bool = False) -> Path:
        """Return where to write a file that will be published as OUT/NAME.

        `is_by_ends`: it is too large to be read again, so its size and ends identify it.
        """
        self.made[name] = Made(self.new_file(), is_by_ends=is_by_ends)
        return self.made[name].temporary

    def write(self, name: str, content: bytes) -> str:
        """Write a file that will be published as OUT/NAME; return its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.made[name] = made = Made(self.new_file(), sha256)
        with made.temporary.open("xb") as file:
            file.write(content)
        return sha256

    def new_file(self) -> Path:
        """Return a temporary path in the private folder."""
        self.make_folder()
        return new_temporary(self.making)

    def make_folder(self) -> None:
        """Make the private folder, once. Raises UserError as make_private()."""
        if not self.has_folder:
            make_private(self.out, self.kind)
            self.has_folder = True

    def publish(self, about: Mapping[str, Any] | None = None, *, durably: bool = False) -> None:
        """Give the written files their names; remove all other files that the item had before.

        The file that was written last is removed first and named last, so it may assert that all
        others exist. With `durably`, each name has the old file or the new one at any instant,
        after a power loss too. Raises UserError, and changes nothing, if a file that is not ours
        is in the way.
        """
        self.make_folder()
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
        replaced = [] if durably else [*reversed(new)]
        for name in [*replaced, *(name for name in record.files if name not in new)]:
            remove_own(record, self.out, name)
        for name, made in list(self.made.items()):
            made.temporary.rename(self.out / name)
            del self.made[name]
        if durably:
            sync(self.out)
        self.save(new, about or {}, now_ns)

    def remove_file(self, name: str) -> None:
        """Remove one of the item's files, if it exists. Raises UserError if it is not ours.

        Other processes may do the same at the same time."""
        if os.path.lexists(self.out / name):
            self.check([name])
            (self.out / name).unlink(missing_ok=True)

    def remove(self) -> bool:
        """Remove the item's unchanged files, then its record if no file is left.

        Returns whether no file is left.
        """
        record = self.read()
        for name in reversed(record.files):
            remove_own(record, self.out, name)
        if any(os.path.lexists(self.out / name) for name in record.files):
            return False
        self.file.unlink(missing_ok=True)
        return True


def make_private(out: Path, kind: str) -> None:
    """Make the private folder of a kind. Raises UserError if a file or a link has its name."""
    parts = (PRIVATE, *kind.split("/"))
    for folder in (out.joinpath(*parts[: number + 1]) for number in range(len(parts))):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UserError(
                f"{folder}: must be this program's own folder, not a file or a link; move it away,"
                " or name another out=",
                can_heal=False,
            )
        folder.mkdir(parents=True, exist_ok=True)


def remove_private(out: Path, kind: str) -> None:
    """Remove the private folder of a kind, if it is empty."""
    for folder in (out / PRIVATE / kind, out / PRIVATE):
        with suppress(OSError):  # not empty, or missing
            folder.rmdir()


def clear_temporaries(out: Path, kind: str) -> None:
    """Remove files that killed processes were writing. Call it only while no other one writes."""
    if not (out / PRIVATE).is_symlink():
        clear(out / PRIVATE / kind, lambda name: bool(TEMPORARY.fullmatch(name)))


def recorded_items(out: Path, kind: str) -> list[str]:
    """List the names of the items of a kind."""
    with suppress(FileNotFoundError):
        names = os.listdir(out / PRIVATE / kind)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    return []


def refusal(out: Path, names: Iterable[str], way_out: str = "name another out=") -> UserError:
    """Return the error for files that are in the way and not ours."""
    listed = list(names)
    return UserError(
        f"{out}: {counted(len(listed), 'file')} in the way, not written by this command or changed"
        f" since: {named(listed)}; move away what is yours and run again, or {way_out}",
        can_heal=False,
    )
