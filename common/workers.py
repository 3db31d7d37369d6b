"""A pool of worker processes that says which task a worker was at when it died.

The standard library's pools raise BrokenProcessPool without a name, or wait for ever; a dead
worker is nearly always one field that did not fit in memory, and its name is what a user needs.
"""

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import (
    connection,
    forkserver,
    get_context,
    parent_process,
    resource_tracker,
)
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from common.command_line import UserError, os_error_text
from common.malloc import keep_freed_memory

Task = TypeVar("Task")
Result = TypeVar("Result")

# a plain fork would copy OpenCV's and torch's threads in an unknown state
CONTEXT: Any = get_context("forkserver")


class WorkerError(UserError):
    """A worker died, or its function raised what it should not."""


def map_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    name: Callable[[Task], str],
) -> Iterator[tuple[int, Result]]:
    """(index, result) of each task as it is done, in any order, on `workers` processes.

    `function` must be importable by name. Raises WorkerError with the task's name where a worker
    is killed or its function raises; the other workers are ended first.
    """
    if tasks:
        get_ready(function.__module__)
    pool = [Worker(function) for _ in range(min(workers, len(tasks)))]
    waiting = iter(range(len(tasks)))
    try:
        for worker in pool:
            worker.give(next(waiting, None), tasks)
        while busy := {worker.connection: worker for worker in pool if worker.index is not None}:
            for ready in connection.wait(list(busy)):
                worker = busy[ready]
                assert worker.index is not None
                yield worker.index, worker.take(name(tasks[worker.index]))
                worker.give(next(waiting, None), tasks)
    finally:
        for worker in pool:
            worker.end()


def get_ready(module: str) -> None:
    """Let the module of what workers will do be loaded, on another core, while one goes on."""
    CONTEXT.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # else the fork server starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # Ctrl-C is for the run, which ends its workers; while they load it would be a traceback
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """One process, the pipe to it, and the index of the task it is at."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # else a dead worker's pipe would never read as closed
        self.index: int | None = None

    def give(self, index: int | None, tasks: Sequence[Any]) -> None:
        """Hand over the next task, if there is one."""
        self.index = index
        if index is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: take() will say so
                self.connection.send(tasks[index])

    def take(self, name: str) -> Any:
        """The result of the task; WorkerError where there will be none."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):  # in the middle of an answer: OSError
            raise WorkerError(self.obituary(name)) from None
        if error:
            raise WorkerError(f"{name}: {error}")
        return result

    def obituary(self, name: str) -> str:
        """How the worker died, at which task, and what usually kills one."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            how = (
                "killed by SIGKILL, most likely because memory ran out; use fewer workers=,"
                " cut large images with tile_px=, or ask for more memory"
            )
        elif code is not None and code < 0:
            how = (
                f"killed by {signal.Signals(-code).name}, most likely by a damaged file or library"
            )
        else:
            how = f"ended with exit code {code}"
        return f"{name}: the worker process at it was {how}. Run again to go on from here."

    def end(self) -> None:
        """End the process, whatever it is at: what it writes gets its name only when whole."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def end_with_parent() -> None:
    """A worker whose run was killed stops at once: the next run may be writing the same files."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: take a task, send back (result, '') or (None, what went wrong)."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # Slurm sends them to all; the parent handles them
    import cv2  # here: what starts workers may need none of it, and then begins sooner

    cv2.setNumThreads(1)  # one core a worker
    keep_freed_memory()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = (function(task), "")
        except UserError as error:
            answer = (None, str(error))
        except OSError as error:
            answer = (None, os_error_text(error))
        except MemoryError:
            answer = (None, "memory ran out; use fewer workers=, or cut large images with tile_px=")
        except Exception:
            answer = (None, f"unexpected error in a worker:\n{traceback.format_exc()}")
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return  # the parent is gone
