"""Real jobs on the development cluster, for tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
# A submitter's shell that, left in place, would lose the run at preemption or at the time limit
HOSTILE = {
    "SBATCH_PARTITION": "high",
    "SBATCH_TIMELIMIT": "300",
    "SBATCH_SIGNAL": "USR1@5",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_MEM_PER_NODE": "1",
    "SLURM_MEM_PER_CPU": "1",
    "SLURM_NTASKS": "7",
    "SRUN_CPUS_PER_TASK": "9",
    **{"MASTER_ADDR": "nowhere", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "7"},
    **{"TORCHELASTIC_USE_AGENT_STORE": "True", "CUDA_VISIBLE_DEVICES": "9", "PMI_RANK": "1"},
}
PORT = int(
    os.environ.get("DEV_CLUSTER_PORT", "18200")
)  # another one for a second copy of the tests
SETTLE_S = 3  # for the nodes to be done with a job that was requeued


def why_not() -> str:
    """Why no cluster can be started here; '' where it can."""
    if os.geteuid() != 0:
        return "slurmd starts jobs as their users: run the tests as root"
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        return "Slurm is not installed: sudo slurm/dev_cluster.py install"
    return ""


class Cluster:
    """The development cluster, or some of its nodes, on which one thread has its jobs."""

    def __init__(self, folder: Path, nodes: str = "", *, port: int = PORT, size: int = 13) -> None:
        self.folder, self.port, self.size = folder, port, size
        self.nodes = nodes
        """What sbatch --constraint takes, as in n1|n2; '' for all nodes."""
        self.jobs: list[str] = []
        """The jobs that were submitted."""
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def manage(self, command: str) -> subprocess.CompletedProcess[str]:
        """Call slurm/dev_cluster.py."""
        script = [sys.executable, str(ROOT / "slurm" / "dev_cluster.py"), command]
        script += ["--folder", str(self.folder), "--port", str(self.port)]
        script += ["--nodes", str(self.size)]
        return subprocess.run(script, capture_output=True, text=True, timeout=60)

    def call(self, *command: str, code: int = 0, **variables: str) -> str:
        """Call a command of Slurm's or ours on the cluster; what fails shows its output."""
        done = subprocess.run(
            command,
            env=self.environment | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def submit(self, run: Path, *arguments: str) -> dict[str, str]:
        """Submit with the dev profile, from a hostile shell; returns the job of each label."""
        self.call_submit(*arguments, f"run={run}")
        jobs: dict[str, str] = json.loads((run / "launch" / "submission.json").read_text())["jobs"]
        self.jobs += jobs.values()
        return jobs

    def call_submit(self, *arguments: str, code: int = 0) -> str:
        """Call launch/submit.py with the dev profile from a hostile shell."""
        script = [sys.executable, "launch/submit.py", "--profile", "dev"]
        return self.call(*script, "--constraint", self.nodes, *arguments, code=code, **HOSTILE)

    def sbatch(self, *arguments: str) -> str:
        """Queue a job by hand; returns its id."""
        constraint = f"--constraint={self.nodes}"
        job = self.call("sbatch", "--parsable", constraint, *arguments).strip()
        self.jobs.append(job)
        return job

    def sbatch_train(self, data: Path, run: Path, *settings: str, log: str, **more: str) -> str:
        """Queue slurm/train.sbatch on one node; returns the job's id."""
        variables = ",".join(f"{key}={value}" for key, value in more.items())
        return self.sbatch(
            "--partition=low", "--nodes=1", "--cpus-per-task=1", f"--output={log}",
            f"--export=DATA={data},RUN={run},{variables}", "slurm/train.sbatch", *settings,
        )  # fmt: skip

    def jobs_py(self, *arguments: str) -> str:
        """Call launch/jobs.py."""
        return self.call(sys.executable, "launch/jobs.py", *arguments)

    def state(self, job: str) -> str:
        """The state of a job, as Slurm names it."""
        text = self.call("scontrol", "show", "job", "--oneliner", job)
        return text.split("JobState=")[1].split()[0]

    def wait(self, condition: Callable[[], Any], what: str, run: Path) -> None:
        """Wait until something holds; a failure shows what happened to the run."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(p.read_text()[-3000:] for p in run.glob("launch/jobs/*/*.out"))
                queue = self.call("squeue")
                raise AssertionError(
                    f"{what}: not within {TIMEOUT_S} s\n{queue}{events(run)}\n{logs}"
                )
            time.sleep(0.1)

    def preempt(self, run: Path, *jobs: str) -> None:
        """Take the nodes away until the jobs are queued again, then let them start at once."""
        nodes = f"--nodes={len(self.nodes.split('|'))}"
        urgent = self.sbatch(
            "--partition=high", nodes, "--exclusive", "--output=/dev/null", "--wrap=sleep 300"
        )
        self.wait(lambda: self.state(urgent) == "RUNNING", "the urgent job starts", run)
        for job in jobs:
            self.wait(partial(self.is_queued, job), "the job is queued again", run)
        self.call("scancel", urgent)
        for job in jobs:
            self.start_now(job, run)

    def is_queued(self, job: str) -> bool:
        """Whether a job waits for nodes."""
        return self.state(job) == "PENDING"

    def take(self, run: Path, node: str) -> str:
        """Take a node away with an urgent job; returns its id when it has the node."""
        urgent = self.sbatch(
            "--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null",
            "--wrap=sleep 600",
        )  # fmt: skip
        self.wait(lambda: self.state(urgent) == "RUNNING", f"{node} is taken", run)
        return urgent

    def start_now(self, job: str, run: Path) -> None:
        """Start a requeued job without Slurm's pause of two minutes.

        Not at once: a slurmd that is still ending the job refuses its new start ("credential
        revoked"). And again and again: until the job has left, Slurm forgets what it was told.
        """

        def is_started() -> bool:
            if self.state(job) == "PENDING":
                # may have started by itself meanwhile, which the state then says
                subprocess.run(
                    ["scontrol", "update", f"jobid={job}", "starttime=now"],
                    env=self.environment,
                    capture_output=True,
                    check=False,
                )
                time.sleep(1)
            return self.state(job) in ("RUNNING", "COMPLETED", "FAILED")

        self.wait(lambda: self.state(job) == "PENDING", "the job is queued again", run)
        time.sleep(SETTLE_S)
        self.wait(is_started, "the job starts again", run)

    def processes(self, variables: set[str]) -> list[int]:
        """The tasks that submitit runs with these variables in their environment.

        Without srun, which started them, and their forks, which have the same command line.
        """
        parents = {}
        for entry in Path("/proc").iterdir():
            try:
                environment = (entry / "environ").read_bytes().decode().split("\0")
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "status").read_text().split("PPid:")[1].split()[0]
            except OSError:
                continue
            is_task = b"submitit.core._submit" in command and command[0] != b"srun"
            if is_task and variables <= set(environment):
                parents[int(entry.name)] = int(parent)
        return [pid for pid, parent in parents.items() if parent not in parents]

    def cancel_all(self) -> None:
        """Cancel the jobs that were submitted, and wait until their nodes are free."""
        self.call("scancel", *self.jobs)
        deadline = time.monotonic() + TIMEOUT_S
        while set(self.call("squeue", "--noheader", "--format=%A").split()) & set(self.jobs):
            assert time.monotonic() < deadline, "jobs that do not end"
            time.sleep(0.2)
        self.jobs.clear()

    def kill_node(self, name: str) -> None:
        """kill -9 of a slurmd."""
        pid = int((self.folder / f"slurmd.{name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The run's events, of some kinds or all."""
    path = run / "launch" / "events.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [json.loads(line) for line in lines]
    return [event for event in found if not kinds or event["event"] in kinds]


def step(run: Path) -> int:
    """The last step that training told."""
    path = run / "progress.json"
    return json.loads(path.read_text())["step"] if path.is_file() else 0


def restarts(run: Path) -> list[int]:
    """The steps at which training went on."""
    path = run / "restarts.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]
