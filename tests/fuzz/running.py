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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

MEMORY_BYTES = 1500 * 2**20  # address space that a run may ask for, beyond this process's own
PATIENCE = 3  # seconds to wait for each second of work, on a machine that is busy otherwise
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
    seconds: float = 0.0
    is_timed_out: bool = False
    growth_bytes: int = 0
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


def run_forked(
    function: Callable[[], int | None],
    folder: Path,
    limit_s: float,
    judge: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Call a function in a process of its own, in a working folder, and return what came of it.

    `limit_s`: seconds of work on a core, and of waiting a few times as many.
    Where it ends with 0, 1 or 2, that process calls the judge, too: a fork takes longer than
    many runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / "stdout.txt", folder / "stderr.txt"
    _, own_bytes = memory_bytes()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        be_the_child(function, folder, logs, judge)
    handle = os.pidfd_open(pid)
    is_done = bool(select.select([handle], [], [], PATIENCE * limit_s)[0])
    os.close(handle)
    try:  # whatever it has started, too
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    is_late = not is_done or usage.ru_utime + usage.ru_stime > limit_s
    outcome = outcome_of(os.waitstatus_to_exitcode(status), logs)
    seconds, growth_bytes = time.monotonic() - begun, usage.ru_maxrss * 1024 - own_bytes
    return replace(outcome, seconds=seconds, growth_bytes=growth_bytes, is_timed_out=is_late)


def be_the_child(
    function: Callable[[], int | None],
    folder: Path,
    logs: tuple[Path, Path],
    judge: Callable[[Outcome], None],
) -> NoReturn:
    """Set the limits, call the function, and end with the exit code that Python would end with."""
    os.setsid()
    os.chdir(folder)
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    most_bytes = memory_bytes()[0] + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    try:
        code = function() or 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (0, 1, 2):
        outcome = outcome_of(code, logs)
        os.dup2(os.open(folder / "judge.txt", os.O_WRONLY | os.O_CREAT), 2)
        try:
            judge(outcome)
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def outcome_of(code: int, logs: tuple[Path, Path]) -> Outcome:
    """Return what a process printed, and its exit code."""
    out, err = (log.read_text(errors="replace") if log.exists() else "" for log in logs)
    return Outcome(code, out, err)


def memory_bytes() -> tuple[int, int]:
    """Return this process's address space, and the part of its memory that a fork begins with."""
    counts = [int(text) for text in Path("/proc/self/statm").read_text().split()]
    return counts[0] * resource.getpagesize(), (counts[1] - counts[2]) * resource.getpagesize()
