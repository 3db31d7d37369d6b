"""Put preparation, training and evaluation on a Slurm cluster, each job after the one before.

    python launch/submit.py --nodes 2 raw=DIR run=DIR [preset=unet epochs=20 copies=16 ...]
    python launch/submit.py --dry-run ...          print the sbatch scripts, queue nothing
    python launch/submit.py --cluster local ...    the same stages on this machine, without Slurm

key=value settings go to every stage that knows the key (`python -m data_prep --help`, `python -m
train --help`); prepare.KEY, train.KEY and evaluate.KEY go to one. The settings of the cluster are a
profile in slurm/, overridden by flags.
"""

import argparse
import contextlib
import dataclasses
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

import command_line
from command_line import UsageError
from launch import slurm_commands
from launch.events import LAUNCH, note
from launch.job import STAGES
from launch.profiles import Profile, load_profile
from launch.queueing import plan, queue, record, script, take_snapshot, with_kept_config
from train.preemption import StopRequest

# Settings of a profile that are flags too; the others only make sense in a file
FLAGS = tuple(
    field.name
    for field in dataclasses.fields(Profile)
    if field.name not in ("setup", "environment", "srun_args")
)
# By itself torchrun dies of SIGUSR2, leaving its ranks behind, and kills them 30 s after another
TORCHRUN_WAITS = (
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
    "--shutdown-timeout=3600",  # in s
)


