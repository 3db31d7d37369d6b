"""Check whether Eosin can run on this machine, or on this cluster.

    python launch/doctor.py [--profile NAME] [--shared FOLDER] [--save-s 60]

It prints one line per question: fine, doubtful with the reason, or fatal with what to change. The
exit code is 1 where anything is fatal. Without Slurm it describes this machine.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile, load_profile

FINE, DOUBTFUL, FATAL = "fine", "doubtful", "FATAL"
SHM_NEEDED_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    verdict: str
    question: str
    answer: str


def main(argv: list[str]) -> int:
    """Print every finding; returns 1 where one is fatal."""
    parser = argparse.ArgumentParser(
        prog="python launch/doctor.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--profile", default="default", help="settings of the cluster, slurm/NAME.yaml (default)"
    )
    parser.add_argument("--shared", type=Path, default=Path("."), help="folder for runs (.)")
    parser.add_argument(
        "--save-s",
        type=float,
        default=10.0,
        help="seconds that a step and a save take (10)",
    )
    options = parser.parse_args(argv)
    profile = load_profile(options.profile, {})
    findings = [*about_machine(profile), *about_folder(options.shared)]
    findings += about_slurm(profile, options.save_s, options.shared)
    for finding in findings:
        print(f"{finding.verdict:9} {finding.question}: {finding.answer}")
    return int(any(finding.verdict == FATAL for finding in findings))


def about_machine(profile: Profile) -> Iterator[Finding]:
    """Look at processor, memory, shared memory and GPUs of this machine."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding(FINE, "this machine", f"{cores} cores, {memory_gb:.0f} GB of memory")
    free_gb = shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").is_dir() else 0.0
    if free_gb >= SHM_NEEDED_GB:
        yield Finding(FINE, "/dev/shm", f"{free_gb:.1f} GB free")
    else:
        advice = "loader workers need it to pass images on; enlarge it, or use loader_workers=0"
        yield Finding(DOUBTFUL, "/dev/shm", f"{free_gb:.1f} GB free: {advice}")
    yield about_gpus(profile)


def about_gpus(profile: Profile) -> Finding:
    """Look for CUDA and NCCL."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
        nccl = torch.distributed.is_nccl_available()
        answer = f"{names}; torch {torch.__version__}, {'with' if nccl else 'without'} NCCL"
        return Finding(FINE if nccl else FATAL, "GPUs", answer)
    if profile.gpus and torch.version.cuda is None:
        answer = f"torch {torch.__version__} was built without CUDA: ranks will compute on CPUs"
        return Finding(DOUBTFUL, "GPUs", answer)
    return Finding(FINE, "GPUs", "none on this machine")


def about_folder(folder: Path) -> Iterator[Finding]:
    """Check that runs can be written into a folder."""
    question = f"folder {folder.resolve()}"
    if not folder.is_dir():
        yield Finding(FATAL, question, "does not exist; name one with --shared")
    elif not os.access(folder, os.W_OK):
        yield Finding(FATAL, question, "is not writable; name another with --shared")
    else:
        free_gb = shutil.disk_usage(folder).free / 1e9
        verdict = FINE if free_gb > 5 else DOUBTFUL
        yield Finding(verdict, question, f"is writable, {free_gb:.0f} GB free")


def about_slurm(profile: Profile, save_s: float, shared: Path) -> Iterator[Finding]:
    """Check what decides whether a preempted run comes back."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "squeue") if not shutil.which(name)]
    if missing:
        answer = f"{', '.join(missing)} not found: use torchrun, or submit.py --cluster local"
        yield Finding(DOUBTFUL, "Slurm", answer)
        return
    settings = slurm_commands.show_config()
    if not settings:
        yield Finding(
            FATAL,
            "Slurm",
            "installed, but no controller answers: try scontrol ping",
        )
        return
    yield Finding(FINE, "Slurm", f"{settings.get('SLURM_VERSION', '?')} answers")
    yield about_requeue(settings)
    yield from about_partition(profile, settings, save_s)
    yield from about_node(profile, shared)


def about_requeue(settings: dict[str, str]) -> Finding:
    """Look at JobRequeue."""
    if settings.get("JobRequeue", "1").strip() == "1":
        return Finding(FINE, "JobRequeue", "1: Slurm may requeue jobs")
    answer = "0: Slurm requeues only jobs with --requeue, which submit.py asks for"
    return Finding(DOUBTFUL, "JobRequeue", answer)


