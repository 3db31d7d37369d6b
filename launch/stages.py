"""The stages of a chain: which of them to run, their arguments, and what is refused early."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from common import command_line
from common.command_line import UsageError, UserError
from common.help_text import describe_fields
from data_prep.config import BRECAHAD, PREPARED, PrepConfig
from data_prep.dataset.description import DATASET, DatasetError, read_description
from launch.cluster import slurm_commands
from launch.cluster.profiles import Profile
from launch.record.events import COMPARE, LAUNCH, STAGES, SUBMISSION, read_submission
from launch.record.run_jobs import queued_jobs
from launch.several.members import Member, begun_in
from train.config import PRESETS, TrainConfig, with_pipeline_read
from train.evaluation.config import EvaluateConfig
from train.runs.newest import CONFIG, read_config
from train.runs.same_data import as_typed, changed_settings, flat, in_lines

CONFIGS: dict[str, type] = {
    "prepare": PrepConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
SUBMITTED = f"{LAUNCH}/{SUBMISSION}"
FILES_READ = {"prepare": ("augment.pipeline", "stain_reference"), "train": ("crop.pipeline",)}
PATHS = ("raw", "data", "run")  # how stages find each other's files
OF_EVALUATION = {"raw", "data", "out"}  # keys that evaluation uses for something else
OF_RAW = {"annotations", "empty", "ignore_px", "ignore_value", "mpp"}  # how raw fields are read


@dataclass(frozen=True)
class Request:
    """What a user asks for: settings by key, and the folder of the run."""

    settings: dict[str, str]
    run: Path
    """Absolute, as all paths of jobs: they run in another folder."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Settings of a run among several, which come after those of all."""

    def of(self, member: Member) -> "Request":
        """Return the request of one of the runs, which is this one for one that is alone."""
        if not member.name:
            return self
        own = {"data": str(self.data), **member.settings}
        return replace(self, run=self.run / member.name, own=own)

    @property
    def every_setting(self) -> dict[str, str]:
        """The settings by key."""
        return {**self.settings, **self.own}

    @cached_property
    def begun(self) -> TrainConfig | None:
        """The configuration of a run that has begun; None for a new one."""
        return read_config(self.run) if (self.run / CONFIG).is_file() else None

    @property
    def raw(self) -> Path:
        """The raw fields."""
        return Path(self.settings.get("raw") or BRECAHAD).resolve()

    @property
    def data(self) -> Path:
        """The prepared data set: that of data=, else the one the run began with, else one inside
        the run where raw= is given, else data/prepared."""
        if named := self.every_setting.get("data"):
            return Path(named).resolve()
        if self.begun:
            return Path(self.begun.data).resolve()
        if member := begun_in(self.run):
            return Path(read_config(member).data).resolve()
        if self.raw != Path(BRECAHAD).resolve():
            return self.run / "prepared"
        return Path(PREPARED).resolve()

    @property
    def evaluates_raw(self) -> bool:
        """Whether evaluation reads raw fields, as preparation does, in place of the data set."""
        return bool(self.settings.get("evaluate.raw"))

    @property
    def is_to_prepare(self) -> bool:
        """Whether to prepare: settings say how, or data= is not given and nothing is prepared."""
        of_evaluation = stage_keys("evaluate") - (set() if self.evaluates_raw else OF_RAW)
        own_keys = stage_keys("prepare") - stage_keys("train") - of_evaluation
        given = {key for key in self.settings if key in own_keys or key.startswith("prepare.")}
        if given | ({"raw"} & self.settings.keys()):
            return True
        return "data" not in self.settings and not (self.data / DATASET).is_file()


def choose_stages(named: str, request: Request, known: Sequence[str] = STAGES) -> list[str]:
    """Return the stages to run, in order; by default all that are `known`, without `prepare` if
    nothing is to do."""
    if not named:
        return [stage for stage in known if stage != "prepare" or request.is_to_prepare]
    names = named.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--stages {named}: unknown {', '.join(unknown)}; {', '.join(known)}")
    return [stage for stage in known if stage in names]


def stage_arguments(
    stages: Sequence[str], request: Request, profile: Profile
) -> dict[str, list[str]]:
    """Return stage -> its key=value arguments. Raises UsageError for a key that no stage knows."""
    data, run = str(request.data), str(request.run)
    fixed = {
        "prepare": {"out": data, "workers": str(profile.cpus_per_task), "raw": str(request.raw)},
        "train": {"data": data, "run": run} | ({"stage": profile.stage} if profile.stage else {}),
        "evaluate": {"run": run},
        COMPARE: {"runs": as_typed([run]), "out": f"{run}/comparison"},
    }
    known = {stage: stage_keys(stage) for stage in STAGES}
    taken = {stage: keys - OF_EVALUATION for stage, keys in known.items()}
    if "prepare" in stages and not request.evaluates_raw:
        taken["evaluate"] -= OF_RAW  # of the data set, which says it to evaluation
    for key, value in request.every_setting.items():
        if key in PATHS:
            continue
        stage, _, rest = key.partition(".")
        takers = [name for name in STAGES if key in taken[name]]
        if stage in STAGES and rest in known[stage]:
            fixed[stage][rest] = absolute(rest, value)
        elif takers:
            for name in takers:
                fixed[name][key] = absolute(key, value)
        else:
            raise UsageError(
                f"{key}={value}: no stage knows '{key}'; see --help of data_prep, train and"
                " train.evaluate, or this command's flags"
            )
    return {stage: [f"{key}={value}" for key, value in fixed[stage].items()] for stage in stages}


