"""Watch and cancel runs on a cluster.

python launch/jobs.py status [RUN]            jobs, restarts, progress, best validation
python launch/jobs.py logs [RUN] [-f] [--stage train] [--rank 0]
python launch/jobs.py cancel RUN              every job of the run; what is saved stays
python launch/jobs.py list [FOLDER]           the runs in a folder (runs)

Without RUN they take the newest run in runs/.
"""

import argparse
import codecs
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError, UserError, escaped, printable
from common.schema import without_waiting
from launch.cluster import slurm_commands
from launch.record.events import (
    JOBS,
    LAUNCH,
    SUBMISSION,
    last_step,
    note,
    read_events,
    read_submission,
)
from launch.record.run_jobs import RunJob, in_queue, known_jobs, queued_jobs
from train.runs.history import read_metrics, read_progress, read_restarts
from train.runs.newest import RUNS, newest_run

READ_BYTES = 2**16  # of a log at a time
# Events worth a line in `status`, besides the stages' states
STORY = ("requeued", "stopped", "failed", "requeue refused", "gave up", "cancelled")


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python launch/jobs.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("status", "logs", "cancel"):
        command = commands.add_parser(name)
        command.add_argument("run", nargs="?", help="folder of a run (the newest in runs/)")
        if name == "logs":
            command.add_argument(
                "-f", "--follow", action="store_true", help="go on as the log grows"
            )
            command.add_argument("--stage", default="", help="prepare, join, train or evaluate")
            command.add_argument("--rank", type=int, default=0, help="rank, or array task (0)")
    commands.add_parser("list").add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    options = parser.parse_args(argv)
    if options.command == "list":
        return list_runs(options.folder)
    command, given = options.command, options.run
    options.run = find_run(given) if given else newest_submitted(command)
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


def newest_submitted(command: str) -> Path:
    """Return the run in runs/ that was submitted last.

    Raises UsageError where there is none, and for `cancel`, which asks for the name.
    """
    try:
        run = newest_run(mark=f"{LAUNCH}/{SUBMISSION}")
    except UsageError:
        raise UsageError(
            f"{RUNS}/ holds no run that launch/submit.py started; name the folder of one"
        ) from None
    if command == "cancel":
        raise UsageError(f"cancel: name the run; the newest is python launch/jobs.py cancel {run}")
    return run


def status(run: Path) -> list[str]:
    """Return the lines of `status`: the newest jobs, all jobs in the queue, progress and events."""
    submission = read_submission(run)
    newest = submission["jobs"].values() if submission else [job.job for job in known_jobs(run)]
    lines = [f"run       {run} ({origin(submission)})"]
    jobs, events = known_jobs(run), read_events(run)
    if jobs:
        lines.append(f"{'stage':9} {'job':>8}  {'state':12} {'nodes':14} restarts")
    silence = ""
    for job in jobs:
        tasks = []
        try:
            tasks = job.tasks(run)
        except UserError as error:
            silence = str(error)
        if job.job in newest or in_queue(tasks):
            lines += [row(job, state) for state in job_states(job, tasks, events)]
    if silence:
        lines.append(f"{silence}; the states are the jobs' own notes, some jobs may be missing")
    lines += progress(run)
    for event in events:
        if event["event"] in STORY:
            lines.append(story(event))
    return lines


def origin(submission: dict[str, Any] | None) -> str:
    """Return when a run was submitted, and the revision of its code."""
    if submission is None:
        return "submitted by hand, or its submission was cut off"
    submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(submission["time_s"]))
    return f"submitted {submitted}, code {submission['revision'][:12] or '?'}"


def row(job: RunJob, state: dict[str, str]) -> str:
    """Format a job, or a task of an array, as a line of the table."""
    line = f"{job.label:9} {job.job:>8}  {state['state']:12} {state['nodes']:14}"
    return f"{line} {state['restarts']:>8}  {state['reason']}".rstrip()