def main(argv: list[str]) -> int:
    """Check everything, then queue (or print, or run) the chain."""
    options = parse(argv)
    given = dict(command_line.split_argument(setting) for setting in options.settings)
    stages = choose_stages(options.stages, given)
    run = Path(given.pop("run", "") or f"runs/{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    if options.cluster == "slurm" and not options.dry_run and not slurm_commands.is_here():
        raise UsageError(
            "no Slurm on this machine (no sbatch): --dry-run prints what would be queued,"
            " --cluster local runs it here"
        )
    flags = {key: getattr(options, key) for key in FLAGS if getattr(options, key) is not None}
    profile = load_profile(options.profile, flags)
    arguments = stage_arguments(stages, given, run, profile)
    check(arguments, profile)
    if options.cluster == "local":
        commands = local_commands(arguments, profile)
        if options.dry_run:
            print("\n".join(shlex.join(command) for command in commands.values()))
            return 0
        return run_here(run, argv, commands, profile)
    # A snapshot each submission: jobs of an earlier one may still be running on theirs
    code = run / LAUNCH / f"code-{time.strftime('%Y%m%d-%H%M%S')}"
    arguments = with_kept_config(arguments, code)
    jobs = plan(run, code, arguments, profile)
    if options.dry_run:
        for job, before in zip(jobs, [None, *jobs], strict=False):
            print(script(run, job, f"<id of {before.label}>" if before else ""))
        return 0
    take_snapshot(code, given.get("config") or given.get("train.config"))
    ids = queue(run, jobs)
    record(run, argv, profile, ids)
    report(run, ids)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags, and the key=value settings after them."""
    parser = argparse.ArgumentParser(
        prog="python launch/submit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="default", help="slurm/NAME.yaml (default)")
    parser.add_argument("--stages", default="", help=f"of {','.join(STAGES)}; all that apply")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the sbatch scripts, or with --cluster local the commands, and run nothing",
    )
    docs = command_line.field_docs(Profile)
    for key in FLAGS:
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="X", help=docs[key])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def choose_stages(named: str, given: dict[str, str]) -> list[str]:
    """The stages to run, in their order; without names, preparation only where raw= is given."""
    if not named:
        return [stage for stage in STAGES if stage != "prepare" or "raw" in given]
    names = named.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise UsageError(f"--stages {named}: unknown {', '.join(unknown)}; {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in names]


# Settings of the stages


def stage_arguments(
    stages: list[str], given: dict[str, str], run: Path, profile: Profile
) -> dict[str, list[str]]:
    """Stage -> its key=value arguments. Raises UsageError for a key that no stage takes."""
    given = {key: absolute(key, value) for key, value in given.items()}
    data = str(Path(given.pop("data", "") or run / "prepared").resolve())
    fixed = {
        "prepare": {"out": data, "workers": str(profile.cpus_per_task)},
        "train": {"data": data, "run": str(run)},
        "evaluate": {"run": str(run)},
    }
    if raw := given.pop("raw", ""):
        fixed["prepare"]["raw"] = str(Path(raw).resolve())
    known = {stage: stage_keys(stage) for stage in STAGES}
    for key, value in given.items():
        stage, _, rest = key.partition(".")
        takers = [name for name in STAGES if key in known[name] - {"raw", "data", "out"}]
        if stage in STAGES and rest in known[stage]:
            fixed[stage][rest] = value
        elif takers:
            for name in takers:
                fixed[name][key] = value
        else:
            raise UsageError(
                f"{key}={value}: no stage knows '{key}'; see --help of data_prep, train and"
                " train.evaluate, or this command's flags"
            )
    return {stage: [f"{key}={value}" for key, value in fixed[stage].items()] for stage in stages}


def absolute(key: str, value: str) -> str:
    """A value; where it is a path, from the root, for jobs run in another folder."""
    is_path = key.rpartition(".")[2] in ("raw", "data", "out", "config")
    return str(Path(value).resolve()) if is_path and value else value


def stage_keys(stage: str) -> set[str]:
    """Every key of a stage."""
    return {key for key, *_ in command_line.describe_fields(stage_config(stage))}


def stage_config(stage: str) -> type:
    """The configuration of a stage; imported late, for torch comes with it."""
    if stage == "prepare":
        from data_prep.config import PrepConfig

        return PrepConfig
    if stage == "train":
        from train.config import TrainConfig

        return TrainConfig
    from train.evaluation import EvaluateConfig

    return EvaluateConfig


def check(arguments: dict[str, list[str]], profile: Profile) -> None:
    """Refuse what a stage would refuse, before anything is queued."""
    from train.config import PRESETS, check_world_size

    for stage, given in arguments.items():
        presets = PRESETS if stage == "train" else None
        try:
            config: Any = command_line.load(stage_config(stage), given, preset_folder=presets)
        except UsageError as error:
            raise UsageError(f"{stage}: {error}") from None
        if stage == "prepare" and not Path(config.raw).is_dir():
            raise UsageError(f"prepare: raw={config.raw}: no such folder")
        if stage == "train":
            check_world_size(config, profile.nodes * profile.tasks_per_node)
        if stage == "train" and "prepare" not in arguments:
            needed = Path(config.data) / "dataset.json"
            if not needed.is_file():
                raise UsageError(f"train: data={config.data}: no prepared data set; give raw= too")


def report(run: Path, ids: dict[str, str]) -> None:
    """Job ids, the run folder, and what a user wants next."""
    print("queued " + ", ".join(f"{label} {job}" for label, job in ids.items()))
    print(f"run    {run}")
    print(f"next   python launch/jobs.py status {run}")
    print(f"       python launch/jobs.py logs -f {run}")
    print(f"       tensorboard --logdir {run}")


# Without Slurm


def local_commands(arguments: dict[str, list[str]], profile: Profile) -> dict[str, list[str]]:
    """Stage -> its command on this machine, ranks under torchrun."""
    ranks = profile.nodes * profile.tasks_per_node
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    torchrun += [*TORCHRUN_WAITS, "-m"]
    programs = {
        "prepare": ["data_prep"],
        "train": [*(torchrun if ranks > 1 else []), "train"],
        "evaluate": ["train.evaluate"],
    }
    return {
        stage: [sys.executable, "-m", *programs[stage], *given]
        for stage, given in arguments.items()
    }


def run_here(
    run: Path, argv: Sequence[str], commands: dict[str, list[str]], profile: Profile
) -> int:
    """The same chain on this machine: stages one after the other, up to a signal to stop."""
    (run / LAUNCH).mkdir(parents=True, exist_ok=True)
    record(run, argv, profile, {})
    relay = Relay()
    with relay:
        for stage, command in commands.items():
            if relay.signum:
                print(f"stopped before {stage}; the same command goes on", file=sys.stderr)
                return command_line.EXIT_STOPPED
            print(f"{stage}: {shlex.join(command)}", flush=True)
            note(run, "started", stage, job="local")
            code = relay.run(command)
            note(run, "finished" if code == 0 else "gave up", stage, job="local", code=code)
            if code:
                print(
                    f"error: {stage} ended with code {code}; the same command goes on",
                    file=sys.stderr,
                )
                return code
    print(f"run    {run}")
    print(f"next   tensorboard --logdir {run}")
    return 0


class Relay(StopRequest):
    """While this context lasts, a signal that stops a run goes to the program that runs here."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting: deque[int] = deque()
        """Signals that are not passed on yet."""

    def run(self, command: list[str]) -> int:
        """Run a program to its end, however long it takes to save after a signal; its exit code.

        In a session of its own, so that Ctrl-C reaches it once, through us.
        """
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        self.pass_on()  # what came while the program was started
        code = self.process.wait()
        self.process = None
        return code

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.adopt(signum)
        self.waiting.append(signum)
        self.pass_on()

    def pass_on(self) -> None:
        """Send each signal once: the handler may come in between."""
        with contextlib.suppress(IndexError):  # none is left
            while self.process:
                self.process.send_signal(self.waiting.popleft())


if __name__ == "__main__":
    command_line.run(main)
