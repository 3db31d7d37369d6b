"""The pool: results of every task, and a named error, at once, where a worker dies.

The functions stand at the top of the file because workers import them by name.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.command_line import UserError
from common.workers import WorkerError, map_tasks

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("warm_workers")]


def square(task: int) -> int:
    return task * task


def describe_worker(task: int) -> tuple[int, int]:
    return os.getpid(), cv2.getNumThreads()


def page_faults(task: int) -> int:
    """Of ten times four arrays of 2 MB, once there is memory for four."""
    for round in range(12):
        if round == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.ones(2_000_000, np.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def meet(task: tuple[str, str]) -> bool:
    """Open a pipe: that waits until another process opens its other end."""
    path, mode = task
    with open(path, mode):
        return True


def misbehave(task: tuple[str, object]) -> object:
    """Do what the task says; 'wait' never ends by itself."""
    what, value = task
    match what:
        case "kill":
            os.kill(os.getpid(), value)
        case "raise":
            raise value
        case "exit":
            sys.exit(value)
        case "wait":
            with open(value):
                pass
        case "die while answering":
            Connection._send = send_half
    return value


def send_half(self: Connection, content: bytes, write: object = None) -> None:
    os.write(self.fileno(), content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def name(task: object) -> str:
    return f"Case_{task[0]}" if isinstance(task, tuple) else f"Case_{task}"


def run(tasks: list, workers: int) -> list:
    return list(map_tasks(misbehave, tasks, workers, name))


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once_and_told_by_its_index(workers: int) -> None:
    results = list(map_tasks(square, [3, 1, 4, 1], workers, name))
    assert sorted(results) == [(0, 9), (1, 1), (2, 16), (3, 1)]
    assert multiprocessing.active_children() == []


def test_no_tasks_need_no_workers() -> None:
    assert list(map_tasks(square, [], 3, name)) == []


def test_ctrl_c_while_workers_load_is_for_the_run_alone(tmp_path: Path) -> None:
    """A terminal sends it to the whole group: no traceback of what is still being imported."""
    (tmp_path / "slow.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(1)\n"
    )
    script = f"""
import os, signal, time
from tests.common.test_workers import square, name
from common.workers import get_ready, map_tasks
get_ready("slow")
while not os.path.exists({str(tmp_path / "begun")!r}):
    time.sleep(0.01)
try:
    os.killpg(0, signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print(*map_tasks(square, [3], 1, name))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        start_new_session=True,
        # a shell starts what runs in its background with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.stdout, done.stderr) == ("(0, 9)\n", "")


def test_workers_are_as_many_processes_as_asked_for_with_one_opencv_thread_each() -> None:
    results = [result for _, result in map_tasks(describe_worker, list(range(8)), 2, name)]
    pids = {pid for pid, _ in results}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert {threads for _, threads in results} == {1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is glibc's on Linux only")
def test_workers_keep_the_memory_of_arrays_for_the_next() -> None:
    """Else each of the 19,000 pages would be a fault."""
    ((_, faults),) = map_tasks(page_faults, [0], 1, name)
    assert faults < 1000


def test_workers_work_at_the_same_time(pipe: str) -> None:
    """The reader waits for the writer and the writer for the reader: one worker would hang."""
    results = sorted(map_tasks(meet, [(pipe, "r"), (pipe, "w")], 2, name))
    assert results == [(0, True), (1, True)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (("kill", signal.SIGKILL), ["killed by SIGKILL", "memory", "workers="]),
        (("kill", signal.SIGSEGV), ["killed by SIGSEGV", "damaged file or library"]),
        (("exit", 3), ["ended with exit code 3"]),
        (("die while answering", b"x" * 1000), ["killed by SIGKILL", "memory"]),
        (("raise", ZeroDivisionError("by nought")), ["ZeroDivisionError: by nought", "misbehave"]),
    ],
    ids=["SIGKILL", "SIGSEGV", "exit", "half an answer", "exception"],
)
def test_a_worker_that_dies_is_an_error_that_names_task_and_cause_at_once(
    pipe: str, task: tuple[str, object], words: list[str]
) -> None:
    """At once: the other worker waits for ever, and has to be ended."""
    with pytest.raises(WorkerError) as caught:
        run([("wait", pipe), task, ("never reached", 0)], workers=2)
    message = str(caught.value)
    assert message.startswith(f"Case_{task[0]}: ")
    assert all(word in message for word in words), message
    assert multiprocessing.active_children() == []


def test_results_before_the_death_are_handed_over() -> None:
    results = map_tasks(misbehave, [("a", 1), ("b", 2), ("kill", signal.SIGKILL)], 1, name)
    assert [next(results), next(results)] == [(0, 1), (1, 2)]
    with pytest.raises(WorkerError, match=r"^Case_kill: .*Run again to go on from here\.$"):
        next(results)


def test_stopping_early_ends_the_workers(pipe: str) -> None:
    """Ctrl-C in the parent, or an error of its own: no worker is left behind."""
    results = map_tasks(misbehave, [("a", 1), ("wait", pipe), ("wait", pipe)], 2, name)
    assert next(results) == (0, 1)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


def test_too_few_open_files_are_told_before_any_worker_starts() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (31, hard))
    try:
        with pytest.raises(UserError, match="may open 31 files, but workers=2 needs 32; raise"):
            next(map_tasks(square, [1, 2, 3], 2, str))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
