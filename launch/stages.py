"""The stages of a chain: which of them there are to do, and what each is told."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line
from command_line import UsageError
from data_prep.config import BRECAHAD, PREPARED, PrepConfig
from data_prep.manifest import DATASET, DatasetError, read_description
from launch.job import STAGES
from launch.profiles import Profile
from train.batch import RanksError, accepted, settle, ways_out
from train.config import PRESETS, TrainConfig
from train.runs import CONFIG
from train.same_data import changed, in_lines

PLACES = ("raw", "data", "run")  # what stages find of each other
OF_EVALUATION = {"raw", "data", "out"}  # keys that mean something else there


@dataclass(frozen=True)
class Request:
    """What was asked for: settings by key, and where the run is, or is to be."""

    settings: dict[str, str]
    run: Path
    """Absolute, as all paths that jobs are told: they run in another folder."""

    @property
    def begun(self) -> TrainConfig | None:
        """The configuration of a run that is there; None where it is new."""
        if not (self.run / CONFIG).is_file():
            return None
        return load_training([f"config={self.run / CONFIG}"])

    @property
    def raw(self) -> Path:
        """The raw fields."""
        return Path(self.settings.get("raw") or BRECAHAD).resolve()

    @property
    def data(self) -> Path:
        """The prepared data set: the one that is named, or the run's, or, of raw fields that are
        named, one of the run's own; else the one that all runs share."""
        if named := self.settings.get("data"):
            return Path(named).resolve()
        if self.begun:
            return Path(self.begun.data).resolve()
        if self.raw != Path(BRECAHAD).resolve():
            return self.run / "prepared"
        return Path(PREPARED).resolve()

    @property
    def is_prepared(self) -> bool:
        """Whether the data set is there, and nothing is said of how to prepare one."""
        only_prepare = stage_keys("prepare") - stage_keys("train") - stage_keys("evaluate")
        asks = {key for key in self.settings if key in only_prepare or key.startswith("prepare.")}
        return (self.data / DATASET).is_file() and not asks | ({"raw"} & self.settings.keys())


