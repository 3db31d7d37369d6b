"""Put preparation, training and evaluation on a Slurm cluster, each job after the one before.

    python launch/submit.py --nodes 2 [raw=DIR run=DIR preset=unet epochs=20 copies=16 ...]
    python launch/submit.py --dry-run ...          print the sbatch scripts, queue nothing
    python launch/submit.py --cluster local ...    the same stages on this machine, without Slurm
    python launch/submit.py --folds 5 ...          a run for each fold of the cases, run=CV/fold-K
    python launch/submit.py --sweep lr=1e-4,1e-3 model.width=16,32 ...    a run for each combination
    python launch/submit.py --trials 40 --sweep 'lr=log(1e-4,1e-2)' ...   40 runs chosen by Optuna

Without settings it prepares data/BreCaHAD (python -m data_prep.fetch downloads it) into
data/prepared, or uses the data set that is prepared there. It trains and evaluates in a new folder
of runs/. Other raw fields (raw=DIR) are prepared into RUN/prepared, or into the folder of data=.

A key=value setting goes to every stage that knows the key (`python -m data_prep --help`, `python -m
train --help`); prepare.KEY, train.KEY and evaluate.KEY go to one stage. How raw fields are read
(annotations, empty, ignore_px, ignore_value, mpp) goes to preparation, and to evaluation only with
evaluate.raw=DIR. The settings of the cluster come from a profile in slurm/, or without one from
what the cluster has, then from flags. SBATCH_*, SRUN_*, SLURM_*, MASTER_PORT, RANK,
CUDA_VISIBLE_DEVICES and their like of your shell are ignored for jobs. A job that could not start
there, and a run while one of its jobs is in the queue, are refused.
"""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError
from common.help_text import field_docs
from launch import command_lines
from launch.cluster import slurm_commands
from launch.cluster.encoders import with_encoders
from launch.cluster.limits import Problem
from launch.cluster.profiles import Profile, has_control_characters
from launch.cluster.suggestion import PROFILE_HELP, choose_profile
from launch.cluster_checks import check_cluster, check_with_slurm
from launch.command_lines import PROGRAM
from launch.job import Stage
from launch.job_requests import plan, printed
from launch.local import local_commands, run_here, train_command
from launch.queueing import queue, record, take_snapshot, with_kept_config
from launch.record.events import LAUNCH, STAGES
from launch.record.submitting import cancelled_on_failure, missing_folders, submitting
from launch.several.asked import Several, add_flags, check_folder, recorded
from launch.several.grid import Grid
from launch.several.members import count_folds
from launch.stages import (
    Request,
    check,
    choose_stages,
    configurations,
    stage_arguments,
    stage_keys,
    with_contents,
)
from launch.sweeps import space
from launch.sweeps.plan import Plan
from launch.trainings import (
    Training,
    check_trainings,
    shared_settings,
    still_to_train,
    trainings_of,
    trials_of_study,
    tried_configs,
    with_folds,
)
from launch.ways_out import with_accepted
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
    several: Several
    sweep: Grid | Plan | None
    """What is recorded of a sweep, None for none."""
    stages: list[str]
    profile: Profile
    told: str
    """What to say about the choice of the profile, '' for nothing."""
    trainings: list[Training]
    """That of each run, none without that stage."""


def main(argv: list[str]) -> int:
    """Check everything, then queue, print or run the chain; returns the exit code."""
    options = parse(argv)
    settings = dict(command_line.split_argument(setting) for setting in options.settings)
    try:
        asked = understood(argv)
    except UsageError as error:
        # For one run this will do, and loads nothing large
        are_several = options.sweep or options.folds or options.trials
        raise with_accepted(error, argv, FLAGS, try_out if are_several else understood) from None
    request, stages, profile = asked.request, asked.stages, asked.profile
    if asked.told:
        print(asked.told, file=sys.stderr)
    asked_for = stage_arguments(stages, request, profile)
    check(of_one_run(asked_for, asked.several.swept), request)
    waiting = []
    if options.cluster == "slurm" and slurm_commands.is_here():
        with refusing(told_only=options.dry_run):
            waiting = check_cluster(stages, request, profile, argv)
    preparation = stage_arguments(stages, request, profile).get("prepare", [])
    try:
        check_trainings(asked.trainings, request, argv, preparation)
    except UsageError as error:
        raise with_accepted(error, argv, FLAGS, try_out) from None
    if options.cluster == "local":
        profile = replace(profile, environment={})  # of jobs; here the cache is this shell's
    profile = with_encoders(tried_configs(asked.trainings), profile, is_tried=options.dry_run)
    made = missing_folders(request.run)
    if not settings.get("run") and not options.dry_run:
        request = replace(request, run=new_run().resolve())
        made[0] = request.run  # the name may be that of another second
    trainings = still_to_train(asked.trainings, request, profile)
    profile = replace(profile, pack=min(profile.pack, len(trainings) or 1))
    others = [stage for stage in stages if stage != "train"]
    arguments = with_contents(stage_arguments(others, request, profile))
    if trainings:
        union = dict.fromkeys(chain(*(training.arguments for training in trainings)))
        arguments = {stage: [*union] if stage == "train" else arguments[stage] for stage in stages}
    if not arguments:
        print("nothing to do")
        return 0
    members = [] if asked.several.is_alone else trainings
    queued = Chain(request, arguments, members, profile, asked.sweep)
    if options.cluster == "slurm":
        return submit(queued, argv, waiting, made, dry_run=options.dry_run)
    commands = local_commands(arguments, profile)
    programs = [(Path(each.run), train_command(each, profile)) for each in members]
    if not options.dry_run:
        return run_here(request.run, argv, commands, profile, made, programs, asked.sweep)
    for stage, command in commands.items():
        shown = [each for _, each in programs] if stage == "train" and programs else [command]
        print("\n".join(map(shlex.join, shown)))
    return 0


