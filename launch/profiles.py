"""The settings of a cluster: slurm/<name>.yaml, overridden by flags."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import command_line
from command_line import UsageError

PROFILES = Path(__file__).parents[1] / "slurm"
SIGNAL_EARLY_S = 60  # how much sooner than asked Slurm may send --signal (sbatch's manual)


@dataclass(frozen=True)
class Profile:
    """What a job asks Slurm for. Empty text and 0 leave a setting to the cluster."""

    partition: str = ""
    """Partition (queue)."""
    account: str = ""
    """Account that is charged."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that nodes must have, as in a100|h100."""
    nodes: int = 1
    """Nodes for training."""
    gpus_per_node: int = 1
    """GPUs a node for training; a rank each. 0 trains on CPUs."""
    ranks_per_node: int = 0
    """Ranks a node where there are no GPUs; 0 for a rank a GPU, or one."""
    cpus_per_task: int = 4
    """CPU cores a rank, and a preparation task."""
    mem_gb: float = 0.0
    """Memory a node, in GB; 0 for the partition's default."""
    time_min: int = 720
    """Time limit of a job in minutes; a run that needs longer is brought back."""
    signal_lead_s: int = 120
    """Seconds before the time limit at which training saves and asks to be brought back."""
    prep_jobs: int = 4
    """Array tasks that preparation is shared over."""
    retries: int = 3
    """How often a job that fails is brought back without having got any further."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the program, such as: module load cuda."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    srun_args: list[str] = field(default_factory=list)
    """More arguments of srun."""

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 0, "cpus_per_task": 1}
        least |= {"time_min": 1, "signal_lead_s": 1, "prep_jobs": 1, "retries": 0}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least {value}")
        if self.signal_lead_s + SIGNAL_EARLY_S >= 60 * self.time_min:
            raise ValueError(
                f"signal_lead_s={self.signal_lead_s}, time_min={self.time_min}: Slurm sends the"
                f" signal up to {SIGNAL_EARLY_S} s early, so a job could be stopped as it starts;"
                " give it more time_min, or less signal_lead_s"
            )
        if self.ranks_per_node and self.gpus_per_node and self.ranks_per_node != self.gpus_per_node:
            raise ValueError(
                f"ranks_per_node={self.ranks_per_node}: with gpus_per_node={self.gpus_per_node}"
                " there is a rank a GPU; leave it out"
            )

    @property
    def tasks_per_node(self) -> int:
        """Ranks a node."""
        return self.ranks_per_node or self.gpus_per_node or 1


def load_profile(name: str, flags: dict[str, Any]) -> Profile:
    """A profile by name, with the flags that were given. UsageError lists the names there are."""
    if not (PROFILES / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise UsageError(
            f"--profile {name}: no slurm/{name}.yaml; there are: {known}; copy slurm/template.yaml"
            " for one of your own"
        )
    arguments = [f"preset={name}"] + [f"{key}={value}" for key, value in flags.items()]
    return dataclasses.replace(command_line.load(NamedProfile, arguments, preset_folder=PROFILES))


@dataclass(frozen=True)
class NamedProfile(Profile):
    """A profile with the keys by which command_line finds its file."""

    preset: str = ""
    """Name of the profile."""
