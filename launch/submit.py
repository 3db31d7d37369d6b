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
import functools
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Run as a script, Python looks into launch/ first, where our modules would hide others
    sys.path[0] = str(ROOT)

import command_line
from command_line import UsageError, UserError
from launch import slurm_commands
from launch.events import JOBS, LAUNCH, SUBMISSION, note, read_submission
from launch.job import STAGES, Stage
from launch.profiles import Profile, load_profile
from train.preemption import StopRequest

KEPT_CONFIG = "config.yaml"
PACKAGES = (
    "command_line.py",
    "json_lines.py",
    "lease.py",
    "memory.py",
    "seeds.py",
    "data_prep",
    "model",
    "train",
    "launch",
)
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


@dataclass(frozen=True)
class Job:
    """A job to queue: a stage, once or (an array) with each of several lists of arguments."""

    stage: str
    label: str
    arguments: list[list[str]]
    parameters: dict[str, Any]
    """What submitit is told of it."""


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


# Jobs


def plan(run: Path, code: Path, arguments: dict[str, list[str]], profile: Profile) -> list[Job]:
    """The jobs of the chain, in order, running the snapshot in `code`."""
    jobs = []
    common = functools.partial(parameters, run, code, profile)
    for stage, given in arguments.items():
        if stage == "prepare":
            shares = [f"share={k}/{profile.prep_jobs}" for k in range(1, profile.prep_jobs + 1)]
            one_task = common("prepare", nodes=1, tasks=1, gpus=0)
            if profile.prep_jobs > 1:
                jobs.append(Job(stage, "prepare", [[*given, share] for share in shares], one_task))
            joining = one_task | {"job_name": "eosin-join"} if profile.prep_jobs > 1 else one_task
            jobs.append(Job(stage, "join" if profile.prep_jobs > 1 else stage, [given], joining))
        elif stage == "train":
            tasks, gpus = profile.tasks_per_node, profile.gpus_per_node
            asked = common(stage, profile.nodes, tasks, gpus)
            jobs.append(Job(stage, stage, [given], asked))
        else:
            asked = common(stage, 1, 1, min(1, profile.gpus_per_node))
            jobs.append(Job(stage, stage, [given], asked))
    return jobs


def parameters(
    run: Path, code: Path, profile: Profile, stage: str, nodes: int, tasks: int, gpus: int
) -> dict[str, Any]:
    """What submitit is told of a job."""
    python = shlex.quote(sys.executable)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | profile.environment
    asked = {
        "job_name": f"eosin-{stage}",
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": profile.cpus_per_task,
        "time": profile.time_min,
        "signal_delay_s": profile.signal_lead_s,
        "stderr_to_stdout": True,
        "setup": [
            *profile.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
            f"export PYTHONPATH={shlex.quote(str(code))}",
            f"cd {shlex.quote(str(code))}",
        ],
        # srun has not taken --cpus-per-task over from sbatch since Slurm 22.05; -K: when a rank
        # dies the others have nobody to talk to
        "srun_args": [
            f"--cpus-per-task={profile.cpus_per_task}",
            "--kill-on-bad-exit=1",
            *profile.srun_args,
        ],
        "teardown": [
            f"{python} -m launch.ended {shlex.quote(str(run))} {stage} $? {profile.retries}"
        ],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
    }
    if gpus:
        asked["gpus_per_node"] = gpus
    if profile.mem_gb:
        asked["mem"] = f"{int(profile.mem_gb * 1024)}MB"
    named = ("partition", "account", "qos", "constraint")
    return asked | {key: getattr(profile, key) for key in named if getattr(profile, key)}


def after(job: str) -> dict[str, str]:
    """What makes a job wait for another's success."""
    return {"dependency": f"afterok:{job}"} if job else {}


def script(run: Path, job: Job, before: str) -> str:
    """The sbatch script of a job, as submitit writes it; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = run / LAUNCH / JOBS / "%j"
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {folder}"
    array = {"map_count": len(job.arguments)} if len(job.arguments) > 1 else {}
    text = _make_sbatch_string(
        command=command, folder=folder, **job.parameters, **array, **after(before)
    )
    called = "\n".join(f"#   {job.stage} {' '.join(given)}" for given in job.arguments)
    return f"##### {job.label}\n{text}\n# The stage in each task (or array task):\n{called}\n"


def queue(run: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Queue the jobs, each after the one before; label -> job id."""
    from submitit.core.utils import FailedJobError

    ids: dict[str, str] = {}
    for job in jobs:
        try:
            ids[job.label] = queue_one(run, job, list(ids.values())[-1] if ids else "")
        except (FailedJobError, KeyboardInterrupt) as error:
            for queued in ids.values():
                slurm_commands.ask("scancel", queued)
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{job.label}: Slurm refuses the job: {reason}; queued none") from None
    return ids


def queue_one(run: Path, job: Job, before: str) -> str:
    """Queue one job after another; returns its id."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder=run / LAUNCH / JOBS / "%j")
    executor.update_parameters(**job.parameters, **after(before))
    calls = [Stage(job.stage, str(run), given) for given in job.arguments]
    if len(calls) == 1:
        queued = executor.submit(calls[0])
    else:
        with executor.batch():
            tasks = [executor.submit(call) for call in calls]
        queued = tasks[0]
    return str(queued.job_id).split("_")[0]


def with_kept_config(arguments: dict[str, list[str]], code: Path) -> dict[str, list[str]]:
    """The arguments with config= naming the snapshot's copy of the file."""
    return {
        stage: [
            f"config={code / KEPT_CONFIG}" if setting.startswith("config=") else setting
            for setting in given
        ]
        for stage, given in arguments.items()
    }


def take_snapshot(code: Path, config: str | None) -> None:
    """Copy the code into the run folder: what was submitted is what runs, days later too."""
    code.mkdir(parents=True)
    if config:
        shutil.copy(config, code / KEPT_CONFIG)
    for name in PACKAGES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, code / name)
    shutil.copytree(ROOT / "slurm", code / "slurm")


def record(run: Path, argv: Sequence[str], profile: Profile, ids: dict[str, str]) -> None:
    """Write down what was submitted; stages of an earlier submission stay in sight."""
    earlier = read_submission(run) or {"jobs": {}}
    about = {
        "command": shlex.join(["python", "launch/submit.py", *argv]),
        "folder": str(Path.cwd()),
        "revision": git_revision(),
        "time_s": round(time.time(), 1),
        "profile": dataclasses.asdict(profile),
        "jobs": earlier["jobs"] | ids,
    }
    (run / LAUNCH / SUBMISSION).write_text(json.dumps(about, indent=2) + "\n")
    note(run, "queued", "chain", jobs=ids)


def git_revision() -> str:
    """The commit of the code, marked where files differ from it; '' outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
