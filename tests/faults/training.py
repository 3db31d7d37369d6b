"""Trainings on gloo ranks that start in a moment, as torchrun would start them."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from tests.faults import rank as rank_module
from tests.faults.rank import Instant
from train import show

# A server that has torch imported forks the ranks: no seconds of imports for each
CONTEXT = multiprocessing.get_context("forkserver")
# (torch itself imports _dynamo late, at the first step)
CONTEXT.set_forkserver_preload([rank_module.__name__, "train.loop.start", "torch._dynamo"])

TIMEOUT_S = 60.0  # a training that hangs is lost
GRACE_S = 1.0  # between SIGTERM and SIGKILL for the ranks that outlive another; torchrun gives 30 s
NUM_STEPS = 12
SETTINGS = (
    "epochs=3",
    "batch_size=4",
    "microbatches=4",
    "lr=0.01",
    "save_every_s=0",
    "log_every_steps=1",
    "rank_timeout_s=4",
    "crop.size_px=32",
    "model.width=4",
    "model.depth=2",
    "model.dropout=0.2",
    "tile.size_px=64",
    "tile.overlap_px=8",
    "panels=1",
)


class Lost(Exception):  # noqa: N818  (a verdict)
    """A training that did not behave as it promises."""


@dataclass
class Launch:
    """The ranks of one start of a training."""

    run: Path
    data: Path
    logs: Path
    """A folder for what the ranks print; not on the disk of the run, which may be full."""
    world_size: int
    amp: str = "amp=off"
    fatal: tuple[int, Instant] | None = None
    """A rank that is to die, and when."""

    def __post_init__(self) -> None:
        self.log = self.logs / "ranks.log"
        self.log.write_text("")
        self.last_step = step(self.run)
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        arguments = [f"data={self.data}", f"run={self.run}", *SETTINGS, self.amp]
        self.processes = []
        for rank in range(self.world_size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "OMP_NUM_THREADS": "1",
            }
            fatal = self.fatal[1] if self.fatal and self.fatal[0] == rank else None
            passed = self.passed_by(rank)
            given = (arguments, environment, self.run, self.log, fatal, passed)
            self.processes.append(CONTEXT.Process(target=rank_module.run, args=given))
        for process in self.processes:
            process.start()

    def passed_by(self, rank: int) -> Path:
        """Where a rank that came to its end says which instants it came by."""
        return self.logs / f"passed.{rank}"

    @property
    def is_alive(self) -> bool:
        """Whether a rank still runs."""
        return any(process.is_alive() for process in self.processes)

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        pid = self.processes[rank].pid
        assert pid
        return pid

    def send(self, rank: int, signum: int) -> None:
        """Send a signal to a rank, if there still is one."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(rank), signum)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or the training has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.is_alive and not condition():
            self.check(deadline)
            time.sleep(0.002)

    def end(self, patience_s: float = 0.0) -> list[int]:
        """Wait for the end of all ranks; returns their exit codes.

        When one has failed, the others have `patience_s` to end by themselves before they are
        ended, as torchrun ends them.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while all(p.is_alive() or p.exitcode == 0 for p in self.processes) and self.is_alive:
            self.check(deadline)
            time.sleep(0.002)
        for signum, seconds in ((0, patience_s), (signal.SIGTERM, GRACE_S), (signal.SIGKILL, 20)):
            for rank, process in enumerate(self.processes):
                if process.is_alive() and signum:
                    self.send(rank, signum)
            until = time.monotonic() + seconds
            while self.is_alive and time.monotonic() < until:
                time.sleep(0.002)
        return [process.exitcode or 0 for process in self.processes]

    def check(self, deadline: float) -> None:
        """Give up a training that hangs."""
        if time.monotonic() > deadline:
            for rank in range(self.world_size):
                self.send(rank, signal.SIGKILL)
            raise Lost(f"hung for {TIMEOUT_S:.0f} s:\n{self.output}")

    @property
    def output(self) -> str:
        """What the ranks have printed."""
        return self.log.read_text()

    def finish(self) -> None:
        """Wait for the end of a training that nothing disturbs."""
        codes = self.end()
        if any(codes):
            raise Lost(f"undisturbed, it ended with {codes}:\n{self.output}")


def step(run: Path) -> int:
    """The last step that a run told."""
    try:
        return int(json.loads((run / "progress.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def resumed_at(output: str) -> int:
    """The step at which a start of a training went on; 0 where it began anew."""
    found = re.search(r"resumed from step_(\d+)", output)
    return int(found[1]) if found else 0


def digests(run: Path) -> list[str]:
    """Step, epoch and digests of the newest checkpoint, as train.show prints them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show.main([f"run={run}"])
    wanted = ("step", "epoch", "model", "state")
    return [line for line in printed.getvalue().splitlines() if line.startswith(wanted)]


def passed_instants(launch: Launch, rank: int) -> dict[str, int]:
    """Name -> how often, of the instants that a rank came by."""
    lines = launch.passed_by(rank).read_text().splitlines()
    return {name: int(count) for name, count in (line.split("\t") for line in lines)}
