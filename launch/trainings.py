"""The training of each run that is asked for: one, folds, or the trials of a sweep."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import command_line
from common.command_line import UsageError, counted
from data_prep.config import PREPARED, PrepConfig
from data_prep.dataset.folds import Fold, check_fold
from data_prep.dataset.manifest import Dataset, read_dataset
from launch import command_lines
from launch.cluster.profiles import Profile
from launch.command_lines import CommandLine
from launch.job import Stage
from launch.layouts import (
    check_beginning,
    check_begun,
    check_planned,
    resolve_ranks,
    with_batch,
    with_whole_weights,
    without_keys,
)
from launch.record.events import TRIAL
from launch.several.members import (
    ALONE,
    FOLDS_KEY,
    Member,
    begun_in,
    check_folds,
    count_folds,
    has_finished,
    prepared,
    refuse_other_folds,
)
from launch.stages import Request, free_name, stage_arguments, with_contents
from launch.sweeps.journal import check_optuna
from launch.sweeps.plan import Plan
from model.encoder_cache import IMAGENET
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.loop.batch import BATCH_KEYS
from train.runs.several import NAME, STUDY


@dataclass(frozen=True)
class Training:
    """The training of a run."""

    member: Member
    config: TrainConfig
    """With its batch."""
    name: str = "train"
    """Its stage: trial for one of a study, which gives it more settings."""
    tried: Sequence["Training"] = ()
    """Trainings with settings that the study may give it."""
    has_batch: bool = True
    """Whether its job is given its batch: not where the study decides about that."""

    @property
    def is_compared(self) -> bool:
        """Whether it is one of a sweep."""
        match = NAME.match(self.member.name)
        return self.name == TRIAL or bool(match and match[1] == "trial")

    def stage(self, request: Request, profile: Profile) -> Stage:
        """Return what its job runs."""
        own = request.of(self.member)
        arguments = stage_arguments(["train"], own, profile)
        swept = self.tried[0].member.settings if self.tried else {}
        first = [f"{key}={value}" for key, value in swept.items()]
        arguments = {"train": [*arguments["train"], *first]}
        if self.has_batch:
            arguments = with_batch(arguments, self.config)
        else:
            arguments = {"train": with_whole_weights(arguments["train"], self.config)}
        read = with_contents(arguments)["train"]
        return Stage(self.name, str(own.run), without_keys(read, [*swept]))


def trainings_of(
    request: Request, members: Sequence[Member], profile: Profile, argv: Sequence[str]
) -> list[Training]:
    """Return the training of each run. Raises UsageError, which names the run."""
    found = []
    for member in members:
        with member.naming():
            found.append(Training(member, resolve_ranks(request.of(member), profile, argv)))
    return found


def shared_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of training that all trials of a sweep share: all but the run."""
    return [given for given in arguments if not given.startswith("run=")]


def trials_of_study(
    request: Request,
    members: Sequence[Member],
    profile: Profile,
    argv: Sequence[str],
    plan: Plan,
) -> list[Training]:
    """Return the trainings of a study's trials, all alike until the study gives them settings.

    Raises UserError where Optuna is not installed, UsageError where settings that the study may
    give them cannot work.
    """
    check_optuna()
    has_batch = not {*BATCH_KEYS, "preset"} & plan.space.values.keys()
    if not has_batch and profile.least_nodes < profile.most_nodes:
        fixed = command_lines.parse(argv).with_flags({"nodes": profile.most_nodes})
        raise UsageError(
            f"--sweep: a trial has its own batch, for the nodes on which it starts first, and could"
            f" not go on with more of them; give one number of nodes:\n  {fixed}"
        )
    begun = begun_in(request.run) if has_batch else None
    tried = []
    for settings in plan.space.tried():
        member = Member("a trial", settings | ({"fold": "0"} if plan.has_folds else {}))
        own = request.of(member)
        with member.naming():
            config = resolve_ranks(replace(own, run=begun or own.run), profile, argv)
        tried.append(Training(member, config))
    # of what is swept the first values: the study gives each trial its own
    shared = tried[0].config
    return [Training(member, shared, TRIAL, tried, has_batch) for member in members]


