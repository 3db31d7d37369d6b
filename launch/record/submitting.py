"""Hold a run while something is submitted for it, and leave nothing behind where that fails."""

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.command_line import UsageError, UserError
from common.lease import Lease
from launch.cluster import slurm_commands
from launch.record.events import JOBS, LAUNCH, SUBMISSION, submission_of
from launch.record.local_runs import running_stages
from launch.record.run_jobs import known_jobs, queued_jobs


class StillQueuedError(UserError):
    """A submission failed, and a job of it is or may be in the queue: what was recorded stays."""


@contextmanager
def cancelled_on_failure(jobs: Mapping[str, str]) -> Iterator[None]:
    """If this context fails, cancel the jobs (label -> id) that are queued by then.

    Raises StillQueuedError where Slurm does not confirm that.
    """
    try:
        yield
    except BaseException as error:
        told = str(error) or "interrupted"
        if left := slurm_commands.cancel(list(jobs.values())):
            ids = " ".join(sorted(left, key=int))
            raise StillQueuedError(
                f"{told}; Slurm does not confirm that it cancels what was queued; `scancel {ids}`"
                " does it later"
            ) from error
        if isinstance(error, UserError) and not isinstance(error, StillQueuedError):
            raise UserError(f"{told}; nothing is left in the queue") from None
        raise


def missing_folders(run: Path) -> list[Path]:
    """Return the folders that are to be made for a run, the innermost first."""
    return [folder for folder in (run, *run.parents) if not folder.exists()]


@contextmanager
def submitting(
    run: Path, made: Sequence[Path] = (), members: Sequence[Path] = ()
) -> Iterator[None]:
    """Hold a run while its jobs are queued, so that nobody else queues a second chain beside it.

    `members`: the runs in it, where it is a folder of several. A failure removes what was made
    meanwhile, and the folders `made` for it, but for a StillQueuedError: jobs that are
    left need their files, and the record names them. Raises UsageError while the run has jobs in
    the queue, or runs on this machine. Raises UserError where somebody else is submitting it, where
    Slurm does not answer, or where another program wrote submission.json.
    """
    try:
        (run / LAUNCH).mkdir(parents=True, exist_ok=True)
        with Lease(run, "run", name=f"{LAUNCH}/submit.lock", doing="submitting it"):
            submission_of(run).check([SUBMISSION], "name another run=")
            for each in (run, *members):
                refuse_busy(each)
            with removed_on_failure((run, *members)):
                yield
    except BaseException:
        inner = [folder for each in members for folder in (each / LAUNCH, each, each.parent)]
        for folder in (*inner, run / LAUNCH, *made):
            with suppress(OSError):  # not empty: another process uses it
                folder.rmdir()
        raise


def refuse_busy(run: Path) -> None:
    """Raise UsageError while a run has jobs in the queue, or runs on this machine."""
    busy = [f"{stage.name} runs here (process {stage.launcher})" for stage in running_stages(run)]
    if slurm_commands.is_here() and known_jobs(run) and (queued := queued_jobs(run)):
        jobs = ", ".join(f"{job.label} {job.job} ({state})" for job, state in queued.items())
        busy.append(f"still in the queue: {jobs}")
    if busy:
        folder = shlex.quote(str(run))
        raise UsageError(
            f"run={run}: {'; '.join(busy)}; nothing was queued. See them with `python"
            f" launch/jobs.py status {folder}`, end them with `python launch/jobs.py cancel"
            f" {folder}`, or name another run="
        )


@contextmanager
def removed_on_failure(runs: Sequence[Path]) -> Iterator[None]:
    """If this context fails, remove what it made in RUN/launch of each. They must be held."""
    before = {path for run in runs for path in contents(run)}
    try:
        yield
    except StillQueuedError:
        raise
    except BaseException:
        for path in {path for run in runs for path in contents(run)} - before:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def contents(run: Path) -> list[Path]:
    """Return what is in RUN/launch, and in its folder of jobs."""
    return [*(run / LAUNCH).glob("*"), *(run / LAUNCH / JOBS).glob("*")]
