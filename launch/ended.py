"""The last line of a job's script: what to make of srun's exit code.

    python -m launch.ended RUN STAGE CODE RETRIES

A job that failed is brought back, RETRIES times without a newer checkpoint between that it saved
itself: one of another job of the run is no progress of this one. A wrong command line stays wrong,
so it is not brought back. A job that is no longer RUNNING is being cancelled or requeued.
"""

import signal
import sys
from pathlib import Path
from typing import Any

from common.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from common.slurm_job import job_id
from launch import slurm_commands
from launch.events import last_step, note, own_step, read_events
from launch.job import was_preempted, where


def main(argv: list[str]) -> int:
    """Note how the job ended, bring it back if it should be, and return its exit code."""
    run, stage, code, retries = Path(argv[0]), argv[1], int(argv[2]), int(argv[3])
    if code == 0:
        note(run, "finished", stage, **where())
        return 0
    job = slurm_commands.show_job(job_id())
    if job.get("JobState", "unknown") not in ("RUNNING", "unknown") or was_told_to_stop(run, stage):
        return code
    step, reason = last_step(run), describe(run, stage, code)
    if was_preempted(job) or code == 128 + signal.SIGUSR2:
        # the signal came before Python could hear it: no failure, so it is not counted
        note(run, "requeued", stage, step=step, reason="stopped as it started", **where())
        return bring_back(run, stage, step, code)
    saved = own_step(run, job_id())
    failed_before = failures_without_progress(run, stage, saved)
    if code == EXIT_USAGE or failed_before >= retries:
        note(run, "gave up", stage, step=step, reason=reason, **where())
        return code
    note(run, "failed", stage, step=step, saved=saved, reason=reason, **where())
    print(f"failed ({reason}); brought back, try {failed_before + 1} of {retries}", flush=True)
    return bring_back(run, stage, step, code)


def bring_back(run: Path, stage: str, step: int, code: int) -> int:
    """Have the job requeued; returns its exit code."""
    if refusal := slurm_commands.requeue(job_id()):
        note(run, "requeue refused", stage, step=step, reason=refusal, **where())
    return code


def since_start(run: Path, stage: str) -> list[dict[str, Any]]:
    """This job's events since it last started."""
    mine = [
        event
        for event in read_events(run)
        if event["stage"] == stage and event.get("job") == job_id()
    ]
    starts = [index for index, event in enumerate(mine) if event["event"] == "started"]
    return mine[starts[-1] :] if starts else []


def was_told_to_stop(run: Path, stage: str) -> bool:
    """Whether the stage has stopped for good (Ctrl-C, scancel)."""
    return any(event["event"] == "stopped" for event in since_start(run, stage))


def failures_without_progress(run: Path, stage: str, saved: int) -> int:
    """How often this job has failed since it saved its newest checkpoint, that of step `saved`."""
    mine = [
        event
        for event in read_events(run)
        if event["event"] == "failed" and event["stage"] == stage and event["job"] == job_id()
    ]
    count = 0
    for event in reversed(mine):
        if event["saved"] < saved:
            break
        count += 1
    return count


def describe(run: Path, stage: str, code: int) -> str:
    """The reason of a failure: the error that a rank noted, or the signal that killed it."""
    for event in since_start(run, stage):
        if event["event"] == "error":  # the first: the other ranks only miss the one that failed
            return f"rank {event['rank']}: {event['reason']}"
    if code == EXIT_STOPPED:
        return "stopped, and Slurm refused to requeue"
    if code - 128 in list(signal.Signals):
        return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}" if code != EXIT_FAILED else "failed; see the log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
