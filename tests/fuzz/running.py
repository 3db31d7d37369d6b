"""Run functions in processes forked from this one, under limits of memory and time.

This process has imported what the commands need, so a run takes no seconds of imports. It has no
threads of its own, and what a run breaks, it breaks in its own process.
"""

import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = 1500 * 2**20  # address space that a run may ask for, beyond this process's own
MOST_GROWTH_BYTES = 700 * 2**20  # of resident memory: the inputs have some ten kilobytes
NO_MEMORY = re.compile(
    r"MemoryError|memory ran out|(annot|nable to) allocate|bad_alloc|SIGKILL|Insufficient memory",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """What a run in a process of its own came to."""

    code: int
    """Its exit code; minus the signal that ended it."""
    out: str
    err: str
    seconds: float
    is_timed_out: bool
    growth_bytes: int
    """Resident memory beyond what it began with."""

    @property
    def told(self) -> str:
        """All that it printed."""
        return self.out + self.err

    @property
    def broken_limit(self) -> str:
        """'time' or 'memory' where a limit was met; else ''."""
        if self.is_timed_out:
            return "time"
        is_large = self.growth_bytes > MOST_GROWTH_BYTES
        return "memory" if is_large or NO_MEMORY.search(self.told) else ""


def run_forked(function: Callable[[], int | None], folder: Path, limit_s: float) -> Outcome:
    """Call a function in a process of its own, in a working folder, and return what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / "stdout.txt", folder / "stderr.txt"
    own_bytes = pages("statm", 1)
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(be_the_child(function, folder, logs))
    handle = os.pidfd_open(pid)
    is_done = bool(select.select([handle], [], [], limit_s)[0])
    os.close(handle)
    try:  # whatever it has started, too
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    out, err = (log.read_text(errors="replace") if log.exists() else "" for log in logs)
    seconds, growth_bytes = time.monotonic() - begun, usage.ru_maxrss * 1024 - own_bytes
    code = os.waitstatus_to_exitcode(status)
    return Outcome(code, out, err, seconds, not is_done, growth_bytes)


def be_the_child(function: Callable[[], int | None], folder: Path, logs: tuple[Path, Path]) -> int:
    """Set the limits, call the function, and return the exit code that Python would end with."""
    os.setsid()
    os.chdir(folder)
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    most_bytes = pages("statm", 0) + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        code = function() or 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def pages(file: str, column: int) -> int:
    """Return a figure of this process's memory from /proc, in bytes: 0 all, 1 resident."""
    counts = Path(f"/proc/self/{file}").read_text().split()
    return int(counts[column]) * resource.getpagesize()
