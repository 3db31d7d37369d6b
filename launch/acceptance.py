"""Whether Slurm would start the jobs of a chain, before they are queued."""

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.cluster import facts, limits, slurm_commands
from launch.cluster.limits import Problem
from launch.cluster.profiles import Profile
from launch.job_requests import Job, script

# Refusals of a moment: sbatch itself may accept the job, and lets it wait
PASSING = re.compile(r"busy|not available now|timed out|contact slurm|temporar", re.IGNORECASE)
NO_NODE = "node configuration is not available"


def problems(run: Path, jobs: Sequence[Job], profile: Profile) -> list[Problem]:
    """Return why the jobs would not start: by what the cluster has, then by Slurm's own word.

    Slurm is asked with `sbatch --test-only`, which knows accounts, groups and qualities of service.
    """
    cluster = facts.look()
    found = limits.problems(profile, stages_of(jobs), cluster)
    if limits.fatal(found) or not cluster.partitions:
        return found
    for job in jobs:
        reason = refusal(run, job)
        # Nodes that are down for a moment look to --test-only as if they were not there
        if reason and not PASSING.search(reason) and not (found and NO_NODE in reason):
            return [*found, Problem(job.label, f"{job.label}: Slurm refuses the job: {reason}")]
    return found


def refusal(run: Path, job: Job) -> str:
    """Return what `sbatch --test-only` has against a job; '' for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script(run, job, "").partition("\n")[2])
        code, text = slurm_commands.ask("sbatch", "--test-only", str(path))
    return slurm_commands.reason(text) if code else ""


def accepted_command(argv: Sequence[str], jobs: Sequence[Job], profile: Profile) -> str:
    """Return the command line with which all jobs could start; '' where nobody can tell."""
    changes = limits.accepted(profile, stages_of(jobs), facts.look())
    if not changes:
        return ""
    return shlex.join(["python", "launch/submit.py", *with_flags(argv, changes)])


def stages_of(jobs: Sequence[Job]) -> list[str]:
    """Return the stages of the jobs."""
    return list(dict.fromkeys(job.stage for job in jobs))


def with_flags(argv: Sequence[str], changes: dict[str, Any]) -> list[str]:
    """Return the words of a command line with these keys as flags, in place of those before."""
    flags = {f"--{key.replace('_', '-')}": str(value) for key, value in changes.items()}
    left, words = [], iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        # argparse takes the beginning of a flag for the flag
        if not (len(name) > 2 and any(flag.startswith(name) for flag in flags)):
            left.append(word)
        elif not equals:
            next(words, None)
    return [*(word for pair in flags.items() for word in pair), *left]
