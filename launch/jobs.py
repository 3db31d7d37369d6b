"""Watch and cancel runs, on a cluster or on this machine (submit.py --cluster local).

python launch/jobs.py status [RUN]            jobs, starts, progress, best validation
python launch/jobs.py logs [RUN] [-f] [--stage train] [--rank 0]
python launch/jobs.py cancel RUN              every job of the run; what is saved stays
python launch/jobs.py list [FOLDER]           the runs in a folder (runs)
python launch/jobs.py compare FOLDER          a table and a page of the runs in a folder

Without RUN they take the newest run in runs/. RUN may be a folder of several (--folds, --sweep):
status has a row for each, cancel ends all; RUN/fold-2, or RUN --run fold-2, is one of them.
"""

import argparse
import glob
import shlex
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError, UserError, named, printable
from launch.cluster import slurm_commands
from launch.record.events import LAUNCH, SUBMISSION, note, read_submission
from launch.record.local_runs import (
    UNKNOWN,
    LocalStage,
    local_stages,
    running_stages,
    stop,
)
from launch.record.logs import logs
from launch.record.members import in_a_line, sharing
from launch.record.run_jobs import RunJob, known_jobs, queued_jobs
from launch.record.status import progress, status
from train.runs.newest import RUNS, newest_run
from train.runs.same_data import as_typed
from train.runs.several import folder_above, members_of, runs_of, trials_of


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python launch/jobs.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("status", "logs", "cancel"):
        added = commands.add_parser(name)
        added.add_argument("run", nargs="?", help="folder of a run (the newest in runs/)")
        added.add_argument("--run", dest="member", default="", help="one of several, as in fold-2")
        if name == "logs":
            added.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")
            added.add_argument("--stage", default="", help="prepare, join, train or evaluate")
            added.add_argument("--rank", type=int, help="rank, or array task (0)")
    commands.add_parser("list").add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    commands.add_parser("compare").add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    if options.command == "compare":
        return compare(find_run(str(options.folder)))
    if options.command == "list":
        return list_runs(options.folder)
    given = options.run
    options.run = find_run(given) if given else newest_submitted(options.command)
    if options.member:
        options.run = find_member(options.run, options.member)
    if read_submission(options.run) is None and not known_jobs(options.run):
        raise UsageError(f"{options.run}: holds no job of launch/submit.py or slurm/train.sbatch")
    if options.command == "status":
        print("\n".join(map(printable, status(options.run))))
        return 0
    if options.command == "cancel":
        return cancel(options.run)
    return logs(options.run, options.stage, options.rank, options.follow)


def find_run(given: str) -> Path:
    """Return the folder of a run, given as its path, as run=PATH, or as its name in runs/."""
    path = Path(given.removeprefix("run="))
    return RUNS / path if (RUNS / path / LAUNCH).is_dir() else path


def find_member(folder: Path, name: str) -> Path:
    """Return one of the runs in a folder of several. Raises UsageError."""
    names = [str(run.relative_to(folder)) for run in runs_of(folder)]
    if name in names:
        return folder / name
    raise UsageError(f"--run {name}: {folder} has {named(names) or 'no runs in it'}")


def compare(folder: Path) -> int:
    """Compare the runs in a folder; returns the exit code."""
    from train.compare import main as compare_runs

    # A sweep's folder stands for its trials, those too that have not begun
    kind = "fold-*" if members_of(folder) else "*"
    runs = str(folder) if trials_of(folder) else f"{glob.escape(str(folder))}/{kind}"
    return compare_runs([f"runs={as_typed([runs])}", f"out={folder}/comparison"])


