"""The training of each run that is asked for: one, folds, or the trials of a sweep."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import UsageError, counted
from data_prep.config import PREPARED
from data_prep.dataset.manifest import read_dataset
from launch import command_lines
from launch.cluster.profiles import Profile
from launch.job import Stage
from launch.layouts import check_beginning, check_begun, resolve_ranks, with_batch
from launch.record.events import TRIAL
from launch.several.asked import Several
from launch.several.members import (
    ALONE,
    FOLDS_KEY,
    Member,
    check_folds,
    has_finished,
    prepared,
    refuse_other_folds,
)
from launch.stages import Request, free_name, stage_arguments, with_pipelines_read
from launch.sweeps.journal import load_optuna
from launch.sweeps.plan import Plan
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.runs.newest import CONFIG
from train.runs.several import runs_of


@dataclass(frozen=True)
class Training:
    """The training of a run."""

    member: Member
    config: TrainConfig
    """With its batch."""
    name: str = "train"
    """Its stage: trial for one of a study, which gives it more settings."""

    def is_finished(self, request: Request) -> bool:
        """Return whether it has been trained before. `request`: that of all runs."""
        if self.name == TRIAL:
            from launch.sweeps.study import COMPLETE, PRUNED, trial_states  # it takes long

            ended = trial_states(request.run).get(self.member.name)
            return ended in (COMPLETE, PRUNED)
        return has_finished(request.of(self.member).run, self.config.epochs)

    def stage(self, request: Request, profile: Profile) -> Stage:
        """Return what its job runs."""
        own = request.of(self.member)
        arguments = with_batch(stage_arguments(["train"], own, profile), self.config)
        return Stage(self.name, str(own.run), with_pipelines_read(arguments)["train"])


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

    Raises UserError where Optuna is not installed.
    """
    load_optuna()
    (first,) = trainings_of(request, members[:1], profile, argv)
    config = replace(first.config, fold=0) if plan.has_folds else first.config
    return [Training(member, config, TRIAL) for member in members]


def check_trainings(
    trainings: Sequence[Training],
    request: Request,
    argv: Sequence[str],
    preparation: Sequence[str],
) -> None:
    """Refuse what a training would refuse: crops that do not fit its data set if that is there,
    other settings than a run began with, a model that it may not begin with.

    `preparation`: the arguments of data_prep; none if the data set is there by now. Raises
    UserError; a UsageError names the run.
    """
    dataset = read_dataset(request.data) if trainings and not preparation else None
    is_study = bool(trainings) and trainings[0].name == TRIAL  # whose trials are alike by now
    told: dict[str, None] = {}
    for training in trainings[:1] if is_study else trainings:
        with training.member.naming():
            own = request.of(training.member)
            if dataset:
                check_fitting(training.config, dataset.of_fold(training.config.fold))
            if own.begun and not is_study:
                check_begun(own, training.config, argv, is_prepared=not preparation)
            told |= dict.fromkeys(check_beginning(own, training.config, argv, preparation))
    for line in told:
        print(line, file=sys.stderr)


def still_to_train(
    trainings: Sequence[Training], request: Request, profile: Profile
) -> list[Stage]:
    """Return what trains the runs, but those of several that have finished, which is told."""
    is_alone = [each.member for each in trainings] == [ALONE]
    left = [each for each in trainings if is_alone or not each.is_finished(request)]
    if len(left) < len(trainings):
        finished = counted(len(trainings) - len(left), "run")
        print(f"{finished} of {len(trainings)} finished before, left as they are", file=sys.stderr)
    return [each.stage(request, profile) for each in left]


def check_folder(request: Request, several: Several) -> None:
    """Raise UsageError for one run in a folder of several, and for several in the folder of one."""
    if several.is_alone and runs_of(request.run):
        raise UsageError(
            f"run={request.run}: a folder of several runs; give --folds or --sweep again, or name"
            " one of them, or another run="
        )
    if not several.is_alone and (request.run / CONFIG).is_file():
        raise UsageError(
            f"run={request.run}: a run; its folder cannot hold several others; name another run="
        )


def with_folds(request: Request, folds: str, argv: Sequence[str]) -> Request:
    """Return the request with the folds to prepare, unless the data set has them. Raises UsageError
    for a data set that has others."""
    check_folds(folds, request.settings)
    if before := prepared(request.data):
        is_known = "raw" in request.settings or request.data == Path(PREPARED).resolve()
        raw = str(request.raw) if is_known else "<your raw fields>"
        other = {"raw": raw, "data": str(free_name(request.data))}
        command = command_lines.parse(argv)
        more = replace(command, settings=command.settings | other).words
        refuse_other_folds(folds, request.data, raw, before, more)
    if before and not request.is_to_prepare:
        return request
    return replace(request, settings={**request.settings, FOLDS_KEY: folds})
