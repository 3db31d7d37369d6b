"""The last line of a job's script: act on the exit code of srun.

    python -m launch.on_exit RUN STAGE CODE RETRIES

A job that failed is requeued, at most RETRIES times without a newer checkpoint in between. Only a
checkpoint that this job saved counts as its progress: another job may train the same run.
"""

import signal
import sys
from pathlib import Path
from typing import Any

from common.command_line import EXIT_FAILED
from launch.cluster import slurm_commands
from launch.record.events import last_step, note_in_job, own_step, read_events
from launch.requeue import Action, decide, request_requeue
from train.ranks.slurm_job import job_id


def main(argv: list[str]) -> int:
    """Note how the job ended, have it requeued where it should be; returns its exit code."""
    run, stage, code, retries = Path(argv[0]), argv[1], int(argv[2]), int(argv[3])
    saved = own_step(run, job_id())
    failures = failures_without_progress(run, stage, saved)
    decision = decide(
        slurm_commands.show_job(job_id()) if code else {},
        code,
        has_ended=has_ended(run, stage),
        failures=failures,
        retries=retries,
    )
    step, reason = last_step(run), decision.reason or failure_reason(run, stage, code)
    # Each event is noted first: once requeued, this process may be killed
    match decision.action:
        case Action.FINISH:
            note_in_job(run, "finished", stage)
        case Action.GIVE_UP:
            note_in_job(run, "gave up", stage, step=step, reason=reason)
        case Action.REQUEUE:
            note_in_job(run, "requeued", stage, step=step, reason=reason)
            request_requeue(run, stage)
        case Action.RETRY:
            note_in_job(run, "failed", stage, step=step, saved=saved, reason=reason)
            print(f"failed ({reason}); asks for retry {failures + 1} of {retries}", flush=True)
            request_requeue(run, stage)
    return code


def events_since_start(run: Path, stage: str) -> list[dict[str, Any]]:
    """Return this job's events since it last started."""
    mine = [
        event
        for event in read_events(run)
        if event["stage"] == stage and event.get("job") == job_id()
    ]
    starts = [index for index, event in enumerate(mine) if event["event"] == "started"]
    return mine[starts[-1] :] if starts else []


def has_ended(run: Path, stage: str) -> bool:
    """Return whether a task has seen that the job is to end (Ctrl-C, scancel)."""
    return any(event["event"] == "stopped" for event in events_since_start(run, stage))


def failures_without_progress(run: Path, stage: str, saved: int) -> int:
    """Count this job's failures since it saved its newest checkpoint, the one of step `saved`."""
    failed = [
        event.get("saved", 0)
        for event in read_events(run)
        if event["event"] == "failed" and event["stage"] == stage and event.get("job") == job_id()
    ]
    return sum(step >= saved for step in failed)


def failure_reason(run: Path, stage: str, code: int) -> str:
    """Return the error that a rank noted, or the signal that killed it."""
    for event in events_since_start(run, stage):
        if event["event"] == "error":  # the first: the other ranks only miss the one that failed
            return f"rank {event.get('rank', '?')}: {event.get('reason', '')}"
    if code - 128 in list(signal.Signals):
        return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}" if code != EXIT_FAILED else "failed; see the log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
