"""Find and show what a stage printed."""

import codecs
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import IO, cast

from common.command_line import UsageError, escaped
from common.schema import without_waiting
from launch.record.events import JOBS, LAUNCH
from launch.record.local_runs import LocalStage, local_stages, log_of
from launch.record.run_jobs import RunJob, jobs_folders, known_jobs

READ_BYTES = 2**16  # of a log at a time


def logs(run: Path, stage: str, rank: int | None, follow: bool) -> int:
    """Print or follow a log."""
    path = find_log(run, stage, rank)
    if not follow:
        with open(path, "rb", opener=without_waiting) as file:
            show(file.fileno())
        return 0
    # --pid: it ends with this process, however that ends
    command = ["tail", "-n", "+1", "-F", f"--pid={os.getpid()}", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
        try:
            show(cast(IO[bytes], tail.stdout).fileno())
        finally:
            tail.terminate()
    return 0


def show(log: int) -> None:
    """Print a log piece by piece; show what would control the terminal as an escape."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := os.read(log, READ_BYTES):
        text = decoder.decode(piece).replace("\r", "\n")  # a bar that is drawn anew
        print("\t".join(map(escaped, text.split("\t"))), end="", flush=True)


def find_log(run: Path, stage: str, rank: int | None) -> Path:
    """Return the newest log of a rank (of rank 0, if None), or of a stage without Slurm, whose
    ranks share one. Raises UsageError."""
    jobs, here = known_jobs(run), local_stages(run)
    labels = dict.fromkeys([*(job.label for job in jobs), *(start.name for start in here)])
    if stage and stage not in labels:
        raise UsageError(f"--stage {stage}: the run has: {', '.join(labels)}; {whole(run)}")
    local = newest_local(run, [start for start in here if stage in ("", start.name)])
    of_job = newest_of_jobs(run, [job for job in jobs if stage in ("", job.label)], rank or 0)
    if rank and local and not of_job:
        raise UsageError(
            f"--rank {rank}: without Slurm all ranks share one log; {whole(run, stage)}"
        )
    if found := [path for path in (local, of_job) if path]:
        return max(found, key=lambda path: path.stat().st_mtime_ns)
    ranks = {
        int(match[1])
        for path in (run / LAUNCH / JOBS).glob("*/*_log.out")
        if (match := re.search(r"_(\d+)_log\.out$", path.name))
    }
    known = ", ".join(map(str, sorted(ranks))) or "none"
    raise UsageError(f"no log of rank {rank or 0}; ranks with a log: {known}")


def newest_local(run: Path, starts: list[LocalStage]) -> Path | None:
    """Return the log of the last of these starts on a machine; None where there is none."""
    logs = [log_of(run / LAUNCH / JOBS / start.job, start.name) for start in starts]
    return next((log for log in reversed(logs) if log.is_file()), None)


def newest_of_jobs(run: Path, jobs: list[RunJob], rank: int) -> Path | None:
    """Return the log of a rank, of the last of these jobs that has one; None where none has."""
    for job in reversed(jobs):
        # an array's tasks have a folder each, with a log of rank 0
        for pattern in (f"{job.name}/*_{job.rank + rank}_log.out", f"{job.job}_{rank}/*_0_log.out"):
            for folder in jobs_folders(run):
                if found := sorted(folder.glob(pattern)):
                    return found[0]
    return None


def whole(run: Path, stage: str = "") -> str:
    """Return the command that shows a log."""
    words = ["python", "launch/jobs.py", "logs", str(run), *(["--stage", stage] if stage else [])]
    return f"`{shlex.join(words)}` shows one"
