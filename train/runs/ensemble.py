"""Several runs as one model: the mean of the probabilities of their networks.

run=CV          the folds of a cross-validation; CV/ensemble.json holds their thresholds
runs=[A,B]      any runs, exported models and folders of folds that label alike
run=FILE        an exported ensemble (train.exchange.exported_model)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.command_line import UsageError, named
from data_prep.config import SPLITS
from data_prep.dataset.description import Description
from data_prep.images.resolution import is_same
from data_prep.raw import natural_key
from model.encoder_cache import EncoderSource
from model.ensemble import Ensemble
from train.checkpoints.digests import model_sha256
from train.config import TrainConfig
from train.exchange import exported_model
from train.exchange.origin import Origin
from train.metrics.scores import DEFAULT_THRESHOLD
from train.ranks.distributed import Ranks
from train.runs.history import read_progress
from train.runs.newest import CONFIG, is_exported, named_or_newest
from train.runs.run_folder import ExportedModel, LoadedModel, Run, read_run
from train.runs.same_data import as_text, labelling_differences
from train.runs.several import expanded, fold_name, members_of
from train.runs.thresholds import (
    ClassThresholds,
    OutOfFold,
    Thresholds,
    damaged,
    median_of,
    read_out_of_fold,
)

LABELLED = ("labels", "radius_px", "uint16_white", "mpp", "stain_norm", "stain_reference")
"""What a model's output means; members have it in common."""


@dataclass(frozen=True)
class EnsembleRun(Run):
    """Several runs as one model."""

    runs: tuple[Run, ...]
    """In the natural order of their names."""

    @property
    def name(self) -> str:
        """The names of the members, with those of their folders where they are alike."""
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            names = [f"{run.path.parent.name}/{run.name}" for run in self.runs]
        return named(names)

    @property
    def members(self) -> list[Run]:
        """The runs that it is the mean of."""
        return [*self.runs]

    @property
    def description(self) -> Path:
        """File that describes the data set of the first member."""
        return self.runs[0].description

    @property
    def evaluation(self) -> Path:
        """Folder for the results of evaluations: there is none of its own."""
        raise UsageError("runs=[...] needs out=..., the folder of the results")

    def load_model(self, checkpoint: str, ranks: Ranks) -> LoadedModel:
        """Load the models of all members, see Run. The state holds their LoadedModels as `members`,
        the thresholds of the ensemble, and `notes` about both."""
        on_cpu = replace(ranks, device=torch.device("cpu"))
        loaded = [run.load_model(checkpoint, on_cpu) for run in self.runs]
        model = Ensemble([each.model for each in loaded])
        thresholds, notes = self.thresholds(loaded)
        tiles = {run.config.tile for run in self.runs}
        if len(tiles) > 1:
            size = f"size_px={self.config.tile.size_px} overlap_px={self.config.tile.overlap_px}"
            notes.append(f"members have other tile.* settings; the largest is used: {size}")
        model.place(ranks.device)
        state = {"metrics": {}, "members": loaded, "thresholds": thresholds, "notes": notes}
        return LoadedModel(model, self.path, state)

    def thresholds(self, loaded: Sequence[LoadedModel]) -> tuple[Thresholds, list[str]]:
        """Return the thresholds of the loaded members together, and notes about them."""
        return median_of([each.state for each in loaded], self.class_names), []


