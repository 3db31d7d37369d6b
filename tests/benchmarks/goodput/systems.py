"""The trainings that are compared, and how each is put on the cluster."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import ranks
from tests.launch.dev_cluster import ROOT, Cluster

BATCH = 6  # crops, each its own microbatch: 1, 2, 3 and 6 ranks have equal shares of it
SETTINGS = (
    "epochs=100000",
    f"batch_size={BATCH}",
    f"microbatches={BATCH}",
    "model.width=16",
    "model.depth=3",
    "model.norm=group",  # no statistics that a training loop would have to keep
    "crop.size_px=96",
    "amp=off",
    "memory_format=contiguous",
    "log_every_steps=1",  # progress.json tells each step
    "log_every_s=10",
)
NUM_SAMPLES = 48
PYPI = ("pytorch-lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0")

SCRIPT = """\
#!/bin/bash
#SBATCH --partition=low
#SBATCH --nodes={num_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={jobs}/%j.out
cd {root}
export PYTHONPATH={path} OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
srun --cpus-per-task=2 {command}
"""
RANK = """\
trap "" TERM
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
exec """


@dataclass(frozen=True)
class System:
    """A way to train on Slurm."""

    name: str
    takes_what_is_free: bool
    """Whether it starts on fewer nodes than it may have."""
    queue: Callable[["Place", Path, str], str]
    """Puts a training on the cluster that has a run folder and nodes ("3" or "1-3"); returns the
    job's id."""


@dataclass(frozen=True)
class Place:
    """Where all systems train."""

    cluster: Cluster
    data: Path
    epoch_steps: int
    libraries: Path
    """A folder for Lightning, which is no dependency of ours."""

    @property
    def settings(self) -> list[str]:
        """Settings of python -m train, without the run."""
        per_sample = -(-self.epoch_steps * BATCH // NUM_SAMPLES)
        return [f"data={self.data}", *SETTINGS, f"crop.per_sample={per_sample}"]


def prepare(folder: Path) -> Path:
    """Draw fields and prepare them; returns the data set, of NUM_SAMPLES samples."""
    raw, prepared = folder / "raw", folder / "prepared"
    size = ["fields=2", "cases=6", "width_px=320", "height_px=320"]
    ranks.run("data_prep.synthetic", f"out={raw}", *size)
    splits = ["copies=4", "split.val=0", "split.test=0"]
    ranks.run("data_prep", f"raw={raw}", f"out={prepared}", *splits)
    return prepared


def queue_eosin(place: Place, run: Path, nodes: str) -> str:
    """As a user would, with submit.py."""
    asked = ["--stages", "train", "--nodes", nodes, "--gpus-per-node", "0", "--ranks-per-node", "1"]
    return place.cluster.submit(run, *asked, "--cpus-per-task", "2", *place.settings)["train"]


def queue_seeds_way(place: Place, run: Path, nodes: str) -> str:
    """A script that ignores SIGTERM: Slurm then ends the job and requeues it by itself."""
    command = python("seeds_way", *place.settings, f"run={run}")
    return sbatch(place, run, nodes, f"bash -c {shlex.quote(RANK + command)}")


def queue_lightning(place: Place, run: Path, nodes: str) -> str:
    """Lightning saves and requeues at SIGTERM, the one signal of a preemption here."""
    install_lightning(place.libraries)
    command = python("lightning_way", nodes, "SIGTERM", *place.settings, f"run={run}")
    command = f"bash -c {shlex.quote(RANK + command)}"
    return sbatch(place, run, nodes, command, path=f"{ROOT}:{place.libraries}")


SYSTEMS = {
    "eosin": System("Eosin", True, queue_eosin),
    "seed": System("saved once an epoch", False, queue_seeds_way),
    "lightning": System("Lightning", False, queue_lightning),
}


def python(program: str, *arguments: str) -> str:
    """The command line of a program of this folder."""
    module = f"{__package__}.{program}"
    return shlex.join([sys.executable, "-m", module, *arguments])


def sbatch(place: Place, run: Path, nodes: str, command: str, *, path: str = str(ROOT)) -> str:
    """Queue a script with this command for srun; returns the job's id."""
    jobs = run.with_name(f"{run.name}-jobs")  # a run's own folder is refused with others' files
    jobs.mkdir(parents=True, exist_ok=True)
    script = jobs / "job.sh"
    script.write_text(
        SCRIPT.format(num_nodes=nodes, jobs=jobs, root=ROOT, path=path, command=command)
    )
    return place.cluster.sbatch(str(script))


def install_lightning(folder: Path) -> None:
    """Fetch Lightning and what it needs beside our own libraries, into a folder of its own."""
    if folder.is_dir():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *PYPI], check=True)  # --no-deps: with our torch, numpy, tqdm, fsspec
