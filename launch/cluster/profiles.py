"""The settings of a cluster: a profile slurm/<name>.yaml, which flags override."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common import command_line
from common.command_line import UsageError
from launch.cluster import sbatch_args

PROFILES = Path(__file__).parents[2] / "slurm"
DEFAULT, MINE = "default", "mine"  # without Slurm; that of the cluster, where it is there
SIGNAL_EARLY_S = 60  # by how much Slurm may send --signal early (manual of sbatch)


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
    nodes: int | str = 1
    """Nodes for training: a number, or the least and the most as in 1-4. Then each start takes as
    many as are free, and the run goes on with the same bits."""
    gpus_per_node: int | str = 1
    """GPUs per node for training, one rank each: a number, or type and number as in a100:2. With 0
    training uses CPUs."""
    ranks_per_node: int = 0
    """Ranks per node where training uses CPUs; 0 for one rank per GPU, or one rank."""
    cpus_per_task: int = 4
    """CPU cores per rank, and per task of preparation."""
    mem_gb: float = 0.0
    """Memory per node in GB; 0 for the partition's default."""
    time_min: int = 720
    """Time limit of a job in minutes. A longer run is requeued at the limit and goes on."""
    signal_lead_s: int = 120
    """Seconds before the time limit at which training saves and has its job requeued."""
    prep_jobs: int = 4
    """Array tasks among which preparation is divided."""
    pack: int = 1
    """Runs of --folds or --sweep that share a job and all GPUs of its node, each with its own CPUs:
    cpus_per_task for each of its ranks. With --cluster local: runs at once."""
    at_once: int = 0
    """Most jobs of --folds or --sweep that run at the same time; 0 for no limit."""
    retries: int = 3
    """How often a job that fails is tried again without a newer checkpoint in between."""
    image: str = ""
    """Container image that the stages run in: a file, or docker://NAME:TAG; empty for none. It
    holds Python and the packages; the code is mounted. Not used by --cluster local."""
    container: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """What runs the image: a program on the nodes, or Slurm's plugin pyxis."""
    python: str = ""
    """Python of the jobs. Empty for the one that submits, or in an image python3."""
    stage: str = ""
    """Folder on the nodes' own disks, as in $TMPDIR, into which training copies the pack once per
    node; empty to read the shared pack. Variables are those of the node."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the program, such as: module load cuda."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    srun_args: list[str] = field(default_factory=list)
    """More arguments of srun, as in --mpi=pmix."""
    sbatch_args: list[str] = field(default_factory=list)
    """More arguments of sbatch, as in --exclude=n3. Those about GPUs only go to jobs with GPUs."""

    def __post_init__(self) -> None:
        if str(self.gpus_per_node).lstrip("-").isdecimal():
            object.__setattr__(self, "gpus_per_node", int(self.gpus_per_node))
        elif not re.fullmatch(r"[\w.-]+:[1-9]\d*", str(self.gpus_per_node)):
            raise ValueError(
                f"gpus_per_node={self.gpus_per_node}: expected a whole number, or the type and the"
                " number, as in a100:2"
            )
        self.read_nodes()
        self.check_texts()
        least = {"ranks_per_node": 0, "cpus_per_task": 1}
        least |= {"time_min": 1, "signal_lead_s": 1, "prep_jobs": 1, "retries": 0}
        least |= {"pack": 1, "at_once": 0}
        if not self.gpu_type:
            least["gpus_per_node"] = 0
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least {value}")
        if self.signal_lead_s + SIGNAL_EARLY_S >= 60 * self.time_min:
            raise ValueError(
                f"signal_lead_s={self.signal_lead_s}, time_min={self.time_min}: Slurm sends the"
                f" signal up to {SIGNAL_EARLY_S} s early, so a job could be stopped as it starts;"
                " raise time_min, or lower signal_lead_s"
            )
        if self.ranks_per_node and self.gpus and self.ranks_per_node != self.gpus:
            raise ValueError(
                f"ranks_per_node={self.ranks_per_node}: gpus_per_node={self.gpus_per_node} gives"
                " one rank per GPU; leave ranks_per_node out, or train on CPUs with gpus_per_node=0"
            )
        self.check_arguments()

    def packing(self, num_runs: int) -> "Profile":
        """Return it for a number of runs, of which no more than those can share a job. Raises
        UsageError if they would share several nodes."""
        pack = min(self.pack, num_runs)
        if pack > 1 and self.most_nodes > 1:
            raise UsageError(
                f"pack={self.pack}, nodes={self.nodes}: runs that share a job share its only node;"
                " set nodes=1, or pack=1"
            )
        return dataclasses.replace(self, pack=pack)

    def read_nodes(self) -> None:
        """Make `nodes` a number where it is one. Raises ValueError for neither number nor range."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.nodes), re.ASCII)
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(
                f"nodes={self.nodes}: expected a whole number from 1, or the least and the most, as"
                " in 1-4"
            )
        object.__setattr__(self, "nodes", least if least == most else f"{least}-{most}")

    def check_texts(self) -> None:
        """Refuse texts that would add a line to the script. Raises ValueError."""
        for key, text in self.texts():
            if has_control_characters(text):
                raise ValueError(f"{key}={text!r}: holds a line break or a control character")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"environment={name!r}: not a name of an environment variable")
        for line in "\n".join(self.setup).splitlines():
            if has_control_characters(line.replace("\t", " ")):
                raise ValueError(f"setup={line!r}: holds a control character")
            if line.lstrip().startswith("#SBATCH"):
                raise ValueError(f"setup={line}: arguments of sbatch belong into sbatch_args:")

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield key and text of each value, except `setup`, whose texts may have several lines."""
        for key, value in dataclasses.asdict(self).items():
            if isinstance(value, dict):
                yield from ((key, text) for pair in value.items() for text in pair)
            elif key != "setup":
                yield from (
                    (key, str(text)) for text in (value if isinstance(value, list) else [value])
                )

    def check_arguments(self) -> None:
        """Refuse arguments of sbatch and srun that contradict other keys. Raises ValueError."""
        sbatch_args.parse("srun_args", self.srun_args)
        arguments = self.sbatch_arguments
        gres, num_gpus = arguments.get("gres", ""), sbatch_args.gres_gpus(arguments)
        if num_gpus and self.gpus_per_node != num_gpus:
            raise ValueError(
                f"sbatch_args: --gres={gres}: gives {num_gpus} GPUs per node, but gpus_per_node is"
                f" {self.gpus_per_node}; set gpus_per_node: {num_gpus}, or leave --gres out and set"
                " gpus_per_node: TYPE:NUMBER"
            )
        for name in ("mem-per-cpu", "mem-per-gpu"):
            if self.mem_gb and name in arguments:
                raise ValueError(f"sbatch_args: --{name}: contradicts mem_gb:; give one of them")

    @property
    def least_nodes(self) -> int:
        """The smallest number of nodes on which training starts."""
        return int(str(self.nodes).partition("-")[0])

    @property
    def most_nodes(self) -> int:
        """The largest number of nodes that training takes."""
        return int(str(self.nodes).rpartition("-")[2])

    @property
    def most_ranks(self) -> int:
        """The largest number of ranks of training."""
        return self.most_nodes * self.tasks_per_node

    @property
    def gpus(self) -> int:
        """Number of GPUs per node for training."""
        return int(str(self.gpus_per_node).rpartition(":")[2])

    @property
    def gpu_type(self) -> str:
        """Type of the GPUs; '' where any type will do."""
        return str(self.gpus_per_node).rpartition(":")[0]

    @property
    def sbatch_arguments(self) -> dict[str, str]:
        """The arguments in `sbatch_args`, name -> value ('' for none)."""
        return sbatch_args.parse("sbatch_args", self.sbatch_args)

    @property
    def reservation(self) -> str:
        """The reservation in `sbatch_args`, '' for none."""
        return self.sbatch_arguments.get("reservation", "")

    @property
    def tasks_per_node(self) -> int:
        """Ranks per node."""
        return self.ranks_per_node or self.gpus or 1


def has_control_characters(text: str) -> bool:
    """Return whether a text holds line breaks, other control characters or invalid bytes."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def load_profile(name: str, flags: dict[str, Any]) -> Profile:
    """Load a profile by name, and set the flags that were given; '' for the flags alone.

    Raises UsageError.
    """
    if name and not (PROFILES / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise UsageError(
            f"--profile {name}: slurm/{name}.yaml does not exist; profiles are {known}; `python"
            f" launch/doctor.py --write-profile {name}` makes one for this cluster, and"
            " slurm/template.yaml explains every key"
        )
    arguments = [f"preset={name}"] if name else []
    arguments += [f"{key}={value}" for key, value in flags.items()]
    try:
        return command_line.load(NamedProfile, arguments, preset_folder=PROFILES)
    except UsageError as error:
        key = re.match(r"\w*", str(error))
        is_told = not name or str(PROFILES) in str(error) or (key and key[0] in flags)
        raise UsageError(str(error) if is_told else f"slurm/{name}.yaml: {error}") from None


@dataclass(frozen=True)
class NamedProfile(Profile):
    """A profile with the key that names its file."""

    preset: str = ""
    """Name of the profile."""
