"""Put preparation, training and evaluation on a Slurm cluster, each job after the one before.

    python launch/submit.py --nodes 2 [raw=DIR run=DIR preset=unet epochs=20 copies=16 ...]
    python launch/submit.py --dry-run ...          print the sbatch scripts, queue nothing
    python launch/submit.py --cluster local ...    the same stages on this machine, without Slurm

Without settings it prepares data/BreCaHAD (python -m data_prep.fetch downloads it) into
data/prepared, or uses the data set that is prepared there. It trains and evaluates in a new folder
of runs/. Other raw fields (raw=DIR) are prepared into RUN/prepared, or into the folder of data=.

A key=value setting goes to every stage that knows the key (`python -m data_prep --help`, `python -m
train --help`); prepare.KEY, train.KEY and evaluate.KEY go to one stage. The settings of the cluster
come from a profile in slurm/, then from flags. SBATCH_*, SRUN_* and SLURM_* of your shell are
ignored. A run is refused while one of its jobs is in the queue.
"""

import argparse
import contextlib
import dataclasses
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError
from common.help_text import field_docs
from common.stop_request import StopRequest
from launch import slurm_commands
from launch.events import LAUNCH, STAGES, note
from launch.profiles import Profile, has_control_characters, load_profile
from launch.queueing import plan, queue, record, script, take_snapshot, with_kept_config
from launch.run_jobs import submitting
from launch.stages import Request, check, check_ranks, choose_stages, stage_arguments
from train.runs.newest import free_name, new_run

# Settings of a profile that are flags too; the others only make sense in a file
FLAGS = tuple(
    field.name
    for field in dataclasses.fields(Profile)
    if field.name not in ("setup", "environment", "srun_args", "sbatch_args")
)
# By default SIGUSR2 ends torchrun but not its ranks; after another signal it kills them in 30 s
TORCHRUN_WAITS = (
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
    "--shutdown-timeout=3600",  # in s
)


def main(argv: list[str]) -> int:
    """Check everything, then queue, print or run the chain; returns the exit code."""
    options = parse(argv)
    settings = dict(command_line.split_argument(setting) for setting in options.settings)
    if options.cluster == "slurm" and not options.dry_run and not slurm_commands.is_here():
        raise UsageError(
            "no Slurm on this machine (no sbatch): --dry-run prints what would be queued,"
            " --cluster local runs it here"
        )
    flags = {key: getattr(options, key) for key in FLAGS if getattr(options, key) is not None}
    profile = load_profile(options.profile, flags)
    request = Request(settings, Path(settings.get("run") or free_name()).resolve())
    refuse_control_characters(settings | {"run": str(request.run)})
    stages = choose_stages(options.stages, request)
    check(stage_arguments(stages, request, profile), request)
    if "train" in stages:
        check_ranks(request, profile, argv)
    if not settings.get("run") and not options.dry_run:
        request = replace(request, run=new_run().resolve())
    arguments = stage_arguments(stages, request, profile)
    if options.cluster == "local":
        commands = local_commands(arguments, profile)
        if options.dry_run:
            print("\n".join(shlex.join(command) for command in commands.values()))
            return 0
        return run_here(request.run, argv, commands, profile)
    # One snapshot per submission: jobs of an earlier one run their own
    run, code = request.run, request.run / LAUNCH / f"code-{time.strftime('%Y%m%d-%H%M%S')}"
    jobs = plan(run, code, with_kept_config(arguments, code), profile)
    slurm_commands.warn_of_unused_variables()
    if options.dry_run:
        for job, before in zip(jobs, [None, *jobs], strict=False):
            print(script(run, job, f"<id of {before.label}>" if before else ""))
        return 0
    with submitting(run):
        take_snapshot(code, settings.get("config") or settings.get("train.config"))
        ids = queue(run, jobs)
        record(run, argv, profile, ids, arguments.get("prepare", []))
    report(request, stages, ids)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the flags, and the key=value settings after them."""
    parser = argparse.ArgumentParser(
        prog="python launch/submit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="default", help="cluster's settings: slurm/NAME.yaml")
    parser.add_argument("--stages", default="", help=f"some of {','.join(STAGES)}; all needed")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the sbatch scripts, or with --cluster local the commands, and run nothing",
    )
    docs = field_docs(Profile)
    for key in FLAGS:
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="X", help=docs[key])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def refuse_control_characters(given: dict[str, str]) -> None:
    """Refuse texts that would add a line to a script, and patterns of Slurm's in a path."""
    for key, value in given.items():
        if has_control_characters(value):
            raise UsageError(f"{key}={value!r}: holds a line break or a control character")
    if wrong := [character for character in "%\\" if character in given["run"]]:
        raise UsageError(f"run={given['run']}: Slurm reads {wrong[0]} as a pattern; leave it out")


def report(request: Request, stages: Sequence[str], ids: dict[str, str]) -> None:
    """Print the job ids, the folder of the run, and the commands that a user wants next."""
    run = request.run
    print("queued " + ", ".join(f"{label} {job}" for label, job in ids.items()))
    print(f"data   {request.data}" + ("" if "prepare" in stages else " (prepared before)"))
    print(f"run    {run}")
    print(f"next   python launch/jobs.py status {run}")
    print(f"       python launch/jobs.py logs -f {run}")
    print(f"       tensorboard --logdir {run}")


# Without Slurm


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Return stage -> its command on this machine; several ranks run under torchrun."""
    ranks = profile.nodes * profile.tasks_per_node
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
                return command_line.EXIT_STOPPED
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
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
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


if __name__ == "__main__":
    command_line.run(main)