def newest_submitted(name: str) -> Path:
    """Return the run in runs/ that was submitted last.

    Raises UsageError where there is none, and for `cancel`, which asks for the name.
    """
    try:
        run = newest_run(mark=f"{LAUNCH}/{SUBMISSION}")
    except UsageError:
        raise UsageError(
            f"{RUNS}/ holds no run that launch/submit.py started; name the folder of one"
        ) from None
    if name == "cancel":
        runs = [path for path in submitted(RUNS) if is_busy(path)] or [run]
        what = "nothing runs; the newest is" if not is_busy(runs[0]) else "name the run, as in"
        raise UsageError(
            "\n  ".join([f"cancel: {what}", *(command("cancel", run) for run in runs)])
        )
    return run


def is_busy(run: Path) -> bool:
    """Return whether a run has jobs in the queue, or runs on this machine."""
    with suppress(UserError):  # Slurm does not answer
        return bool(running_here(run)) or (slurm_commands.is_here() and bool(queued(run)))
    return False


def running_here(run: Path) -> list[LocalStage]:
    """Return the stages of a run, or of those in its folder, that run on this machine."""
    return [stage for each in (run, *runs_of(run)) for stage in running_stages(each)]


def queued(run: Path) -> list[RunJob]:
    """Return the jobs in the queue of a run, and of those in its folder that were submitted by
    themselves; the oldest first. Raises UserError where Slurm does not answer."""
    numbers = {job.job for job in known_jobs(run)}
    found = list(queued_jobs(run)) if numbers else []
    for each in runs_of(run):
        if any(job.job not in numbers for job in known_jobs(each)):  # else Slurm need not be asked
            found += [job for job in queued_jobs(each) if job.job not in numbers]
    return sorted(found, key=lambda job: int(job.job))


def submitted(folder: Path) -> list[Path]:
    """Return the runs in a folder that submit.py started, by name."""
    return sorted(path.parents[1] for path in folder.glob(f"*/{LAUNCH}/{SUBMISSION}"))


def command(name: str, run: Path) -> str:
    """Return a whole command about a run."""
    return shlex.join(["python", "launch/jobs.py", name, str(run)])


def cancel(run: Path) -> int:
    """Cancel every job of a run, the last one first, so that none starts meanwhile, and stop it on
    this machine."""
    jobs = queued(run)
    here = running_here(run)
    if folder_above(run) and jobs and (others := sharing(run)):
        raise UsageError(
            f"{run} shares its job with {named(others)}; cancel all of them:"
            f" {command('cancel', folder_above(run) or run)}"
        )
    if not jobs and not here:
        print(f"nothing of {run} is in the queue, or runs on this machine")
        for stage in local_stages(run):
            if stage.state == UNKNOWN:
                print(f"{stage.name} was started on {stage.host}; there: {command('cancel', run)}")
        return 0
    refused = []
    for job in reversed(jobs):
        code, text = slurm_commands.ask("scancel", job.name)
        if code and "Invalid job id" not in text:  # else it has ended already
            refused.append(f"{job.label} {job.name}: {text}")
    for stage in {each.launcher: each for each in here}.values():  # one may run several
        stop(stage)
        print(f"{stage.name}: process {stage.launcher} was told to stop; it saves first")
    note(run, "cancelled", "chain")
    if refused:
        print("\n".join(f"error: {line}" for line in refused), file=sys.stderr)
        return 1
    if jobs:
        print(f"cancelled {', '.join(job.name for job in jobs)}; the checkpoints stay in {run}")
    return 0


def list_runs(folder: Path) -> int:
    """Print one line per run in a folder."""
    runs = submitted(folder)
    if not runs:
        raise UsageError(f"{folder}: no runs that launch/submit.py started")
    for run in runs:
        try:
            line = in_a_line(run) if runs_of(run) else progress(run)[0]
            line = line.removeprefix("training").strip()
        except UserError as error:  # the others are listed nevertheless
            line = str(error)
        if here := local_stages(run)[-1:]:
            line += f"; {here[0].name} {here[0].state} on {here[0].host}"
        print(printable(f"{run}: {line}"))
    return 0


if __name__ == "__main__":
    command_line.run(main)
