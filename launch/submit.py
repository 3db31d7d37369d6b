"""Put preparation, training and evaluation on a Slurm cluster, each job after the one before.

    python launch/submit.py --nodes 2 [raw=DIR run=DIR preset=unet epochs=20 copies=16 ...]
    python launch/submit.py --dry-run ...          print the sbatch scripts, queue nothing
    python launch/submit.py --cluster local ...    the same stages on this machine, without Slurm

With nothing else it prepares data/BreCaHAD (python -m data_prep.fetch gets it) into data/prepared,
or takes what is prepared there, and trains and evaluates in a new folder of runs/. Other raw fields
(raw=DIR) are prepared into RUN/prepared, or where data= says.
key=value settings go to every stage that knows the key (`python -m data_prep --help`, `python -m
train --help`); prepare.KEY, train.KEY and evaluate.KEY go to one. The settings of the cluster are a
profile in slurm/, overridden by flags; SBATCH_*, SRUN_* and SLURM_* of your shell are not used. A
run of which a job is still in the queue is not submitted again.
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
# By itself torchrun dies of SIGUSR2, leaving its ranks behind, and kills them 30 s after another
TORCHRUN_WAITS = (
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
    "--shutdown-timeout=3600",  # in s
)


def main(argv: list[str]) -> int:
    """Check everything, then queue (or print, or run) the chain."""
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
    # A snapshot each submission: jobs of an earlier one may still be running on theirs
    run, code = request.run, request.run / LAUNCH / f"code-{time.strftime('%Y%m%d-%H%M%S')}"
    jobs = plan(run, code, with_kept_config(arguments, code), profile)
    slurm_commands.tell_unused()
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
    """The flags, and the key=value settings after them."""
    parser = argparse.ArgumentParser(
        prog="python launch/submit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="default", help="slurm/NAME.yaml (default)")
    parser.add_argument("--stages", default="", help=f"of {','.join(STAGES)}; all that apply")
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
    """Refuse what would become a line of a script by itself, or a pattern of Slurm's in a path."""
    for key, value in given.items():
        if has_control_characters(value):
            raise UsageError(f"{key}={value!r}: holds a line break or a control character")
    if wrong := [character for character in "%\\" if character in given["run"]]:
        raise UsageError(f"run={given['run']}: Slurm reads {wrong[0]} as a pattern; leave it out")


def report(request: Request, stages: Sequence[str], ids: dict[str, str]) -> None:
    """Job ids, the run folder, and what a user wants next."""
    run = request.run
    print("queued " + ", ".join(f"{label} {job}" for label, job in ids.items()))
    print(f"data   {request.data}" + ("" if "prepare" in stages else " (as it is there)"))
    print(f"run    {run}")
    print(f"next   python launch/jobs.py status {run}")
    print(f"       python launch/jobs.py logs -f {run}")
    print(f"       tensorboard --logdir {run}")


# Without Slurm


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Stage -> its command on this machine, ranks under torchrun."""
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
    """The same chain on this machine: stages one after the other, up to a signal to stop."""
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
    """How to go on after a stop."""
    return f"the same command with run={run} goes on"


class Relay(StopRequest):
    """While this context lasts, a signal that stops a run goes to the program that runs here."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting: deque[int] = deque()
        """Signals that are not passed on yet."""

    def run(self, command: list[str]) -> int:
        """Run a program to its end, however long it takes to save after a signal; its exit code.

        In a session of its own, so that Ctrl-C reaches it once, through us.
        """
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        self.pass_on()  # what came while the program was started
        code = self.process.wait()
        self.process = None
        return code

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.adopt(signum)
        self.waiting.append(signum)
        self.pass_on()

    def pass_on(self) -> None:
        """Send each signal once: the handler may come in between."""
        with contextlib.suppress(IndexError):  # none is left
            while self.process:
                self.process.send_signal(self.waiting.popleft())


if __name__ == "__main__":
    command_line.run(main)
