"""Nodes and ranks per node: what training gets, and which numbers would be accepted instead."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from common import command_line
from common.command_line import UsageError, UserError
from data_prep.config import SPLITS, PrepConfig
from data_prep.dataset.description import DATASET, Description, labelling_of, read_description
from data_prep.dataset.manifest import read_dataset
from launch import command_lines
from launch.cluster.profiles import Profile
from launch.command_lines import CommandLine, settings_of
from launch.stages import Request, load_training, naming, stage_arguments
from train.checkpoints.published import published_checkpoints, step_of
from train.config import TrainConfig, whole_paths, with_pipeline_read
from train.crops.fitting import check_class_weights, steps_per_epoch
from train.loop.batch import BATCH_KEYS, RanksError, accepted_starts, as_lines, resolve_batch
from train.loop.schedule import about_schedule
from train.runs.newest import CHECKPOINTS
from train.runs.same_data import OtherRunError
from train.runs.same_run import check_same_run
from train.runs.warm_start import check_file_exists, check_init, is_to_begin, needs_encoder


def resolve_ranks(request: Request, profile: Profile, argv: Sequence[str]) -> TrainConfig:
    """Return the configuration of training, with the batch for its largest number of ranks.

    A job may start on fewer nodes than it may have, so the numbers are not left to its start.
    Raises UsageError, which shows whole commands that are accepted, for too many ranks.
    """
    # the last layout for a number of ranks is kept: it has the most ranks per node
    layouts = {nodes * tasks: (nodes, tasks) for nodes, tasks in smaller_layouts(profile)}
    num_ranks = profile.most_ranks

    def load(given: Sequence[str]) -> TrainConfig:
        asked = replace(request, settings=settings_of(given))
        return load_training(stage_arguments(["train"], asked, profile)["train"])

    settings = [f"{key}={value}" for key, value in request.settings.items()]
    try:
        return resolve_batch(load(settings), num_ranks, request.begun)
    except RanksError as error:
        counts = [num_ranks, *sorted(layouts.keys() - {num_ranks}, reverse=True)]
        command = command_lines.parse(argv)
        commands = [
            str(with_layout(command, profile, *layouts[number]).with_settings(given))
            for number, given in accepted_starts(settings, counts, load, request.begun)
        ]
        accepted = f"; accepted are{as_lines(commands)}" if commands else ""
        raise UsageError(f"train: {error}{accepted}") from None


def check_begun(
    request: Request, config: TrainConfig, argv: Sequence[str], *, is_prepared: bool
) -> None:
    """Refuse settings or data that are not those of a run that has begun, and say what more or
    fewer epochs do to its learning rate.

    Its job would refuse them on the node. `config`: that of training, with its batch;
    `is_prepared`: whether the data set is there by now. Raises UsageError, which shows whole
    commands that are accepted.
    """
    if not (request.run / DATASET).is_file():
        return
    with showing_commands(request, argv):
        data = data_of_fold(config) if is_prepared else None
        config, _ = check_same_run(with_pipeline_read(config), data, config.crop.pipeline)
    if told := schedule_of_begun(request, config):
        print(f"train: {told}", file=sys.stderr)


def check_beginning(
    request: Request, config: TrainConfig, argv: Sequence[str], preparation: Sequence[str]
) -> list[str]:
    """Refuse a model (init=) that training would refuse on the node: one that has seen cases which
    the run is measured on, or of another network; and a file of weights that is not there. Returns
    lines for the user.

    `preparation`: the arguments of the data set's preparation; none if it is there by now. Raises
    UserError, with whole commands that are accepted.
    """
    if needs_encoder(config):
        with naming("train"):
            check_file_exists(config.model.weights)
    if not is_to_begin(config):
        return []
    with showing_commands(request, argv):
        data = planned_data(preparation) if preparation else data_of_fold(config)
        return check_init(config, data)[1]


def planned_data(preparation: Sequence[str]) -> Description | None:
    """Return what is known of a data set before it is prepared; None where cases are dealt to folds
    by what is annotated in them. Raises UserError."""
    from data_prep.images.masks import label_values
    from data_prep.plan import check_raw, with_reference_read
    from data_prep.records import settings_of_set

    config = command_line.load(PrepConfig, preparation)
    if config.split.folds:
        return None
    cases: dict[str, list[str]] = {split: [] for split in SPLITS}
    for case, split in check_raw(config).items():
        cases[split].append(case)
    settings = settings_of_set(with_reference_read(config))
    labelling = labelling_of(label_values(config.classes, config.labels), settings, None)
    return Description(labelling, cases, "", settings)


def check_planned(config: TrainConfig, preparation: Sequence[str]) -> None:
    """Refuse weights that are not those of the classes of a data set before it is prepared. Raises
    UsageError."""
    if not config.loss.class_weights:
        return
    from data_prep.images.masks import label_values

    planned = command_line.load(PrepConfig, preparation)
    labels = label_values(planned.classes, planned.labels)
    check_class_weights(config.loss, labels, Path(planned.out))


def data_of_fold(config: TrainConfig) -> Description:
    """Return the description of the data set, as the fold that is trained sees it."""
    folder = Path(config.data)
    return read_description(folder / DATASET).of_fold(config.fold, f"data={folder}", folder)


@contextmanager
def showing_commands(request: Request, argv: Sequence[str]) -> Iterator[None]:
    """While this context lasts, add whole commands that are accepted to what training refuses."""
    try:
        yield
    except OtherRunError as error:
        settings = [f"{key}={value}" for key, value in request.settings.items()]
        command = command_lines.parse(argv)
        commands = [str(command.with_settings(given)) for given in error.accepted(settings)]
        raise UsageError(f"train: {error}{as_lines(commands)}") from None


def schedule_of_begun(request: Request, config: TrainConfig) -> str:
    """Say what becomes of the learning rate of a begun run with these settings; '' if nothing is to
    be said, or if the data set is not there by now: then its job says it."""
    with suppress(UserError):
        dataset = read_dataset(Path(config.data)).of_fold(config.fold)
        saved = published_checkpoints(request.run / CHECKPOINTS)
        step, of_epoch = step_of(saved[-1]) if saved else 0, steps_per_epoch(config, dataset)
        if step < of_epoch * config.epochs:
            return about_schedule(config, request.begun, of_epoch, step)
    return ""


def with_batch(
    arguments: dict[str, list[str]], resolved: TrainConfig | None
) -> dict[str, list[str]]:
    """Return the arguments of the stages, those of training with the numbers of its batch, and with
    the whole paths of what it begins with."""
    if resolved is None:
        return arguments
    size, num_microbatches = resolved.batch
    batch = [f"batch_size={size}", f"microbatches={num_microbatches}"]
    if resolved.batch_per_rank:  # of a preset: it is in batch_size now
        batch.append("batch_per_rank=0")
    others = without_keys(arguments["train"], BATCH_KEYS)
    return arguments | {"train": with_whole_weights([*others, *batch], resolved)}


def with_whole_weights(settings: Sequence[str], config: TrainConfig) -> list[str]:
    """Return the settings of a training with the whole paths of what it begins with, which a file
    or a preset may give too."""
    paths = whole_paths(config)
    return [*without_keys(settings, [*paths]), *(f"{key}={paths[key]}" for key in paths)]


def without_keys(settings: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the settings but those of some keys."""
    return [setting for setting in settings if command_line.split_argument(setting)[0] not in keys]


def smaller_layouts(profile: Profile) -> list[tuple[int, int]]:
    """Return each (nodes, ranks per node) up to the profile's, fewest ranks per node first."""
    every = [
        (nodes, tasks)
        for nodes in range(1, profile.most_nodes + 1)
        for tasks in range(1, profile.tasks_per_node + 1)
    ]
    return sorted(every, key=lambda layout: layout[1])


def with_layout(command: CommandLine, profile: Profile, nodes: int, tasks: int) -> CommandLine:
    """Return a command line changed to these nodes and ranks per node."""
    changes: dict[str, int | str] = {}
    if nodes != profile.most_nodes:
        is_range = profile.least_nodes < min(nodes, profile.most_nodes)
        changes["nodes"] = f"{profile.least_nodes}-{nodes}" if is_range else nodes
    if tasks != profile.tasks_per_node and profile.gpus:
        changes["gpus_per_node"] = f"{profile.gpu_type}:{tasks}".lstrip(":")
    elif tasks != profile.tasks_per_node:
        changes["ranks_per_node"] = tasks
    return command.with_flags(changes)
