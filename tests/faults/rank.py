"""A rank of a training in a process of its own, which may kill itself at a named instant.

Each change of the file system under the run folder is such an instant: before a file is opened for
writing, renamed, removed or synced, before a folder is made or removed, and, as a file is synced,
when only half of it has reached the disk ("tear").
"""

import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import command_line
from common.files import TEMPORARY

EVENTS = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}


@dataclass(frozen=True)
class Instant:
    """When a process is to die: as it comes by a name for the n-th time, from 0."""

    name: str
    passing: int = 0


@dataclass
class Instants:
    """Names the instants that this process comes by."""

    folder: Path
    fatal: Instant | None
    passed: Counter[str] = field(default_factory=Counter)

    def watch(self) -> None:
        """From here on, to the end of the process."""
        sys.addaudithook(self.audit)
        original = os.fsync

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if not Path(path).is_dir():
                self.come_by("tear", path)
            self.come_by("fsync", path)
            original(descriptor)

        os.fsync = fsync

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if event == "os.rename" and TEMPORARY.fullmatch(Path(arguments[0]).name):
            self.come_by(EVENTS[event], arguments[1])  # which tells what it is
        elif event in EVENTS:
            self.come_by(EVENTS[event], arguments[0])
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.come_by("open", arguments[0])

    def come_by(self, event: str, path: Any) -> None:
        """Live on, or die."""
        if not isinstance(path, str | Path) or not Path(path).is_relative_to(self.folder):
            return
        name = f"{event} {plain(str(Path(path).relative_to(self.folder)))}"
        passing = self.passed[name]
        self.passed[name] += 1
        if self.fatal == Instant(name, passing):
            self.fatal = None
            if event == "tear":
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def plain(path: str) -> str:
    """A path without the numbers that differ between steps and processes."""
    path = re.sub(r"step_\d+", "step", path)
    path = re.sub(TEMPORARY.pattern, ".tmp", path)
    return re.sub(r"events\.out.*", "events", path)


def run(
    command: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    log: str,
    folder: str = "",
    fatal: tuple[str, int] | None = None,
    passed: str = "",
) -> None:
    """Be a rank: `python -m COMMAND` with these arguments, killed at the `fatal` instant.

    With a `folder` to watch it writes the instants it has come by into the file `passed`.
    """
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as it is where nobody has set it
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    instants = Instants(Path(folder), Instant(*fatal) if fatal else None)
    if folder:
        instants.watch()
    try:
        command_line.run(importlib.import_module(command).main, arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if passed:
            lines = [f"{name}\t{count}\n" for name, count in instants.passed.items()]
            Path(passed).write_text("".join(lines))
