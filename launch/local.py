"""The chain without Slurm: its stages on this machine, one after the other.

launcher (launch/submit.py) -> a stage, or torchrun -> ranks -> loader workers
                            -> launch/record/tee.py, which copies what they print into a log

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
import time
import tty
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from common.command_line import EXIT_STOPPED
from common.files import through_no_link
from common.stop_request import StopRequest
from launch.cluster.profiles import Profile
from launch.job import Stage
from launch.queueing import record
from launch.record.events import COMPARE, LAUNCH, TRIAL, last_step, note
from launch.record.local_runs import about_this_process, log_of, new_folder
from launch.record.submitting import submitting
from launch.several.asked import recorded
from launch.several.grid import Grid
from launch.several.programs import Programs, started
from launch.sweeps.plan import Plan

STDOUT, STDERR = 1, 2
TEE = Path(__file__).with_name("record") / "tee.py"
PROGRAMS = {"prepare": "data_prep", "evaluate": "train.evaluate", COMPARE: "train.compare"}
LOOK_EVERY_S = 0.1  # whether one of several programs has ended
TEE_ENDS_S = 10.0  # after the stage, unless somebody is left who may still print


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Return stage -> its command on this machine."""
    return {
        stage: train_command(Stage(stage, "", given), profile)
        if stage == "train"
        else [sys.executable, "-m", PROGRAMS[stage], *given]
        for stage, given in arguments.items()
    }


def train_command(training: Stage, profile: Profile) -> list[str]:
    """Return the command that trains; several ranks run under torchrun."""
    program = ["train"]
    if training.name == TRIAL:
        program = ["launch.sweeps.trial_stage", training.run]
    ranks = profile.most_ranks
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [sys.executable, "-m", *(torchrun if ranks > 1 else []), *program, *training.arguments]


def run_here(
    run: Path,
    argv: Sequence[str],
    commands: dict[str, list[str]],
    profile: Profile,
    made: Sequence[Path] = (),
    trainings: Sequence[tuple[Path, list[str]]] = (),
    sweep: Grid | Plan | None = None,
) -> int:
    """Run the stages on this machine one after the other, until a signal stops them.

    `made`: folders that were made for the run. `trainings`: runs in the folder, each with the
    command that trains it, in place of the stage train. `sweep`: what is recorded of it.
    """
    with submitting(run, made, [each for each, _ in trainings]), recorded(run, sweep):
        record(run, argv, profile, {}, [])
        logs = new_folder(run)
    relay, failed = Relay(), 0
    with relay:
        for stage, command in commands.items():
            if relay.signum:
                print(f"stopped before {stage}; {goes_on(run)}", file=sys.stderr)
                return EXIT_STOPPED
            if stage == "train" and trainings:
                code = train_members(trainings, profile.pack, relay)
            else:
                print(f"{stage}: {shlex.join(command)}", flush=True)
                code = run_stage(run, stage, command, logs, relay)
            if code and not relay.signum and COMPARE in commands and stage == "train":
                print(f"error: a trial ended with code {code}", file=sys.stderr)
                failed = code
            elif code:
                print(f"error: {stage} ended with code {code}; {goes_on(run)}", file=sys.stderr)
                return code
    print(f"run    {run}")
    print(f"next   tensorboard --logdir {shlex.quote(str(run))}")
    return failed


def train_members(trainings: Sequence[tuple[Path, list[str]]], at_once: int, relay: "Relay") -> int:
    """Train several runs, some at once; returns the first exit code that is not 0.

    One that fails does not end the others. Of several at once the terminal shows only when each
    starts and ends.
    """
    if at_once > 1:
        return train_at_once(trainings, at_once, relay)
    worst = 0
    for run, command in trainings:
        if relay.signum:
            return worst or EXIT_STOPPED
        print(f"train {run.name}: {shlex.join(command)}", flush=True)
        code = run_stage(run, "train", command, new_logs(run), relay)
        if code:
            print(f"error: {run} ended with code {code}", file=sys.stderr)
        worst = worst or code
    return worst


def train_at_once(trainings: Sequence[tuple[Path, list[str]]], at_once: int, relay: "Relay") -> int:
    """Train as many runs at once as are allowed; returns the first exit code that is not 0."""
    waiting, programs, worst = deque(trainings), Programs(), 0
    relay.process = programs
    while programs.running or (waiting and not relay.signum):
        if waiting and len(programs.running) < at_once and not relay.signum:
            run, command = waiting.popleft()
            logs = new_logs(run)
            log = log_of(logs, "train")
            print(f"train {run.name}: {shlex.join(command)} > {log}", flush=True)
            note(run, "started", "train", job=logs.name, **about_this_process())
            programs.start(run, command, log, relay)
            continue
        for ended in programs.take_ended():
            code = ended.process.returncode
            conclude(ended.run, "train", code, ended.log, relay)
            print(f"train {ended.run.name}: ended with code {code}", flush=True)
            worst = worst or code
        time.sleep(LOOK_EVERY_S)
    relay.process = None
    return worst or (EXIT_STOPPED if waiting else 0)


def new_logs(run: Path) -> Path:
    """Return a new folder for the logs of a run among several, which may be made now."""
    (run / LAUNCH).mkdir(parents=True, exist_ok=True)
    return new_folder(run)


def run_stage(run: Path, stage: str, command: list[str], logs: Path, relay: "Relay") -> int:
    """Run a stage with a log, and note its start and its end; returns its exit code."""
    note(run, "started", stage, job=logs.name, **about_this_process())
    log = log_of(logs, stage)
    with copied_to(log) as streams:
        code = relay.run(command, **streams)
    conclude(run, stage, code, log, relay)
    return code


def conclude(run: Path, stage: str, code: int, log: Path, relay: "Relay") -> None:
    """Note how a stage ended."""
    start = {"job": log.parent.name}
    step = {"step": last_step(run)} if stage == "train" else {}
    error = first_error(log) if code else ""
    if code == 0:
        note(run, "finished", stage, **start, **step, code=code)
    elif code == EXIT_STOPPED or (relay.signum and not error):
        reason = signal.Signals(relay.signum).name if relay.signum else "stopped"
        note(run, "stopped", stage, **start, **step, code=code, reason=reason)
    else:
        note(run, "gave up", stage, **start, **step, code=code, reason=error or in_words(code))


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
    """Yield a descriptor to write to, of which launch/record/tee.py copies everything.

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
        self.process: subprocess.Popen[bytes] | Programs | None = None
        self.waiting: deque[int] = deque()
        """Signals that are still to be passed on."""

    def run(self, command: list[str], **streams: Any) -> int:
        """Run a program, and wait while it saves after a signal; returns its exit code."""
        self.process = process = started(command, **streams)
        self.pass_on()  # what came while the program was started
        code = process.wait()
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
