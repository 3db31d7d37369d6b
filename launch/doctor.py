"""Check whether Eosin can run on this machine, or on this cluster.

    python launch/doctor.py [--profile NAME] [--shared FOLDER] [--save-s 60]
    python launch/doctor.py --write-profile [NAME]      writes slurm/NAME.yaml (mine)

It prints one line per question: fine, doubtful with the reason, or FATAL with what to change. The
exit code is 1 where anything is fatal. On a cluster it also runs a job of seconds, if that can
start at once, to look at the nodes. Without Slurm it describes this machine.

--write-profile looks at the cluster's partitions and nodes, and writes a profile that suits them,
with the reason for each value. It never replaces a file.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

from common import command_line
from common.command_line import UsageError, UserError
from launch.cluster import facts, limits, profiles, slurm_commands
from launch.cluster.findings import (
    DOUBTFUL,
    FATAL,
    FINE,
    ON_CPUS,
    Finding,
    about_cluster,
    about_nodes,
    about_shm,
)
from launch.cluster.profiles import MINE, Profile
from launch.cluster.suggestion import PROFILE_HELP, best, choose_profile
from launch.cluster_checks import refusal_of
from launch.command_lines import PROGRAM, CommandLine
from launch.job_requests import plan
from launch.record.events import STAGES


def main(argv: list[str]) -> int:
    """Print every finding; returns 1 where one is fatal."""
    options = parse(argv)
    if options.write_profile:
        return write_profile(options.write_profile)
    profile, told = choose_profile(options.profile, {}, STAGES, on_slurm=True)
    findings = [Finding(FINE, "profile", told)] if told else []
    findings += [*about_machine(profile), *about_folder(options.shared)]
    is_fatal = False
    for finding in chain(findings, about_slurm(profile, options)):
        print(f"{finding.verdict:9} {finding.question}: {finding.answer}", flush=True)
        is_fatal |= finding.verdict == FATAL
    return int(is_fatal)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(
        prog="python launch/doctor.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="", help=PROFILE_HELP)
    parser.add_argument("--shared", type=Path, default=Path("."), help="folder for runs (.)")
    parser.add_argument(
        "--save-s", type=float, default=10.0, help="seconds that a step and a save take (10)"
    )
    parser.add_argument(
        "--write-profile",
        nargs="?",
        const=MINE,
        metavar="NAME",
        help="write slurm/NAME.yaml (mine) for this cluster, and check nothing",
    )
    return parser.parse_args(argv)


def write_profile(name: str) -> int:
    """Write slurm/NAME.yaml for this cluster, and print the commands that come next.

    Raises UsageError where a file has that name, UserError where there is nothing to write.
    """
    folder = profiles.PROFILES
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--write-profile {name}: not a plain name; leave it out for {MINE}")
    if path.exists():
        number = next(k for k in range(2, 1000) if not (folder / f"{name}-{k}.yaml").exists())
        raise UsageError(
            f"--write-profile {name}: slurm/{name}.yaml is there, and stays as it is; accepted is"
            f"\n  python launch/doctor.py --write-profile {name}-{number}"
        )
    if not slurm_commands.is_here() or not (settings := slurm_commands.show_config()):
        raise UserError(
            "--write-profile: no Slurm answers on this machine; log in where sbatch works, or copy"
            " slurm/template.yaml"
        )
    if (found := best(STAGES)) is None:
        raise UserError(
            "--write-profile: no partition is up, with nodes, and with time for a job;"
            " `scontrol show partition` lists them; copy slurm/template.yaml"
        )
    with path.open("x") as file:
        file.write(found.as_yaml(settings.get("ClusterName", "").strip()))
    print(f"wrote {path}")
    print(path.read_text(), end="")
    given = "" if name == MINE else f" --profile {name}"
    print(f"next  python launch/doctor.py{given}              can it work there?")
    print(f"      {PROGRAM}{given} --nodes 2    prepare, train and evaluate")
    return 0


def about_machine(profile: Profile) -> Iterator[Finding]:
    """Look at processor, memory, shared memory and GPUs of this machine."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding(FINE, "this machine", f"{cores} cores, {memory_gb:.0f} GB of memory")
    shm = Path("/dev/shm")
    yield about_shm(str(shm), shutil.disk_usage(shm).free if shm.is_dir() else 0)
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
        answer = f"torch {torch.__version__} was built without CUDA: {ON_CPUS}"
        return Finding(DOUBTFUL, "GPUs", answer)
    return Finding(FINE, "GPUs", "none on this machine")


def about_folder(folder: Path) -> Iterator[Finding]:
    """Check that runs can be written into a folder."""
    question = f"folder {folder.resolve()}"
    if not folder.is_dir():
        yield Finding(FATAL, question, "does not exist; name one with --shared")
        return
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        answer = f"is not writable ({error.strerror}); name another with --shared"
        yield Finding(FATAL, question, answer)
    else:
        free_gb = shutil.disk_usage(folder).free / 1e9
        verdict = FINE if free_gb > 5 else DOUBTFUL
        yield Finding(verdict, question, f"is writable, {free_gb:.0f} GB free")


def about_slurm(profile: Profile, options: argparse.Namespace) -> Iterator[Finding]:
    """Check the cluster, then what it says of the profile's jobs, then its nodes."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "squeue") if not shutil.which(name)]
    if missing:
        answer = f"{', '.join(missing)} not found: use torchrun, or submit.py --cluster local"
        yield Finding(DOUBTFUL, "Slurm", answer)
        return
    cluster = facts.look()
    if not cluster.settings:
        answer = "installed, but no controller answers: try scontrol ping"
        yield Finding(FATAL, "Slurm", answer)
        return
    shared = options.shared.resolve()
    yield from about_cluster(profile, cluster, options.save_s)
    found = list(about_jobs(profile, options.profile, shared, cluster))
    yield from found
    if not any(finding.verdict == FATAL for finding in found):
        yield from about_nodes(profile, cluster, ROOT, shared)


def about_jobs(
    profile: Profile, name: str, shared: Path, cluster: facts.Cluster
) -> Iterator[Finding]:
    """Say why jobs could not start, and which command line submits those that could."""
    waiting = limits.problems(profile, STAGES, cluster)
    way_out = ""
    if changes := limits.accepted(profile, STAGES, cluster):
        named = {"profile": name} if name else {}
        way_out = f"; change the profile, or use {CommandLine().with_flags(named | changes)}"
    for problem in waiting:
        verdict, more = (FATAL, way_out) if problem.is_fatal else (DOUBTFUL, "")
        question, _, answer = problem.text.partition(": ")
        yield Finding(verdict, question, answer + more)
    if limits.fatal(waiting):
        return
    try:
        jobs = plan(shared / "run", ROOT, {stage: [] for stage in STAGES}, profile)
    except UsageError as error:  # an image that cannot be used
        yield Finding(FATAL, "jobs", str(error))
        return
    if refused := refusal_of(shared / "run", jobs, waiting):
        yield Finding(FATAL, "jobs", refused)
    else:
        yield Finding(FINE, "jobs", "Slurm takes those of all stages")


if __name__ == "__main__":
    command_line.run(main)