class FoldsRun(EnsembleRun):
    """The folds of a cross-validation, in one folder."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def evaluation(self) -> Path:
        """Folder for the results of evaluations."""
        return self.path / "evaluation"

    def thresholds(self, loaded: Sequence[LoadedModel]) -> tuple[Thresholds, list[str]]:
        """Return those that an evaluation of these members chose out of fold, else the default."""
        found = read_out_of_fold(self.path)
        if found and found.is_of([model_sha256(each.model) for each in loaded]):
            return self.read(found), []
        why = "were chosen for other checkpoints" if found else "are not chosen yet"
        note = (
            f"the thresholds of {self.path} {why}, so {DEFAULT_THRESHOLD} is used; python -m"
            f" train.evaluate run={self.path} chooses them out of fold"
        )
        default = ClassThresholds.default(len(self.class_names), "not_chosen")
        return Thresholds(default, default), [note]

    def read(self, found: OutOfFold) -> Thresholds:
        """Read the thresholds of ensemble.json. Raises UserError if they are of other classes."""
        try:
            return found.thresholds(self.class_names)
        except ValueError as error:
            raise damaged(self.path, str(error)) from None


@dataclass(frozen=True)
class ExportedEnsemble(EnsembleRun):
    """A file of train.export that holds several models."""

    chosen: Thresholds

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def evaluation(self) -> Path:
        """Folder for the results of evaluations, beside the file."""
        return ExportedModel(self.path, self.config, self.data, self.origins, None).evaluation

    def thresholds(self, loaded: Sequence[LoadedModel]) -> tuple[Thresholds, list[str]]:
        """Return those that the file holds."""
        return self.chosen, []


def about_model(run: Run, loaded: LoadedModel) -> dict[str, Any]:
    """Say in results which model this is: its run, checkpoint and digests, and where the weights
    are from that its encoder began with, if they were not random; or its members."""
    members = loaded.state.get("members")
    which = (
        {"members": [about_model(*pair) for pair in zip(run.members, members, strict=True)]}
        if members
        else loaded.about_checkpoint()
    )
    encoder = {"encoder": asdict(run.encoder)} if run.encoder else {}
    return {"run": run.name, **which, "model_sha256": model_sha256(loaded.model), **encoder}


def named_run(run: str, runs: Sequence[str], *, may_lack_folds: bool = False) -> Run:
    """Read the run that `run` or `runs` name, the newest for neither; several as one.

    Raises UserError if one cannot be read, members label otherwise, or, unless `may_lack_folds`, a
    folder has not all of its folds.
    """
    if len(runs) == 1 and members_of(Path(runs[0])):
        run, runs = runs[0], []
    if runs:
        found: list[Run] = []
        for path in expanded(runs):
            found += folds_in(path, may_lack_folds=may_lack_folds) or read_any(path).members
        return as_one(found)
    path = named_or_newest(run)
    if not (members := folds_in(path, may_lack_folds=may_lack_folds)):
        return read_any(path)
    check_alike(members)
    return FoldsRun(path, *settings_of(members), tuple(members))


def folds_in(folder: Path, *, may_lack_folds: bool) -> list[Run]:
    """Read the folds in a folder; none if it has none. Raises UserError as check_whole()."""
    members = [read_run(path) for path in members_of(folder)]
    if members:
        check_whole(folder, members, may_lack_folds=may_lack_folds)
    return members


def read_any(path: Path) -> Run:
    """Read a run's folder, or an exported model or ensemble. Raises UserError if it is neither."""
    if not is_exported(path):
        return read_run(path)
    found = exported_model.read_members(path)
    if (stored := found.ensemble) is None:
        return read_run(path)
    members = [
        ExportedModel(path, about.config, about.data, about.origins, about.encoder, number)
        for number, about in enumerate(found.members)
    ]
    check_alike(members)
    try:
        thresholds = Thresholds(
            ClassThresholds(tuple(stored.thresholds), stored.chosen_on),
            ClassThresholds(tuple(stored.nuclei_thresholds), stored.nuclei_chosen_on),
        )
        thresholds.check_number(len(members[0].class_names))
    except ValueError as error:
        raise exported_model.unusable(path, str(error)) from None
    return ExportedEnsemble(path, *settings_of(members), tuple(members), thresholds)


def as_one(runs: Sequence[Run]) -> Run:
    """Return several runs as one model; one run as it is. Raises UsageError if they do not fit."""
    members = sorted(runs, key=order)
    seen = set()
    for run in members:
        if (place := (run.path.resolve(), run.name)) in seen:
            raise UsageError(f"runs: {run.path} is named twice")
        seen.add(place)
    if len(members) == 1:
        return members[0]
    check_alike(members)
    return EnsembleRun(members[0].path, *settings_of(members), tuple(members))


def order(run: Run) -> tuple[Any, Any]:
    """Return the key that sorts runs by their names, and those of one name by their folders."""
    return natural_key(run.name), natural_key(str(run.path.resolve()))


