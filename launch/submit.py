"""Put preparation, training and evaluation on a Slurm cluster, each job after the one before.

    python launch/submit.py --nodes 2 [raw=DIR run=DIR preset=unet epochs=20 copies=16 ...]
    python launch/submit.py --dry-run ...          print the sbatch scripts, queue nothing
    python launch/submit.py --cluster local ...    the same stages on this machine, without Slurm

Without settings it prepares data/BreCaHAD (python -m data_prep.fetch downloads it) into
data/prepared, or uses the data set that is prepared there. It trains and evaluates in a new folder
of runs/. Other raw fields (raw=DIR) are prepared into RUN/prepared, or into the folder of data=.

A key=value setting goes to every stage that knows the key (`python -m data_prep --help`, `python -m
train --help`); prepare.KEY, train.KEY and evaluate.KEY go to one stage. The settings of the cluster
come from a profile in slurm/, or without one from what the cluster has, then from flags. SBATCH_*,
SRUN_*, SLURM_*, MASTER_PORT, RANK, CUDA_VISIBLE_DEVICES and their like of your shell are ignored. A
job that could not start there, and a run while one of its jobs is in the queue, are refused.
"""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError
from common.help_text import field_docs
from data_prep.dataset.manifest import read_dataset
from launch.cluster import slurm_commands
from launch.cluster.limits import Problem
from launch.cluster.profiles import Profile, has_control_characters
from launch.cluster.suggestion import PROFILE_HELP, choose_profile
from launch.cluster_checks import check_cluster, check_with_slurm
from launch.command_lines import PROGRAM
from launch.job_requests import plan, printed
from launch.layouts import check_beginning, check_begun, resolve_ranks, with_batch
from launch.local import local_commands, run_here
from launch.queueing import queue, record, take_snapshot, with_kept_config
from launch.record.events import LAUNCH, STAGES
from launch.record.submitting import cancelled_on_failure, missing_folders, submitting
from launch.stages import (
    Request,
    check,
    choose_stages,
    configurations,
    stage_arguments,
    with_pipelines_read,
)
from launch.ways_out import with_accepted
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.runs.newest import free_name, new_run

# Settings of a profile that are flags too; the others only make sense in a file
FLAGS = tuple(
    field.name
    for field in dataclasses.fields(Profile)
    if field.name not in ("stage", "setup", "environment", "srun_args", "sbatch_args")
)


@dataclass(frozen=True)
class Understood:
    """What a command line asks for."""

    request: Request
    stages: list[str]
    profile: Profile
    told: str
    """What to say about the choice of the profile, '' for nothing."""
    training: TrainConfig | None
    """The configuration of training, None without that stage."""


def main(argv: list[str]) -> int:
    """Check everything, then queue, print or run the chain; returns the exit code."""
    options = parse(argv)
    settings = dict(command_line.split_argument(setting) for setting in options.settings)
    try:
        asked = understood(argv)
    except UsageError as error:
        raise with_accepted(error, argv, FLAGS, understood) from None
    request, stages, profile = asked.request, asked.stages, asked.profile
    if asked.told:
        print(asked.told, file=sys.stderr)
    check(stage_arguments(stages, request, profile), request)
    waiting = []
    if options.cluster == "slurm" and slurm_commands.is_here():
        with refusing(told_only=options.dry_run):
            waiting = check_cluster(stages, request, profile, argv)
    if asked.training and "prepare" not in stages:
        check_fitting(asked.training, read_dataset(request.data).of_fold(asked.training.fold))
    if request.begun and asked.training:
        check_begun(request, asked.training, argv, is_prepared="prepare" not in stages)
    if asked.training:
        preparation = stage_arguments(stages, request, profile).get("prepare", [])
        for line in check_beginning(request, asked.training, argv, preparation):
            print(line, file=sys.stderr)
    made = missing_folders(request.run)
    if not settings.get("run") and not options.dry_run:
        request = replace(request, run=new_run().resolve())
        made[0] = request.run  # the name may be that of another second
    arguments = with_batch(stage_arguments(stages, request, profile), asked.training)
    arguments = with_pipelines_read(arguments)
    if options.cluster == "slurm":
        return submit(request, arguments, argv, profile, waiting, made, dry_run=options.dry_run)
    commands = local_commands(arguments, profile)
    if not options.dry_run:
        return run_here(request.run, argv, commands, profile, made)
    print("\n".join(shlex.join(command) for command in commands.values()))
    return 0


