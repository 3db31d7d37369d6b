"""What the ranks of a job leave for the last line of its script: how the stage ended, and why.

RUN/launch/outcomes/<job id>.<restart>    key=value lines, from one start of the job
RUN/launch/outcomes/<job id>.requeues     what launch/on_exit.sh counts

launch/on_exit.sh reads it on the job's host, where there may be no Python.
"""

import contextlib
import os
from enum import StrEnum
from pathlib import Path

from common.command_line import escaped
from common.files import new_temporary
from train.ranks.slurm_job import job_id, restart_count

MOST_CHARACTERS = 300  # of a reason


class Verdict(StrEnum):
    """How a stage ended, if not with success."""

    STOPPED = "stopped"
    """A signal stopped it, and its state is saved."""
    FAILED = "failed"
    REFUSED = "refused"
    """It failed with what time cannot heal: a retry would fail too."""


def leave_outcome(run: Path, verdict: Verdict, signum: int, reason: str = "") -> None:
    """Leave the outcome of this start, unless another rank was first: after the first error the
    other ranks only miss the one that failed.

    `signum`: the first signal that came, 0 for none. Leaves nothing where nothing can be written;
    the exit code must do then.
    """
    about = {
        "rank": os.environ.get("SLURM_PROCID", "0"),
        "verdict": verdict.value,
        "signal": signum,
        "reason": escaped(first_line(reason))[:MOST_CHARACTERS],
    }
    content = "".join(f"{key}={value}\n" for key, value in about.items())
    path = run / "launch" / "outcomes" / f"{job_id()}.{restart_count()}"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_temporary(path.parent)
        try:
            temporary.write_bytes(content.encode("utf-8", "replace"))
            path.hardlink_to(temporary)  # not rename, which would replace that of a faster rank
        finally:
            temporary.unlink(missing_ok=True)


def first_line(text: str) -> str:
    """Return the first line of a message."""
    return next(iter(text.strip().splitlines()), "")