def absolute(key: str, value: str) -> str:
    """Return a value, as an absolute path where it is a path."""
    is_path = key in (*OF_EVALUATION, "config")
    return str(Path(value).resolve()) if is_path and value else value


@cache
def stage_keys(stage: str) -> frozenset[str]:
    """Return every key of a stage that a submission may give: config= is that of training."""
    keys = frozenset(key for key, *_ in describe_fields(CONFIGS[stage]))
    return keys - {"config"} if stage == "prepare" else keys


def load_training(settings: Sequence[str]) -> TrainConfig:
    """Load the configuration of training. Raises UsageError."""
    return command_line.load(TrainConfig, settings, preset_folder=PRESETS)


def check(arguments: dict[str, list[str]], request: Request) -> None:
    """Refuse what a stage would refuse, before anything is queued. Raises UsageError."""
    configs = configurations(arguments)
    if "prepare" in configs:
        with naming("prepare"):
            check_preparation(configs["prepare"], request)
    elif "train" in configs:
        with naming("train"):
            check_data(Path(configs["train"].data))


def configurations(arguments: dict[str, list[str]]) -> dict[str, Any]:
    """Return stage -> its configuration, with the content of its files. Raises UsageError."""
    configs: dict[str, Any] = {}
    for stage, given in arguments.items():  # all settings before any data, which take longer
        if stage not in CONFIGS:
            continue
        with naming(stage):
            presets = PRESETS if stage == "train" else None
            configs[stage] = command_line.load(CONFIGS[stage], given, preset_folder=presets)
    for stage, config in configs.items():
        with naming(stage):
            configs[stage] = with_files_read(config)
    return configs


def with_files_read(config: Any) -> Any:
    """Return a stage's configuration with the content of its pipeline, and the numbers of its
    reference, in place of their files. Raises UsageError."""
    if isinstance(config, PrepConfig) and config.augment.pipeline:
        from data_prep.plan import with_pipeline_read as read  # it takes seconds

        config = read(config)
    if isinstance(config, PrepConfig) and config.stain_norm != "none":
        from data_prep.plan import with_reference_read  # so does this

        config = with_reference_read(config)
    return with_pipeline_read(config) if isinstance(config, TrainConfig) else config


def with_contents(arguments: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the arguments, with the content of pipelines, and the numbers of a reference, in place
    of their files: a job starts in another folder, and later, when the file may be another one.
    Raises UsageError."""
    read = dict(arguments)
    for stage, config in configurations(arguments).items():
        contents = flat(dataclasses.asdict(config))
        for key in FILES_READ.get(stage, ()):
            if content := contents[key]:
                others = [given for given in read[stage] if not given.startswith(f"{key}=")]
                read[stage] = [*others, f"{key}={content}"]
    return read


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """While this context lasts, put the stage's name before a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{stage}: {error}") from None


def check_preparation(config: PrepConfig, request: Request) -> None:
    """Refuse raw fields that are missing or cannot be split, and a change of a data set that other
    runs may need as it is. Raises UserError."""
    from data_prep.plan import check_raw
    from data_prep.records import settings_of_set

    check_raw(config)
    out, wanted = Path(config.out), settings_of_set(config)
    for before, why in prepared_before(out, request):
        if differences := changed_settings(before, wanted):
            listed = "; ".join(in_lines(differences))
            same = shlex.join(f"{key}={as_typed(values[0])}" for key, values in differences.items())
            raise UsageError(
                f"{out} {why} in another way ({listed}), and runs may need it as it is; give {same}"
                f" to use that one, or data={free_name(out)} for a data set of its own"
            )


def prepared_before(out: Path, request: Request) -> list[tuple[dict[str, Any], str]]:
    """Return the settings by which a data set was prepared, or will be by jobs in the queue, each
    with words for a message."""
    from data_prep.records import settings_of_set

    found = []
    with suppress(DatasetError):  # no data set, or an unusable one
        found.append((read_description(out / DATASET).settings, "was prepared"))
    if not slurm_commands.is_here():
        return found
    for run in sorted(path.parents[1] for path in request.run.parent.glob(f"*/{SUBMITTED}")):
        given = (read_submission(run) or {}).get("prepare")
        if run == request.run or not given or f"out={out}" not in given:
            continue
        with suppress(UserError):  # Slurm does not answer, or another version wrote that
            if any(job.label in ("prepare", "join") for job in queued_jobs(run)):
                queued = settings_of_set(with_files_read(command_line.load(PrepConfig, given)))
                found.append((queued, f"is being prepared for {run}"))
    return found


def free_name(folder: Path) -> Path:
    """Return a name beside a folder that is still free."""
    number = 2
    while (free := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free


def check_data(data: Path) -> None:
    """Refuse to train without a usable prepared data set. Raises UsageError."""
    if not (data / DATASET).is_file():
        raise UsageError(
            f"data={data}: no prepared data set; leave data= out, or give raw= too to have it"
            " prepared in that folder"
        )
    try:
        read_description(data / DATASET)
    except DatasetError as error:
        raise UsageError(str(error)) from None