def tried_configs(trainings: Sequence[Training]) -> list[TrainConfig]:
    """Return the configuration of each training; of a study, those that it may give one, among them
    each encoder with ImageNet's weights if one may have these."""
    configs = [tried.config for each in trainings[:1] for tried in each.tried]
    networks = [config.model for config in configs]
    with_imagenet = [config for config in configs if config.model.weights == IMAGENET][:1]
    configs += [
        replace(config, model=replace(config.model, encoder=network.encoder))
        for config in with_imagenet
        for network in networks
        if network.name == config.model.name
    ]
    return configs or [training.config for training in trainings]


def check_trainings(
    trainings: Sequence[Training],
    request: Request,
    argv: Sequence[str],
    preparation: Sequence[str],
) -> None:
    """Refuse what a training would refuse: a fold that is not there, crops that do not fit its data
    set if that is there, other settings than a run began with, a model that it may not begin with.

    `preparation`: the arguments of data_prep; none if the data set is there by now. Raises
    UserError; a UsageError names the run.
    """
    if not trainings:
        return
    dataset = None if preparation else read_dataset(request.data)
    check_fold_chosen(trainings[0].tried or trainings, request, argv, preparation, dataset)
    if trainings[0].is_compared:
        check_compared((trainings[0].tried or trainings)[0], request, argv, preparation, dataset)
    told: dict[str, None] = {}
    check_networks(tried_configs(trainings))
    for training in trainings[0].tried or trainings:  # trials of a study are alike by now
        with training.member.naming():
            own = request.of(training.member)
            if dataset:
                for fold in folds_trained(training, trainings[0], dataset):
                    check_fitting(replace(training.config, fold=fold), dataset.of_fold(fold))
            else:
                check_planned(training.config, preparation)
            if own.begun:
                check_begun(own, training.config, argv, is_prepared=not preparation)
            told |= dict.fromkeys(check_beginning(own, training.config, argv, preparation))
    for line in told:
        print(line, file=sys.stderr)


def check_networks(configs: Sequence[TrainConfig]) -> None:
    """Raise UserError for a network that cannot be built, or trained on its microbatches."""
    crops = [min(2, each.batch.microbatch_size) for each in configs]  # it is about one or more
    for model, size in dict.fromkeys(zip((each.model for each in configs), crops, strict=True)):
        if model.name != "unet":
            from model.library import check_network  # it takes seconds

            check_network(model, size)


def folds_trained(training: Training, first: Training, dataset: Dataset) -> Iterator[Fold]:
    """Yield the folds that a training trains on: a trial of a study with folds trains on all."""
    yield training.config.fold
    if first.tried and "fold" in training.member.settings:
        yield from range(1, len(dataset.description.folds))


def check_fold_chosen(
    trainings: Sequence[Training],
    request: Request,
    argv: Sequence[str],
    preparation: Sequence[str],
    dataset: Dataset | None,
) -> None:
    """Raise UsageError for a training on no fold where the cases are, or will be, dealt to folds,
    with the commands that choose; and for a fold that there will not be."""
    if dataset:
        folds: int | str = len(dataset.description.folds)
    else:
        folds = command_line.load(PrepConfig, preparation).split.folds
    for training in trainings if folds else []:
        if training.config.fold == "none":
            raise UsageError(
                f"data={request.data}: its cases are dealt to folds (split.folds={folds}); train"
                f" every fold, or choose one:{choosing_a_fold(folds, argv)}"
            )
    if preparation:
        number = count_folds(str(folds), request.data, preparation) if folds else 0
        for training in trainings:
            check_fold(
                [[]] * number, training.config.fold, f"data={request.data}", Path(request.data)
            )


