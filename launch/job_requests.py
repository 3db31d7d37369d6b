"""The jobs of a chain, and what each asks Slurm for."""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cluster import containers, sbatch_args
from launch.cluster.job_needs import asked_by
from launch.cluster.profiles import Profile
from launch.job import Pack, Stage
from launch.record.events import COMPARE, JOBS, LAUNCH

OK = "afterok"
CONDITIONS = {COMPARE: "afterany"}
ENDS_ALL = "--kill-on-bad-exit=1"


@dataclass(frozen=True)
class Job:
    """A job to queue: a stage, once or (an array) with each of several lists of arguments."""

    stage: str
    label: str
    arguments: list[list[str]]
    parameters: dict[str, Any]
    """Parameters of submitit's executor, also its `python`."""
    runs: Sequence[Path] = ()
    """The run of each list of arguments; empty where all are of the folder that is submitted."""
    pack: int = 1
    """Runs in each task of the array."""
    at_once: int = 0
    """Most tasks of the array that run at the same time; 0 for no limit."""
    condition: str = OK
    """What it waits for: that the job before ends with success, or (afterany) that it ends."""

    @property
    def num_tasks(self) -> int:
        """Tasks of the array; 1 for a job that is none."""
        return -(-len(self.arguments) // self.pack)

    def work(self, run: Path) -> list[Stage | Pack]:
        """Return what each task of the array does."""
        runs = self.runs or [run] * len(self.arguments)
        stages = [
            Stage(self.stage, str(each), given)
            for each, given in zip(runs, self.arguments, strict=True)
        ]
        if self.pack == 1:
            return list(stages)
        packs = [stages[first : first + self.pack] for first in range(0, len(stages), self.pack)]
        return [Pack(members, self.ranks_each) for members in packs]

    @property
    def ranks_each(self) -> int:
        """Ranks of each of the runs that share a task."""
        return int(self.parameters["ntasks_per_node"]) // self.pack if self.pack > 1 else 0


def plan(
    run: Path,
    code: Path,
    arguments: dict[str, list[str]],
    profile: Profile,
    trainings: Sequence[Stage] = (),
) -> list[Job]:
    """Return the jobs of the chain, in order; they run the snapshot in `code`.

    `trainings`: those of an array, in place of the one that `arguments` has.
    """
    jobs = []
    common = functools.partial(parameters, run, code, profile, arguments)
    sizes = {asked.stage: asked for asked in asked_by(profile, [*arguments])}
    for stage, given in arguments.items():
        size = sizes[stage]
        asked = common(stage, size.most_nodes, size.tasks, size.gpus)
        if stage == "prepare":
            shares = [f"share={k}/{profile.prep_jobs}" for k in range(1, profile.prep_jobs + 1)]
            if profile.prep_jobs > 1:
                jobs.append(Job(stage, "prepare", [[*given, share] for share in shares], asked))
            joining = asked | {"job_name": "eosin-join"} if profile.prep_jobs > 1 else asked
            jobs.append(Job(stage, "join" if profile.prep_jobs > 1 else stage, [given], joining))
        elif stage == "train" and trainings:
            jobs.append(array_of(trainings, asked, profile, code))
        else:
            if size.least_nodes < size.most_nodes:
                asked = on_free_nodes(asked, profile)
            jobs.append(Job(stage, stage, [given], asked, condition=CONDITIONS.get(stage, OK)))
    return jobs


def array_of(
    trainings: Sequence[Stage], asked: dict[str, Any], profile: Profile, code: Path
) -> Job:
    """Return the array that trains several runs. Each task decides for its own runs at its end."""
    runs, name = [Path(training.run) for training in trainings], trainings[0].name
    if profile.least_nodes < profile.most_nodes:
        asked = on_free_nodes(asked, profile)
    one, setup = at_end([runs[0]], code, "train", profile), asked["setup"]
    asked = asked | {"setup": [*at_end(runs, code, "train", profile), *setup[len(one) :]]}
    if profile.pack > 1:  # a run that ends leaves the others alone
        srun_args = [word for word in asked["srun_args"] if word != ENDS_ALL]
        asked["srun_args"] = ["--kill-on-bad-exit=0", "--wait=0", *srun_args]
    given = [training.arguments for training in trainings]
    return Job(name, "train", given, asked, runs, profile.pack, profile.at_once)


def on_free_nodes(asked: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """Return the parameters of a job that takes as many nodes of a range as are free.

    Only srun is told the tasks per node. If sbatch knows them, Slurm (22.05) takes no more nodes
    than there are tasks on one node. The CPUs of a node are asked for by --mincpus then.
    """
    others = {key: asked[key] for key in asked if key not in ("ntasks_per_node", "cpus_per_task")}
    num_cpus = profile.tasks_per_node * profile.cpus_per_task
    return others | {
        "nodes": profile.most_nodes,  # a number, with which submitit calculates
        "srun_args": [f"--ntasks-per-node={profile.tasks_per_node}", *asked["srun_args"]],
        "additional_parameters": asked["additional_parameters"]
        | {"nodes": profile.nodes, "mincpus": num_cpus},
    }


def parameters(
    run: Path,
    code: Path,
    profile: Profile,
    arguments: dict[str, list[str]],
    stage: str,
    nodes: int,
    tasks: int,
    gpus: int,
) -> dict[str, Any]:
    """Return the parameters of submitit's executor for a job."""
    given = profile.sbatch_arguments
    added = given if gpus else sbatch_args.without_gpus(given)
    more = {name: value or True for name, value in added.items()}
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment |= profile.environment
    environment["PYTHONPATH"] = ":".join(filter(None, [str(code), environment.get("PYTHONPATH")]))
    start = containers.start_python(profile, environment, arguments, run, has_gpus=bool(gpus))
    asked = {
        "python": start.python,
        "job_name": f"eosin-{stage}",
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": profile.cpus_per_task,
        "time": profile.time_min,
        "signal_delay_s": profile.signal_lead_s,
        "stderr_to_stdout": True,
        "setup": [
            *at_end([run], code, stage, profile),
            "export PATH",  # the shell's own default where a site hands on no environment
            *profile.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
            f"cd {shlex.quote(str(code))}",
            *start.setup,
        ],
        # Since Slurm 22.05 srun ignores the --cpus-per-task of sbatch. When a rank dies the others
        # would wait for it. With sbatch --export=NONE, the rule of some sites, tasks would have no
        # environment
        "srun_args": [
            "--export=ALL",
            f"--cpus-per-task={profile.cpus_per_task}",
            ENDS_ALL,
            *profile.srun_args,
        ],
        "teardown": ["at_end"],
        "additional_parameters": more | {"requeue": True, "kill-on-invalid-dep": "yes"},
    }
    if gpus and not sbatch_args.gres_gpus(profile.sbatch_arguments):
        asked["gpus_per_node"] = f"{profile.gpu_type}:{gpus}" if profile.gpu_type else gpus
    if profile.mem_gb:
        asked["mem"] = f"{int(profile.mem_gb * 1024)}MB"
    named = ("partition", "account", "qos", "constraint")
    return asked | {key: getattr(profile, key) for key in named if getattr(profile, key)}


def at_end(runs: Sequence[Path], code: Path, stage: str, profile: Profile) -> list[str]:
    """Return lines of shell that define at_end, which decides once what becomes of the job.

    It is the last line of the script, and is called too where a line of setup ends the script. The
    shell outlives the SIGTERM that comes with a preemption, and holds all that it needs at the end:
    of several runs, those of its task.
    """
    first, others, lines = shlex.quote(str(runs[0])), "", []
    if len(runs) > 1:
        pack = profile.pack
        lines = ["runs=(", *(f"  {shlex.quote(str(run))}" for run in runs), ")"]
        lines.append(f'runs=("${{runs[@]:SLURM_ARRAY_TASK_ID * {pack}:{pack}}}")')
        first, others = '"$runs"', ' "${runs[@]:1}"' if pack > 1 else ""
    called = f'bash -c "$on_exit" on_exit {first} {stage} $code {profile.retries}{others}'
    return [
        *lines,
        f"on_exit=$(<{shlex.quote(f'{code}/launch/on_exit.sh')}) || exit",
        "at_end() {",
        "  local code=$?",
        f"  [ \"${{has_ended-}}\" ] || {{ has_ended=1; trap '' TERM; {called}; }}",
        "  return $code",
        "}",
        "trap at_end EXIT",
        "trap : TERM",
    ]


def after(job: Job, before: str) -> dict[str, str]:
    """Return the parameters that make a job wait for another, by its id."""
    return {"dependency": f"{job.condition}:{before}"} if before else {}


def printed(run: Path, job: Job, before: str) -> str:
    """Return a job's script and what it runs, for a reader."""
    in_task = [
        f"task {number // job.pack}: " if job.runs else "" for number in range(len(job.arguments))
    ]
    called = "\n".join(
        f"#   {task}{job.stage} {shlex.join(given)}"
        for task, given in zip(in_task, job.arguments, strict=True)
    )
    text = script(run, job, before)
    return f"##### {job.label}\n{text}\n# The stage in each task (or array task):\n{called}\n"


def script(run: Path, job: Job, before: str) -> str:
    """Return the sbatch script of a job, behind the job `before`; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = run / LAUNCH / JOBS / "%j"
    asked = dict(job.parameters)
    command = f"{asked.pop('python')} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    if job.num_tasks > 1:
        asked["map_count"] = job.num_tasks
        if job.runs:
            asked["array_parallelism"] = job.at_once or job.num_tasks
    return _make_sbatch_string(command=command, folder=folder, **asked, **after(job, before))