def understood(argv: list[str]) -> Understood:
    """Return what a command line asks for. Raises UsageError where it cannot work, whatever the
    data are: looking at those takes longer."""
    options = parse(argv)
    settings = dict(command_line.split_argument(setting) for setting in options.settings)
    on_slurm = options.cluster == "slurm"
    if on_slurm and not options.dry_run and not slurm_commands.is_here():
        raise UsageError(
            "no Slurm on this machine (no sbatch): --dry-run prints what would be queued,"
            " --cluster local runs it here"
        )
    flags = {key: getattr(options, key) for key in FLAGS if getattr(options, key) is not None}
    profile, told = choose_profile(options.profile, flags, STAGES, on_slurm=on_slurm)
    request = Request(settings, Path(settings.get("run") or free_name()).resolve())
    paths = {"run": request.run, "raw": request.raw, "data": request.data, "folder": Path.cwd()}
    refuse_control_characters(settings, {key: str(path) for key, path in paths.items()})
    stages = choose_stages(options.stages, request)
    configurations(stage_arguments(stages, request, profile))
    training = resolve_ranks(request, profile, argv) if "train" in stages else None
    return Understood(request, stages, profile, told, training)


@contextmanager
def refusing(*, told_only: bool) -> Iterator[None]:
    """While this context lasts, a UsageError is only told where `told_only`: of a dry run, which
    queues nothing, and may be meant for another cluster."""
    try:
        yield
    except UsageError as error:
        if not told_only:
            raise
        print(f"this would be refused here: {error}", file=sys.stderr)


def submit(
    request: Request,
    arguments: dict[str, list[str]],
    argv: Sequence[str],
    profile: Profile,
    waiting: Sequence[Problem],
    made: Sequence[Path],
    *,
    dry_run: bool,
) -> int:
    """Queue the stages, or print their scripts; returns the exit code. A failure leaves no job and
    no file behind, as far as Slurm answers; `made` are the folders that were made for the run."""
    # One snapshot per submission: jobs of an earlier one run their own
    run, code = request.run, request.run / LAUNCH / f"code-{time.strftime('%Y%m%d-%H%M%S')}"
    jobs = plan(run, code, with_kept_config(arguments, code), profile)
    slurm_commands.warn_of_unused_variables()
    for problem in waiting:
        print(f"doubtful: {problem.text}", file=sys.stderr)
    if slurm_commands.is_here():
        with refusing(told_only=dry_run):
            check_with_slurm(run, jobs, waiting)
    if dry_run:
        for job, before in zip(jobs, [None, *jobs], strict=False):
            print(printed(run, job, f"<id of {before.label}>" if before else ""))
        return 0
    settings = request.settings
    with submitting(run, made):
        take_snapshot(code, settings.get("config") or settings.get("train.config"))
        ids = queue(run, jobs)
        with cancelled_on_failure(ids):
            record(run, argv, profile, ids, arguments.get("prepare", []))
    report(request, list(arguments), ids)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the flags, and the key=value settings after them."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        allow_abbrev=False,  # command_lines.py takes whole names
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="", help=PROFILE_HELP)
    parser.add_argument(
        "--stages", default="", help=f"those of {','.join(STAGES)} to run (all that are needed)"
    )
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


def refuse_control_characters(settings: dict[str, str], paths: dict[str, str]) -> None:
    """Refuse texts that would add a line to a script, and patterns of Slurm's in a path."""
    for key, value in [*settings.items(), *paths.items()]:
        if has_control_characters(value):
            raise UsageError(f"{key}={value!r}: holds a line break or a control character")
    if wrong := [character for character in "%\\" if character in paths["run"]]:
        raise UsageError(f"run={paths['run']}: Slurm reads {wrong[0]} as a pattern; leave it out")


def report(request: Request, stages: Sequence[str], ids: dict[str, str]) -> None:
    """Print the job ids, the folder of the run, and the commands that a user wants next."""
    run, quoted = request.run, shlex.quote(str(request.run))
    print("queued " + ", ".join(f"{label} {job}" for label, job in ids.items()))
    print(f"data   {request.data}" + ("" if "prepare" in stages else " (prepared before)"))
    print(f"run    {run}")
    print(f"next   python launch/jobs.py status {quoted}")
    print(f"       python launch/jobs.py logs -f {quoted}")
    print(f"       tensorboard --logdir {quoted}")


if __name__ == "__main__":
    command_line.run(main)
