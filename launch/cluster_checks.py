"""Whether Slurm would start the jobs of a chain: refused before any of them is queued."""

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UsageError
from launch import command_lines
from launch.cluster import facts, limits, slurm_commands
from launch.cluster.facts import Cluster
from launch.cluster.limits import Problem
from launch.cluster.profiles import Profile
from launch.job_requests import Job, script
from launch.layouts import resolve_ranks
from launch.stages import Request

# Refusals of a moment: sbatch itself may accept the job, and lets it wait
PASSING = re.compile(
    r"busy|not available now|in DOWN state|timed out|contact slurm|temporar", re.IGNORECASE
)
NO_NODE = "node configuration is not available"
WHAT_IS_THERE = "`sinfo -o '%P %a %l %D %c %m %G %f'` shows what this cluster has"


def check_cluster(
    stages: Sequence[str], request: Request, profile: Profile, argv: Sequence[str]
) -> list[Problem]:
    """Refuse what no node of the partition could ever hold, and what its limits forbid.

    Returns what keeps the jobs waiting at the moment. Raises UsageError that shows a whole command
    which is accepted, if there is one.
    """
    cluster = facts.look()
    found = limits.problems(profile, stages, cluster)
    if not (wrong := limits.fatal(found)):
        return found
    texts = "; ".join(problem.text for problem in wrong)
    way_out = accepted_command(stages, request, profile, argv, cluster) or WHAT_IS_THERE
    raise UsageError(f"{texts}; nothing was queued; {way_out}")


def accepted_command(
    stages: Sequence[str],
    request: Request,
    profile: Profile,
    argv: Sequence[str],
    cluster: Cluster,
) -> str:
    """Return words with the command line whose jobs could start; '' where nobody can tell."""
    changes = limits.accepted(profile, stages, cluster)
    if changes is None:
        return ""
    command = command_lines.parse(argv).with_flags(changes)
    if "train" in stages:  # fewer nodes may not divide the batch
        try:
            resolve_ranks(request, dataclasses.replace(profile, **changes), command.words)
        except UsageError as error:
            given = ", ".join(f"{key}={value}" for key, value in changes.items())
            return f"with {given}, {error}"
    return f"accepted is\n  {command}"


def check_with_slurm(run: Path, jobs: Sequence[Job], waiting: Sequence[Problem]) -> None:
    """Raise UsageError with the first refusal of Slurm's, which queues nothing."""
    if refused := refusal_of(run, jobs, waiting):
        raise UsageError(f"{refused}; nothing was queued; {WHAT_IS_THERE}")


def refusal_of(run: Path, jobs: Sequence[Job], waiting: Sequence[Problem]) -> str:
    """Return the first of Slurm's own refusals, '' for none.

    It knows accounts, groups and qualities of service. `waiting`: for what the jobs would wait.
    """
    is_away = any(problem.is_away for problem in waiting)
    for job in jobs:
        reason = refusal(run, job)
        # Nodes that are down for a moment look to --test-only as if they were not there
        is_passing = PASSING.search(reason) or (is_away and NO_NODE in reason)
        if reason and not is_passing:
            return f"{job.label}: Slurm refuses the job: {reason}"
    return ""


def refusal(run: Path, job: Job) -> str:
    """Return what `sbatch --test-only` has against a job; '' for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script(run, job, ""))
        code, text = slurm_commands.ask("sbatch", "--test-only", str(path))
    return slurm_commands.reason(text) if code else ""
