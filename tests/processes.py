"""Processes that are killed at every instant of their work, and work without processes."""

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from common import command_line
from data_prep import prepare
from data_prep.config import PrepConfig
from data_prep.dataset import pack


@dataclasses.dataclass
class Killer:
    """An audit hook that kills its process at the n-th instant of its changes to the file system.

    An instant is before each change, and after a file was opened but before anything is in it.
    """

    left: int
    is_dying: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_dying:
            return
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self.pass_instant()
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.pass_instant()
            if arguments[2] & os.O_TRUNC:
                self.pass_instant(emptied=arguments[0])

    def pass_instant(self, emptied: str | None = None) -> None:
        """Live on, or die."""
        if self.left == 0:
            self.is_dying = True
            if emptied is not None:
                Path(emptied).write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def survives(action: Callable[[], object], instants: int) -> bool:
    """Do something in a process killed after so many instants; whether it came to its end."""
    cv2.setNumThreads(1)  # before: a forked process would wait for threads that it has not
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(Killer(instants))
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "the action failed by itself"
    return code == 0


def map_here(
    function: Callable[[Any], Any], tasks: list[Any], workers: int, name: Callable[[Any], str]
) -> Iterator[tuple[int, Any]]:
    """data_prep's map_tasks without processes, which take seconds to start."""
    return enumerate(map(function, tasks))


def prepare_alone(*settings: str) -> None:
    """`python -m data_prep` without other processes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, pack):
            patch.setattr(module, "map_tasks", map_here)
        prepare.prepare(command_line.load(PrepConfig, settings))