def choose_stages(named: str, request: Request) -> list[str]:
    """Return the stages to run, in their order; without names all, or all but preparation."""
    if not named:
        # a data set that is named is taken for one that is there
        is_left_out = request.is_prepared or (
            "data" in request.settings and "raw" not in request.settings
        )
        return [stage for stage in STAGES if stage != "prepare" or not is_left_out]
    names = named.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise UsageError(f"--stages {named}: unknown {', '.join(unknown)}; {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in names]


def stage_arguments(
    stages: Sequence[str], request: Request, profile: Profile
) -> dict[str, list[str]]:
    """Stage -> its key=value arguments. Raises UsageError for a key that no stage takes."""
    data, run = str(request.data), str(request.run)
    fixed = {
        "prepare": {"out": data, "workers": str(profile.cpus_per_task), "raw": str(request.raw)},
        "train": {"data": data, "run": run},
        "evaluate": {"run": run},
    }
    known = {stage: stage_keys(stage) for stage in STAGES}
    for key, value in request.settings.items():
        if key in PLACES:
            continue
        stage, _, rest = key.partition(".")
        takers = [name for name in STAGES if key in known[name] - OF_EVALUATION]
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
    """A value; where it is a path, from the root."""
    is_path = key in (*OF_EVALUATION, "config")
    return str(Path(value).resolve()) if is_path and value else value


def stage_keys(stage: str) -> set[str]:
    """Every key of a stage."""
    return {key for key, *_ in command_line.describe_fields(stage_config(stage))}


def stage_config(stage: str) -> type:
    """The configuration of a stage; that of evaluation imported late, for torch comes with it."""
    if stage == "prepare":
        return PrepConfig
    if stage == "train":
        return TrainConfig
    from train.evaluation import EvaluateConfig

    return EvaluateConfig


def load_training(settings: Sequence[str]) -> TrainConfig:
    """The configuration of training. Raises UsageError."""
    return command_line.load(TrainConfig, settings, preset_folder=PRESETS)


def check(arguments: dict[str, list[str]]) -> None:
    """Refuse what a stage would refuse, before anything is queued. Raises UsageError."""
    for stage, given in arguments.items():
        presets = PRESETS if stage == "train" else None
        try:
            config: Any = command_line.load(stage_config(stage), given, preset_folder=presets)
            if stage == "prepare":
                check_preparation(config)
            elif stage == "train" and "prepare" not in arguments:
                check_data(Path(config.data))
        except UsageError as error:
            raise UsageError(f"{stage}: {error}") from None


def check_preparation(config: PrepConfig) -> None:
    """Refuse raw fields that are not there, or whose names or number make no splits, and a data set
    that other runs may need as it is. Raises UserError."""
    from data_prep.plan import check_raw

    check_raw(config)
    if differences := changed_settings(config):
        raise UsageError(
            f"{config.out} was prepared in another way ({'; '.join(differences)}), and runs may"
            " need it as it is; give data=DIR for a data set of its own, or leave these settings"
            " out to use it"
        )


def changed_settings(config: PrepConfig) -> list[str]:
    """What differs from the settings that the data set in `out` was prepared with, a line each."""
    from data_prep.records import settings_of_set

    try:
        before = read_description(Path(config.out) / DATASET)
    except DatasetError:
        return []  # none is there, or none that could be lost
    return in_lines(changed(before.settings, settings_of_set(config)))


def check_data(data: Path) -> None:
    """Refuse to train where there is no prepared data set. Raises UsageError."""
    if not (data / DATASET).is_file():
        raise UsageError(
            f"data={data}: no prepared data set; leave data= out, or give raw= too, and it is"
            " prepared there"
        )


def check_ranks(request: Request, profile: Profile, argv: Sequence[str]) -> None:
    """Refuse a number of ranks that cannot share the batch. Raises UsageError with whole commands
    that are accepted."""
    layouts = {nodes * tasks: (nodes, tasks) for nodes, tasks in smaller_layouts(profile)}
    num_ranks = profile.nodes * profile.tasks_per_node

    def load(given: Sequence[str]) -> TrainConfig:
        settings = dict(command_line.split_argument(setting) for setting in given)
        asked = Request(settings, request.run)
        return load_training(stage_arguments(["train"], asked, profile)["train"])

    settings = [f"{key}={value}" for key, value in request.settings.items()]
    try:
        settle(load(settings), num_ranks, request.begun)
    except RanksError as error:
        counts = [num_ranks, *sorted(layouts.keys() - {num_ranks}, reverse=True)]
        commands = []
        for number, given in accepted(settings, counts, load, request.begun):
            wanted = with_layout(argv, profile, *layouts[number])
            commands.append(shlex.join(["python", "launch/submit.py", *wanted, *given]))
        raise UsageError(f"train: {error}; accepted are{ways_out(commands)}") from None


def smaller_layouts(profile: Profile) -> list[tuple[int, int]]:
    """(nodes, ranks a node) up to those of the profile; of two with as many ranks, the one with as
    many ranks a node as asked for comes last."""
    every = [
        (nodes, tasks)
        for nodes in range(1, profile.nodes + 1)
        for tasks in range(1, profile.tasks_per_node + 1)
    ]
    return sorted(every, key=lambda layout: layout[1])


def with_layout(argv: Sequence[str], profile: Profile, nodes: int, tasks: int) -> list[str]:
    """The flags of a command line, without its settings, for so many nodes and ranks a node."""
    flags = flags_of(argv)
    if nodes != profile.nodes:
        flags |= {"--nodes": str(nodes)}
    if tasks != profile.tasks_per_node and profile.gpus:
        flags["--gpus-per-node"] = f"{profile.gpu_type}:{tasks}".lstrip(":")
    elif tasks != profile.tasks_per_node:
        flags["--ranks-per-node"] = str(tasks)
    return [word for flag, value in flags.items() for word in (flag, value) if word]


def flags_of(argv: Sequence[str]) -> dict[str, str]:
    """Flag -> its value, '' where it takes none."""
    flags: dict[str, str] = {}
    flag = ""
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = value
            flag = "" if value or name == "--dry-run" else name
        elif flag:
            flags[flag] = word
            flag = ""
    return flags
