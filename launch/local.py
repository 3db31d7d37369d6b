"""The chain without Slurm: its stages on this machine, one after the other."""

import contextlib
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from common.command_line import EXIT_STOPPED
from common.stop_request import StopRequest
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile
from launch.queueing import ROOT, record
from launch.record.events import note
from launch.record.run_jobs import submitting

# By default SIGUSR2 ends torchrun but not its ranks; after another signal it kills them in 30 s
TORCHRUN_WAITS = (
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
    "--shutdown-timeout=3600",  # in s
)


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Return stage -> its command on this machine; several ranks run under torchrun."""
    ranks = profile.most_ranks
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    torchrun += [*TORCHRUN_WAITS, "-m"]
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
    run: Path, argv: Sequence[str], commands: dict[str, list[str]], profile: Profile
) -> int:
    """Run the stages on this machine one after the other, until a signal stops them."""
    with submitting(run):
        record(run, argv, profile, {}, [])
    relay = Relay()
    with relay:
        for stage, command in commands.items():
            if relay.signum:
                print(f"stopped before {stage}; {goes_on(run)}", file=sys.stderr)
                return EXIT_STOPPED
            print(f"{stage}: {shlex.join(command)}", flush=True)
            note(run, "started", stage, job="local")
            code = relay.run(command)
            note(run, "finished" if code == 0 else "gave up", stage, job="local", code=code)
            if code:
                print(f"error: {stage} ended with code {code}; {goes_on(run)}", file=sys.stderr)
                return code
    print(f"run    {run}")
    print(f"next   tensorboard --logdir {run}")
    return 0


def goes_on(run: Path) -> str:
    """Return how to go on after a stop."""
    return f"the same command with run={run} goes on"


class Relay(StopRequest):
    """While this context lasts, pass signals that stop a run on to the program that runs here."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting: deque[int] = deque()
        """Signals that are still to be passed on."""

    def run(self, command: list[str]) -> int:
        """Run a program, and wait while it saves after a signal; returns its exit code.

        It has a session of its own, so that Ctrl-C reaches it once, from here.
        """
        # Inside a job of Slurm's, say by salloc, the program is no task of that job
        environment = slurm_commands.inherited(keep=slurm_commands.OF_GPUS)
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
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
