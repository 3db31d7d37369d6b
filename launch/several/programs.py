"""Start programs on this machine, and send several at once the same signals."""

import contextlib
import os
import subprocess
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import through_no_link
from common.stop_request import StopRequest, stop_with_parent
from launch.cluster import slurm_commands

ROOT = Path(__file__).resolve().parents[2]


def started(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C reaches it once, from here."""
    # Inside a job of Slurm's, say by salloc, the program is no task of that job
    environment = slurm_commands.inherited(keep=slurm_commands.OF_GPUS)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=stop_with_parent,
        **streams,
    )


@dataclass(eq=False)
class Program:
    """One of several programs that run at once."""

    run: Path
    log: Path
    signals: deque[int] = field(default_factory=deque)
    """Those that are still to be passed on."""
    process: Any = None
    """None while it is started."""


class Programs:
    """Programs that run at once, and get the same signals."""

    def __init__(self) -> None:
        self.running: list[Program] = []

    def start(self, run: Path, command: list[str], log: Path, relay: StopRequest) -> None:
        """Start a program that prints into a log."""
        program = Program(run, log)
        self.running.append(program)  # from here on it is in for each signal
        if relay.signum and not program.signals:
            program.signals.append(relay.signum)
        file = through_no_link(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            program.process = started(command, stdout=file, stderr=file)
        finally:
            os.close(file)
        self.pass_on()

    def send_signal(self, signum: int) -> None:
        """Send a signal to all."""
        for program in list(self.running):
            program.signals.append(signum)
        self.pass_on()

    def pass_on(self) -> None:
        """Send each program its signals once, although a handler may interrupt this."""
        for program in list(self.running):
            with contextlib.suppress(IndexError):  # no signal is left
                while program.process:
                    program.process.send_signal(program.signals.popleft())

    def take_ended(self) -> list[Program]:
        """Return the programs that have ended since."""
        ended = [each for each in self.running if each.process.poll() is not None]
        self.running = [each for each in self.running if each not in ended]
        return ended
