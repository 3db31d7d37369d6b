"""Real ranks for tests: the command line under torchrun, on gloo, one thread a rank."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 180  # a rank that hangs is a failure


def start(*command: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Start `python -m ...`, or the same on several ranks, in a process group of its own."""
    launcher = [sys.executable, "-m", *command]
    if ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        launcher = [sys.executable, "-m", *torchrun, "-m", *command]
    return subprocess.Popen(
        launcher,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; what does not end in time is killed with all its ranks, and fails."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"did not end within {TIMEOUT_S} s:\n{output}") from None
    return process.returncode, output


def run(*command: str, ranks: int = 1) -> str:
    """Run to the end; a failure shows the output."""
    code, output = finish(start(*command, ranks=ranks))
    assert code == 0, output
    return output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something holds of a running process; fail where it ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def rank_pid(agent: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank under torchrun."""
    for entry in Path("/proc").iterdir():
        try:
            if f"\nPPid:\t{agent.pid}\n" in (entry / "status").read_text():
                environment = (entry / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in environment:
                    return int(entry.name)
        except OSError:
            continue  # ended while we looked
    raise AssertionError(f"no rank {rank} under process {agent.pid}")