def job_states(
    job: RunJob, tasks: list[dict[str, str]], events: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Return state, nodes, restarts and reason of a job, or of each task of an array.

    They come from the queue while Slurm knows the job, then from its accounts where it keeps any,
    else from the events that the job noted.
    """
    if tasks:
        return [
            {
                "state": task.get("JobState", "?"),
                "nodes": task.get("NodeList", "").replace("(null)", ""),
                "reason": task.get("Reason", "").replace("None", ""),
                "restarts": task.get("Restarts", "0"),
            }
            for task in tasks
        ]
    stage = "prepare" if job.label == "join" else job.label
    newest = {
        event["job"]: event
        for event in events
        if event["stage"] == stage and str(event.get("job", "")).split("_")[0] == job.job
    }
    mine = list(newest.values())
    unfinished = [event["event"].upper() for event in mine if event["event"] != "finished"]
    noted = unfinished[0] if unfinished else "COMPLETED" if mine else "UNKNOWN"
    final = slurm_commands.accounted_states([job.job]).get(job.job, noted)
    restarts = max((event.get("restart", 0) for event in mine), default=0)
    nodes = str(mine[-1].get("nodes", "")) if mine else ""
    return [{"state": final, "nodes": nodes, "restarts": str(restarts), "reason": ""}]


def progress(run: Path) -> list[str]:
    """Return lines about the training: step, age of the last report, best validation, restarts."""
    now = read_progress(run)
    if now is None:
        return ["training  has not begun"]
    saved = f"saved at step {last_step(run)}"
    event = "finished" if now.is_finished else "last sign of life"
    lines = [
        f"training  step {now.step} of {now.total_steps}, epoch {now.epoch}, {saved};"
        f" {event} {age(time.time() - now.time_s)} ago"
    ]
    rows = read_metrics(run)
    measured = [(dice, row["step"]) for row in rows if (dice := row.get("val/dice")) is not None]
    if measured:
        dice, step = max(measured, key=lambda pair: pair[0])
        lines.append(f"best      validation Dice {dice:.4f} at step {step}")
    elif rows:
        lines.append("best      the newest checkpoint: nothing annotated in val")
    if restarts := read_restarts(run):
        steps = [str(restart.step) for restart in restarts]
        lines.append(f"restarts  {len(steps)}, at step {', '.join(steps)}")
    return lines


def age(seconds: float) -> str:
    """Format a duration."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def story(event: dict[str, Any]) -> str:
    """Format an event as a line."""
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(event["time_s"]))
    step = f" at step {event['step']}" if "step" in event and event["stage"] == "train" else ""
    reason = f": {event['reason']}" if event.get("reason") else ""
    return f"{when}  {event['stage']} {event['event']}{step}{reason}"


def cancel(run: Path) -> int:
    """Cancel every job of a run, the last one first, so that none starts meanwhile."""
    queued = list(queued_jobs(run))
    if not queued:
        print(f"no job of {run} is in the queue")
        return 0
    refused = []
    for job in reversed(queued):
        code, text = slurm_commands.ask("scancel", job.job)
        if code and "Invalid job id" not in text:  # else it has ended already
            refused.append(f"{job.label} {job.job}: {text}")
    note(run, "cancelled", "chain")
    if refused:
        print("\n".join(f"error: {line}" for line in refused), file=sys.stderr)
        return 1
    print(f"cancelled {', '.join(job.job for job in queued)}; the checkpoints stay in {run}")
    return 0


def logs(run: Path, stage: str, rank: int, follow: bool) -> int:
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


def find_log(run: Path, stage: str, rank: int) -> Path:
    """Return the log of a rank, of the newest job that has one. Raises UsageError."""
    jobs = known_jobs(run)
    if not jobs:
        raise UsageError(f"{run}: it ran without Slurm, so its output is only where it was started")
    labels = dict.fromkeys(job.label for job in jobs)
    if stage and stage not in labels:
        raise UsageError(f"--stage {stage}: the run has: {', '.join(labels)}")
    for job in reversed([job for job in jobs if stage in ("", job.label)]):
        # an array's tasks have a folder each, with a log of rank 0
        for pattern in (f"{job.job}/*_{rank}_log.out", f"{job.job}_{rank}/*_0_log.out"):
            if found := sorted((run / LAUNCH / JOBS).glob(pattern)):
                return found[0]
    ranks = {
        int(match[1])
        for path in (run / LAUNCH / JOBS).glob("*/*_log.out")
        if (match := re.search(r"_(\d+)_log\.out$", path.name))
    }
    known = ", ".join(map(str, sorted(ranks))) or "none"
    raise UsageError(f"no log of rank {rank}; ranks with a log: {known}")


def list_runs(folder: Path) -> int:
    """Print one line per run in a folder."""
    runs = sorted(path.parents[1] for path in folder.glob("*/launch/submission.json"))
    if not runs:
        raise UsageError(f"{folder}: no runs that launch/submit.py started")
    for run in runs:
        try:
            line = progress(run)[0].removeprefix("training").strip()
        except UserError as error:  # the others are listed nevertheless
            line = str(error)
        print(printable(f"{run}: {line}"))
    return 0


if __name__ == "__main__":
    command_line.run(main)