def about_partition(profile: Profile, settings: dict[str, str], save_s: float) -> Iterator[Finding]:
    """Check the partition, what preemption does there, and whether the grace is long enough."""
    name = profile.partition or default_partition()
    partition = slurm_commands.show_partition(name) if name else {}
    if not partition:
        known = ", ".join(partition_names())
        answer = f"not on this cluster, which has {known}: set partition in slurm/*.yaml"
        yield Finding(FATAL, f"partition {name or '(default)'}", answer)
        return
    yield Finding(FINE, f"partition {name}", f"{partition.get('Nodes', '?')}")
    mode = partition.get("PreemptMode", settings.get("PreemptMode", "OFF").strip())
    if mode == "CANCEL":
        answer = "CANCEL: Slurm does not requeue a preempted job; rank 0 asks for it in time"
        yield Finding(DOUBTFUL, "PreemptMode", answer)
    else:
        yield Finding(FINE, "PreemptMode", mode)
    grace_s = int(partition.get("GraceTime", "0"))
    user_signal = "send_user_signal" in settings.get("PreemptParameters", "")
    signals = "SIGTERM" + (" and the user signal" if user_signal else "")
    if mode == "OFF" or grace_s >= save_s:
        answer = f"{grace_s} s after {signals}; one step and one save take {save_s:g} s"
        yield Finding(FINE, "GraceTime", answer)
    else:
        answer = (
            f"{grace_s} s after {signals}, but one step and one save take {save_s:g} s: preemption"
            " costs the steps since the last checkpoint; lower save_every_s"
        )
        yield Finding(DOUBTFUL, "GraceTime", answer)
    yield about_lead(profile, save_s)


def about_lead(profile: Profile, save_s: float) -> Finding:
    """Check how long before the time limit the signal comes."""
    answer = f"{profile.signal_lead_s} s before the limit (Slurm may be a minute early)"
    if profile.signal_lead_s >= 2 * save_s:
        return Finding(FINE, "signal_lead_s", answer)
    return Finding(DOUBTFUL, "signal_lead_s", f"{answer}: less than two saves; raise it")


def default_partition() -> str:
    """Return the partition of jobs that name none; '' where Slurm has no default."""
    code, text = slurm_commands.ask("sinfo", "--noheader", "--format=%P")
    marked = [name.rstrip("*") for name in text.split() if name.endswith("*")]
    return marked[0] if code == 0 and marked else ""


def partition_names() -> list[str]:
    """Return all partitions of the cluster."""
    code, text = slurm_commands.ask("sinfo", "--noheader", "--format=%R")
    return sorted(set(text.split())) if code == 0 else []


def about_node(profile: Profile, shared: Path) -> Iterator[Finding]:
    """Run a job of one second, if it can start at once, to look at a node."""
    where = [f"--partition={profile.partition}"] if profile.partition else []
    where += ["--immediate=15", "--nodes=1", "--ntasks=1"]
    looks = (
        f"test -r {shlex.quote(str(ROOT / 'common/command_line.py'))} && echo project;"
        f" test -w {shlex.quote(str(shared.resolve()))} && echo shared;"
        " echo shm $(df -Pk /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f4); echo cpus $(nproc)"
    )
    cpus = f"--cpus-per-task={profile.cpus_per_task}"
    code, text = slurm_commands.ask("srun", *where, cpus, "sh", "-c", looks)
    if code:
        reason = text.splitlines()[-1] if text else "no answer"
        yield Finding(DOUBTFUL, "a node", f"not tried, no job can start at once: {reason}")
        return
    for name, folder in (("project", ROOT), ("shared", shared.resolve())):
        if name in text.split():
            yield Finding(FINE, f"a node sees {folder}", "yes")
        else:
            answer = "no: put project and runs on a file system that all nodes share"
            yield Finding(FATAL, f"a node sees {folder}", answer)
    facts = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    shm_gb = int(facts.get("shm", 0)) * 1024 / 1e9
    verdict = FINE if shm_gb >= SHM_NEEDED_GB else DOUBTFUL
    yield Finding(verdict, "/dev/shm of a node", f"{shm_gb:.1f} GB free")
    cores = int(facts.get("cpus", 0))
    verdict = FINE if cores >= profile.cpus_per_task else DOUBTFUL
    answer = f"the profile asks for {profile.cpus_per_task}, and a task may use {cores}"
    yield Finding(verdict, "cpus per task", answer)


if __name__ == "__main__":
    command_line.run(main)