def choosing_a_fold(folds: int | str, argv: Sequence[str]) -> str:
    """Return commands that train every fold, and one, as lines of a message."""
    command = command_lines.parse(argv).without("train.fold")
    every = command.without("fold").with_flags({"folds": folds})
    one = replace(command, settings=command.settings | {"fold": "0"})
    return f"\n  {every}\n  {one}"


def check_compared(
    first: Training,
    request: Request,
    argv: Sequence[str],
    preparation: Sequence[str],
    dataset: Dataset | None,
) -> None:
    """Raise UsageError where the trials of a sweep have no validation to be compared by."""
    data, compared = f"data={request.data}", "trials of a sweep are compared by their validation"
    fold = first.config.fold
    split = command_line.load(PrepConfig, preparation).split if preparation else None
    if fold == "all":
        folds = len(dataset.description.folds) if dataset else split.folds if split else 0
        raise UsageError(
            f"fold=all: {compared}, and it trains on all cases; train every fold, or one:"
            + choosing_a_fold(folds, argv)
        )
    if split and not (split.val or split.val_cases):
        raise UsageError(f"split.val=0: {compared}; give a fraction for it, as in split.val=0.15")
    if not dataset:
        return
    val = dataset.of_fold(fold).split("val", originals_only=True)
    if not val:
        other, _ = other_set(request, argv, {"split.val": "0.15"})
        raise UsageError(
            f"{data}: {compared}, and it has no validation split; prepare another one:\n  {other}"
        )
    if not any(sample.foreground_px for sample in val):
        raise UsageError(
            f"{data}: {compared}, and nothing is annotated in its validation split; prepare another"
            " one, with other cases in split.val_cases"
        )


def other_set(
    request: Request, argv: Sequence[str], more: Mapping[str, str]
) -> tuple[CommandLine, str]:
    """Return the command that prepares another data set beside the one that is there, and the raw
    fields that it names; ... if they are not known."""
    is_default = request.data == Path(PREPARED).resolve() and request.raw.is_dir()
    is_known = "raw" in request.settings or is_default
    raw = str(request.raw) if is_known else "<your raw fields>"
    command = command_lines.parse(argv)
    other = {"raw": raw, "data": str(free_name(request.data)), **more}
    return replace(command, settings=command.settings | other), raw


def still_to_train(
    trainings: Sequence[Training], request: Request, profile: Profile
) -> list[Stage]:
    """Return what trains the runs, but those of several that have finished, which is told."""
    is_alone = [each.member for each in trainings] == [ALONE]
    left = list(trainings) if is_alone else unfinished(trainings, request)
    if len(left) < len(trainings):
        finished = counted(len(trainings) - len(left), "run")
        print(f"{finished} of {len(trainings)} finished before, left as they are", file=sys.stderr)
    return [each.stage(request, profile) for each in left]


def unfinished(trainings: Sequence[Training], request: Request) -> list[Training]:
    """Return the trainings of several runs that have not been trained before."""
    states: dict[str, str] = {}
    if any(each.name == TRIAL for each in trainings) and (request.run / STUDY).is_file():
        from launch.sweeps.study import trial_states  # it takes long

        states = trial_states(request.run)
    return [
        each
        for each in trainings
        if states.get(each.member.name) not in ("complete", "pruned")
        and not (
            each.name != TRIAL and has_finished(request.of(each.member).run, each.config.epochs)
        )
    ]


def with_folds(request: Request, folds: str, argv: Sequence[str]) -> Request:
    """Return the request with the folds to prepare, unless the data set has them. Raises UsageError
    for a data set that has others."""
    check_folds(folds, request.settings)
    if before := prepared(request.data):
        other, raw = other_set(request, argv, {})
        refuse_other_folds(folds, request.data, raw, before, other.words)
    if before and not request.is_to_prepare:
        return request
    return replace(request, settings={**request.settings, FOLDS_KEY: folds})
