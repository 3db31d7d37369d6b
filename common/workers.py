"""Run tasks on worker processes; if a worker dies, name the task that it was working on.

The standard library's pools raise BrokenProcessPool without a name, or wait for ever. Nearly
always a worker dies because one field does not fit in memory, and a user needs that field's name.
"""

import contextlib
import os
import resource
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


OWN_HANDLES, HANDLES_A_WORKER = 24, 4


class WorkerError(UserError):
    """A worker died, or its function raised an error."""


def map_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    name: Callable[[Task], str],
) -> Iterator[tuple[int, Result]]:
    """Run the tasks on `workers` processes; yield (index, result) of each when done, in any order.

    `function` must be importable by name. Raises WorkerError with the task's name if a worker is
    killed or its function raises, after ending the other workers.
    """
    check_handles(min(workers, len(tasks)))
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


def check_handles(workers: int) -> None:
    """Raise UserError unless this process may open the files that `workers` processes need."""
    needed = OWN_HANDLES + HANDLES_A_WORKER * workers
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"a process may open {limit} files, but workers={workers} needs {needed}; raise the"
            " limit, as in `ulimit -n 1024`, or use fewer workers="
        )


def get_ready(module: str) -> None:
    """Start to load the module that workers will need, in the background on another core."""
    CONTEXT.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # else the fork server starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # the run handles Ctrl-C; workers that are still loading would print a traceback
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """One process, the pipe to it, and the index of its current task."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # else a dead worker's pipe would never read as closed
        self.index: int | None = None

    def give(self, index: int | None, tasks: Sequence[Any]) -> None:
        """Send the next task; None if none is left."""
        self.index = index
        if index is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: take() raises
                self.connection.send(tasks[index])

    def take(self, name: str) -> Any:
        """Receive the result of the task. Raises WorkerError if the task failed."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):  # in the middle of an answer: OSError
            raise WorkerError(self.cause_of_death(name)) from None
        if error:
            raise WorkerError(f"{name}: {error}")
        return result

    def cause_of_death(self, name: str) -> str:
        """Say how the worker died, at which task, and the likely cause."""
        self.process.join(timeout=10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            how = (
                "was killed by SIGKILL, most likely because memory ran out; use fewer workers=,"
                " cut large images with tile_px=, or ask for more memory"
            )
        elif code is not None and code < 0:
            how = (
                f"was killed by {signal.Signals(-code).name}, most likely because of a damaged file"
                " or library"
            )
        else:
            how = f"ended with exit code {code}"
        return f"{name}: its worker process {how}. Run again to go on from here."

    def end(self) -> None:
        """Kill the process, even at work: what it writes gets its name only when whole."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def end_with_parent() -> None:
    """Exit as soon as the parent is killed: the next run may write the same files."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Receive tasks; send (result, '') or (None, what went wrong) for each."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # Slurm sends them to all; the parent handles them
    import cv2  # here, since the parent may not need it and then starts sooner

    cv2.setNumThreads(1)  # one core per worker
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