def check_alike(runs: Sequence[Run]) -> None:
    """Raise UsageError that names what differs unless all runs label alike."""
    first = runs[0]
    for run in runs[1:]:
        if lines := "; ".join(disagreements(first.data, run.data)):
            raise UsageError(
                f"runs: {first.path} and {run.path} are labelled in other ways ({lines}); name runs"
                " of data prepared with the same settings"
            )


def disagreements(one: Description, other: Description) -> list[str]:
    """List what differs between the labellings of two data sets, also where their settings do
    not say so."""
    if lines := labelling_differences(one, other):
        return lines
    pairs = {key: (getattr(one.labelling, key), getattr(other.labelling, key)) for key in LABELLED}
    before, now = pairs["mpp"]
    if before and now and is_same(before, now):
        del pairs["mpp"]
    return [f"{key}: {as_text(a)} -> {as_text(b)}" for key, (a, b) in pairs.items() if a != b]


def settings_of(
    members: Sequence[Run],
) -> tuple[TrainConfig, Description, list[Origin], EncoderSource | None]:
    """Return the settings of an ensemble, those of its first member with the largest tile; its
    data: cases that any member was trained on are for training; where its weights come from; and
    those of its encoders, which only each member knows."""
    first = members[0]
    largest = max(
        (run.config.tile for run in members),
        key=lambda tile: (tile.size_px, tile.overlap_px, -tile.batch),
    )
    cases: dict[str, list[str]] = {}
    for split in SPLITS:  # train first
        listed = dict.fromkeys(case for run in members for case in run.data.cases.get(split, []))
        before = {case for earlier in cases.values() for case in earlier}
        cases[split] = [case for case in listed if case not in before]
    origins = [origin for run in members for origin in run.origins]
    return replace(first.config, tile=largest), replace(first.data, cases=cases), origins, None


def check_whole(folder: Path, members: Sequence[Run], *, may_lack_folds: bool = False) -> None:
    """Raise UsageError unless a folder holds the folds of one deal, each once, trained to its end;
    and all of them, unless it `may_lack_folds`."""
    check_one_deal(folder, members)
    num_folds = len(members[0].data.folds)
    there = {run.path.name for run in members}
    missing = [fold for fold in range(num_folds) if fold_name(fold) not in there]
    if missing and not may_lack_folds:
        raise UsageError(
            f"run={folder}: of {num_folds} folds {len(there)} are there, without"
            f" {named(map(fold_name, missing))}; train it: python -m train fold={missing[0]}"
            f" run={folder / fold_name(missing[0])} data={members[0].config.data}, or name those"
            f" that are there: 'runs=[{folder}/fold-*]'"
        )
    for run in members:
        if run.data.folds and run.path.name != f"fold-{run.config.fold}":
            raise UsageError(
                f"run={run.path}: was trained with fold={run.config.fold}; name runs of other"
                f" folds with runs=[{folder}/fold-*]"
            )
        check_finished(run.path)


def check_one_deal(folder: Path, members: Sequence[Run]) -> None:
    """Raise UsageError unless all runs are of one data set, dealt in one way: else cases could be
    tested by none, or twice."""
    first = members[0]
    for run in members[1:]:
        same_content = run.data.content_sha256 == first.data.content_sha256
        if same_content and run.data.folds == first.data.folds:
            continue
        what = "cases dealt to other folds" if same_content else "another data set"
        raise UsageError(
            f"run={folder}: {run.path.name} is of {what} than {first.path.name}, so their folds do"
            f" not add up; train them on one data set, each with run={folder}/fold-K and fold=K"
        )


def check_finished(run: Path) -> None:
    """Raise UsageError for a run whose training is not at its end."""
    now = read_progress(run)
    if now is None or not now.is_finished:
        at = f"is at step {now.step} of {now.total_steps}" if now else "has no progress.json"
        raise UsageError(
            f"run={run}: its training {at}; go on with it: python -m train"
            f" config={run / CONFIG} run={run}, or name the runs as they are:"
            f" 'runs=[{run.parent}/fold-*]'",
            can_heal=True,
        )
