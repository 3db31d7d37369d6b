"""The chain without Slurm: its stages on this machine, one after the other.

launcher (launch/submit.py) -> a stage, or torchrun -> ranks -> loader workers
                            -> launch/tee.py, which copies what they print into a log

A stage gets the signals of the launcher, and SIGTERM where the launcher was killed.
"""

import contextlib
import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from common.command_line import EXIT_STOPPED
from common.files import through_no_link
from common.stop_request import StopRequest, stop_with_parent
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile
from launch.queueing import ROOT, record
from launch.record.events import last_step, note
from launch.record.local_runs import about_this_process, log_of, new_folder
from launch.record.submitting import submitting

STDOUT, STDERR = 1, 2
TEE = Path(__file__).with_name("tee.py")
TEE_ENDS_S = 10.0  # after the stage, unless somebody is left who may still print


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Return stage -> its command on this machine; several ranks run under torchrun."""
    ranks = profile.most_ranks
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    programs = {
        "prepare": ["data_prep"],
        "train": [*(torchrun if ranks > 1 else []), "train"],
        "evaluate": ["train.evaluate"],
    }
    return {
        stage: [sys.executable, "-m", *programs[stage], *given]
        for stage, given in arguments.items()
    }


def run_here(
    run: Path,
    argv: Sequence[str],
    commands: dict[str, list[str]],
    profile: Profile,
    made: Sequence[Path] = (),
) -> int:
    """Run the stages on this machine one after the other, until a signal stops them.

    `made`: folders that were made for the run.
    """
    with submitting(run, made):
        record(run, argv, profile, {}, [])
        logs = new_folder(run)
    relay = Relay()
    with relay:
        for stage, command in commands.items():
            if relay.signum:
                print(f"stopped before {stage}; {goes_on(run)}", file=sys.stderr)
                return EXIT_STOPPED
            print(f"{stage}: {shlex.join(command)}", flush=True)
            code = run_stage(run, stage, command, logs, relay)
            if code:
                print(f"error: {stage} ended with code {code}; {goes_on(run)}", file=sys.stderr)
                return code
    print(f"run    {run}")
    print(f"next   tensorboard --logdir {shlex.quote(str(run))}")
    return 0


def run_stage(run: Path, stage: str, command: list[str], logs: Path, relay: "Relay") -> int:
    """Run a stage with a log, and note its start and its end; returns its exit code."""
    start = {"job": logs.name}
    note(run, "started", stage, **start, **about_this_process())
    log = log_of(logs, stage)
    with copied_to(log) as streams:
        code = relay.run(command, **streams)
    step = {"step": last_step(run)} if stage == "train" else {}
    error = first_error(log) if code else ""
    if code == 0:
        note(run, "finished", stage, **start, **step, code=code)
    elif code == EXIT_STOPPED or (relay.signum and not error):
        reason = signal.Signals(relay.signum).name if relay.signum else "stopped"
        note(run, "stopped", stage, **start, **step, code=code, reason=reason)
    else:
        note(run, "gave up", stage, **start, **step, code=code, reason=error or in_words(code))
    return code


def first_error(log: Path) -> str:
    """Return the first error that a stage has printed, '' for none. Of several ranks, the others
    only miss the one that failed."""
    with open(log, "rb") as lines:
        for line in lines:
            if line.startswith(b"error: "):
                return line.decode(errors="replace").removeprefix("error: ").strip()
    return ""


def in_words(code: int) -> str:
    """Return how a stage ended that has not told why."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}; its log ends with the reason"


@contextmanager
def copied_to(log: Path) -> Iterator[dict[str, int]]:
    """Yield stdout and stderr for a program; what is written there goes to the same places of this
    process and into a log, even when this process is killed."""
    with ExitStack() as open_files:
        keep = through_no_link(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        open_files.callback(os.close, keep)
        streams = {"stdout": open_files.enter_context(copied(STDOUT, keep))}
        streams["stderr"] = streams["stdout"]
        if not os.path.sameopenfile(STDOUT, STDERR):
            streams["stderr"] = open_files.enter_context(copied(STDERR, keep))
        yield streams


@contextmanager
def copied(terminal: int, log: int) -> Iterator[int]:
    """Yield a descriptor to write to, of which launch/tee.py copies everything.

    It is a terminal where `terminal` is one, so that progress bars are drawn.
    """
    is_terminal = os.isatty(terminal)
    reads, writes = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        tty.setraw(writes)  # bytes pass as they are
        size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(writes, termios.TIOCSWINSZ, size)
    command = [sys.executable, "-I", "-S", str(TEE)]
    # Of a session of its own: Ctrl-C does not end it before the stage has printed its last line
    tee = subprocess.Popen(
        command, stdin=reads, stdout=log, stderr=terminal, start_new_session=True
    )
    os.close(reads)
    try:
        yield writes
    finally:
        os.close(writes)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tee.wait(TEE_ENDS_S)


def goes_on(run: Path) -> str:
    """Return how to go on after a stop."""
    return f"the same command with {shlex.quote(f'run={run}')} goes on"


class Relay(StopRequest):
    """While this context lasts, pass signals that stop a run on to the program that runs here."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting: deque[int] = deque()
        """Signals that are still to be passed on."""

    def run(self, command: list[str], **streams: Any) -> int:
        """Run a program, and wait while it saves after a signal; returns its exit code.

        It has a session of its own, so that Ctrl-C reaches it once, from here.
        """
        # Inside a job of Slurm's, say by salloc, the program is no task of that job
        environment = slurm_commands.inherited(keep=slurm_commands.OF_GPUS)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=stop_with_parent,
            **streams,
        )
        self.pass_on()  # what came while the program was started
        code = self.process.wait()
        self.process = None
        return code

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.adopt(signum)
        self.waiting.append(signum)
        self.pass_on()

    def pass_on(self) -> None:
        """Send each signal once, although the handler may interrupt this."""
        with contextlib.suppress(IndexError):  # no signal is left
            while self.process:
                self.process.send_signal(self.waiting.popleft())