def try_out(argv: list[str]) -> None:
    """Raise UserError for a command line that is not accepted, whatever the cluster is."""
    with redirect_stderr(StringIO()):
        asked = understood(argv)
        arguments = stage_arguments(asked.stages, asked.request, asked.profile)
        check(of_one_run(arguments, asked.several.swept), asked.request)
        check_trainings(asked.trainings, asked.request, argv, arguments.get("prepare", []))


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
    several = options.several
    several.check(options.sweep is not None)
    for flag, value in (("--pack", options.pack), ("--at-once", options.at_once)):
        if several.is_alone and value:
            raise UsageError(f"{flag} {value}: for several runs; give --folds or --sweep too")
    profile, told = choose_profile(options.profile, flags, STAGES, on_slurm=on_slurm)
    request = Request(settings, Path(settings.get("run") or free_name()).resolve())
    paths = {"run": request.run, "raw": request.raw, "data": request.data, "folder": Path.cwd()}
    refuse_control_characters(settings, {key: str(path) for key, path in paths.items()})
    if several.folds:
        request = with_folds(request, several.folds, argv)
    stages = choose_stages(options.stages, request, several.stages)
    arguments = stage_arguments(stages, request, profile)
    if several.swept and "train" in stages:
        space.parse(several.swept, shared_settings(arguments["train"]))
    configurations(of_one_run(arguments, several.swept))
    sweep, trainings = None, list[Training]()
    if "train" in stages:
        check_folder(request.run, several)
        preparation = arguments.get("prepare", [])
        num_folds = count_folds(several.folds, request.data, preparation) if several.folds else 0
        shared = shared_settings(arguments["train"])
        sweep = several.sweep(request.run, shared)
        members = several.members(sweep, num_folds, shared)
        profile = profile.packing(len(members))
        if isinstance(sweep, Plan):
            trainings = trials_of_study(request, members, profile, argv, sweep)
        else:
            trainings = trainings_of(request, members, profile, argv)
    return Understood(request, several, sweep, stages, profile, told, trainings)


def of_one_run(arguments: dict[str, list[str]], swept: Sequence[str]) -> dict[str, list[str]]:
    """Return the arguments of the stages with the first values of what is swept: those of one run,
    which can be checked. Raises UsageError."""
    if not swept or "train" not in arguments:
        return arguments
    first = space.read(swept).first()
    known = [f"{key}={first[key]}" for key in first if key in stage_keys("train")]
    return {**arguments, "train": [*arguments["train"], *known]}


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


@dataclass(frozen=True)
class Chain:
    """What is to be queued."""

    request: Request
    arguments: dict[str, list[str]]
    """Stage -> its arguments; those of all trainings together."""
    trainings: Sequence[Stage]
    """Those of an array."""
    profile: Profile
    sweep: Grid | Plan | None


def submit(
    chain: Chain,
    argv: Sequence[str],
    waiting: Sequence[Problem],
    made: Sequence[Path],
    *,
    dry_run: bool,
) -> int:
    """Queue the stages, or print their scripts; returns the exit code. A failure leaves no job and
    no file behind, as far as Slurm answers; `made` are the folders that were made for the run."""
    # One snapshot per submission: jobs of an earlier one run their own
    request, arguments, profile = chain.request, chain.arguments, chain.profile
    run, code = request.run, request.run / LAUNCH / f"code-{time.strftime('%Y%m%d-%H%M%S')}"
    kept = [
        replace(each, arguments=with_kept_config({"": each.arguments}, code)[""])
        for each in chain.trainings
    ]
    jobs = plan(run, code, with_kept_config(arguments, code), profile, kept)
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
    with submitting(run, made, [Path(training.run) for training in chain.trainings]):
        take_snapshot(code, settings.get("config") or settings.get("train.config"))
        with recorded(run, chain.sweep):
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
    add_flags(parser)
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
    options = parser.parse_intermixed_args(argv)
    swept = [word for word in options.sweep or [] if command_lines.is_swept(word)]
    options.settings += [word for word in options.sweep or [] if word not in swept]
    options.several = Several(options.folds, tuple(swept), options.trials, options.prune)
    return options


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
