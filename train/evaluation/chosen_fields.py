"""The fields that a run is evaluated on, as the settings choose them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from common.command_line import UsageError, named
from data_prep.annotations.formats import READERS
from data_prep.annotations.shapes import ShapeReader
from data_prep.cases.names import unmatched_text
from data_prep.config import SPLITS
from data_prep.dataset.description import Labelling
from data_prep.dataset.manifest import Dataset, read_dataset
from train.evaluation.config import EvaluateConfig
from train.evaluation.model_evaluation import Chosen, Group
from train.exchange.origin import trained_among
from train.fields.whole_fields import WholeField, notes_on_raw, prepared_fields, raw_fields
from train.runs.ensemble import as_one, named_run
from train.runs.run_folder import Run
from train.runs.same_data import check_same_data


def choose_groups(config: EvaluateConfig) -> tuple[Run, list[Group]]:
    """Return the run, or several as one model, and the groups that are measured: itself on the
    chosen fields; or, of several on their own splits, those that have the same cases there.

    Raises UserError where a figure would be no figure.
    """
    of_own_folds = bool(config.cases) and not config.raw and not config.data
    run = named_run(config.run, config.runs, may_lack_folds=of_own_folds)
    if len(run.members) == 1 or config.raw or not has_own_data(config, run):
        chosen = choose_fields(config, run)
        if len(run.members) > 1 and not config.raw:
            check_held_out(config, sorted({field.case for field in chosen.fields}), run.members)
        return run, [Group(run, chosen)]
    return run, of_own_splits(config, run.members)


def has_own_data(config: EvaluateConfig, run: Run) -> bool:
    """Whether runs are measured on the data set that they were trained on, if need be moved."""
    if not config.data:
        return True
    content = read_dataset(Path(config.data)).description.content_sha256
    return all(member.data.content_sha256 == content for member in run.members)


def of_own_splits(config: EvaluateConfig, runs: Sequence[Run]) -> list[Group]:
    """Group runs by the cases that they have in the split. Raises UsageError for runs that have
    some of their cases in common, and for a case that a run of its group was trained on."""
    found: dict[tuple[str, ...], list[tuple[Run, Chosen]]] = {}
    for run in runs:
        chosen = choose_fields(replace(config, cases=[]), run)
        cases = sorted({field.case for field in chosen.fields})
        found.setdefault(tuple(cases), []).append((run, chosen))
    check_apart({cases: [run for run, _ in members] for cases, members in found.items()})
    groups = []
    for tested, members in found.items():
        group, (first, chosen) = [run for run, _ in members], members[0]
        check_held_out(config, tested, group)
        for run in group[1:]:
            if run.data.content_sha256 != first.data.content_sha256:
                raise UsageError(
                    f"runs: {first.path} and {run.path} test the same cases in data sets that"
                    " differ; name one for both with data=, or measure them on raw=..."
                )
        groups.append(Group(as_one(group), chosen))
    return [group for group in groups_with(groups, config.cases) if group.chosen.fields]


def groups_with(groups: Sequence[Group], cases: Sequence[str]) -> list[Group]:
    """Return the groups with only their fields of these cases. Raises UsageError as of_cases."""
    kept = {field.name for field in of_cases(all_fields(groups), cases)}
    return [
        replace(
            group,
            chosen=replace(
                group.chosen, fields=[each for each in group.chosen.fields if each.name in kept]
            ),
        )
        for group in groups
    ]


def all_fields(groups: Sequence[Group]) -> list[WholeField]:
    """Return the fields of all groups."""
    return [field for group in groups for field in group.chosen.fields]


def check_apart(groups: Mapping[tuple[str, ...], Sequence[Run]]) -> None:
    """Raise UsageError if two groups have a case in common."""
    for (others, (other, *_)), (cases, (run, *_)) in combinations(groups.items(), 2):
        tested = replace(other.as_origin("", 0, ""), train=[*others])
        if both := sorted(trained_among(cases, run.data, [tested])):
            raise UsageError(
                f"runs: {both[0]} is tested by {other.path} and by {run.path}, but not all of"
                " their cases; name runs that test the same cases (one ensemble) or others"
                " (folds), or measure all as one ensemble on raw=..."
            )


def check_held_out(config: EvaluateConfig, cases: Sequence[str], runs: Sequence[Run]) -> None:
    """Raise UsageError if a run was trained on a case that its group is tested on."""
    for run in runs:
        if config.split != "train" and (seen := run.trained_among(cases)):
            raise UsageError(
                f"runs: {run.path} was trained on {named(seen)}, which"
                f" {'it and others test' if len(runs) > 1 else 'it tests'}: no figure of new"
                " patients; leave it out"
            )


def choose_fields(config: EvaluateConfig, run: Run) -> Chosen:
    """Return the fields to evaluate. Raises UserError where there are none, or where they are
    labelled in another way than those that the run was trained on."""
    notes, truth = list[str](), run.data.labelling
    if config.raw:
        truth = truth_of(config.annotations, run.data.labelling)
        truth = with_ignored(replace(truth, empty=config.empty or truth.empty), config)
        described_in = None if config.annotations else run.description
        fields = raw_fields(Path(config.raw), truth, described_in, config.mpp)
        notes = notes_on_names(fields, truth.case_regex)
        notes += notes_on_truth(run.data.labelling, truth)
    else:
        if not (data := config.data or run.config.data):
            raise UsageError(f"run={run.path}: an exported model; give raw= or data=")
        whole = read_dataset(Path(data))
        if whole.description.folds and len(run.members) > 1:
            raise UsageError(
                f"data={data}: other data, whose cases are dealt to folds: no split of it is of all"
                " members; measure the ensemble on raw=..."
            )
        for member in run.members:
            dataset, is_named = seen_by(member, whole), bool(config.data)
            notes += check_same_data(member.data, dataset, member.path, is_named=is_named)
        notes = list(dict.fromkeys(notes))
        fields = prepared_fields(dataset, config.split)
        if not fields:
            others = ", ".join(name for name in SPLITS if dataset.split(name))
            raise UsageError(f"split={config.split}: the data set has no such fields, but {others}")
    fields = of_cases(fields, config.cases)
    return Chosen(fields, truth, [*notes, *notes_on_raw(fields, truth, config.mpp)])


def seen_by(run: Run, dataset: Dataset) -> Dataset:
    """Return a data set as the fold of a run sees it. Raises UsageError for a set without it."""
    return dataset.of_fold(run.config.fold) if dataset.description.folds else dataset


def of_cases(fields: list[WholeField], cases: Sequence[str]) -> list[WholeField]:
    """Return the fields of these cases; all, where none is named. Raises UsageError for a case that
    has no field."""
    found = {field.case for field in fields}
    wanted = {name if name in found else f"Case_{name}" for name in cases}
    if unknown := sorted(wanted - found):
        raise UsageError(f"cases: no {', '.join(unknown)}; there are: {', '.join(sorted(found))}")
    return [field for field in fields if field.case in wanted] if wanted else fields


def truth_of(annotations: str, trained: Labelling) -> Labelling:
    """Return how raw fields are labelled: as the training data, but in the given format, without
    what that cannot ignore: masks have no points for rings, other formats no values.

    Raises UsageError for a class that the format cannot have.
    """
    if not annotations:
        return trained
    try:
        names = READERS[annotations].check_classes([*trained.labels])
    except UsageError as error:
        raise UsageError(
            f"annotations={annotations}: cannot name what the run learned,"
            f" {', '.join(trained.labels)}: {error}"
        ) from None
    labels = dict(zip(names, trained.labels.values(), strict=True))
    cannot = {"ignore_px": 0} if annotations == "masks" else {"ignore_value": "none"}
    return replace(trained, labels=labels, annotations=annotations, **cannot)


def with_ignored(truth: Labelling, config: EvaluateConfig) -> Labelling:
    """Return a labelling with what the settings say of ignored pixels. Raises UsageError."""
    is_masks = truth.annotations == "masks"
    value, width_px = config.ignore_value, config.ignore_px
    if value != "" and not is_masks:
        raise UsageError(f"ignore_value={value}: only annotations=masks has values")
    if width_px != "" and is_masks:
        raise UsageError(f"ignore_px={width_px}: annotations=masks has no points")
    try:
        truth = replace(truth, ignore_value=truth.ignore_value if value == "" else value)
        return replace(truth, ignore_px=truth.ignore_px if width_px == "" else width_px)
    except ValueError as error:
        raise UsageError(str(error)) from None


def notes_on_truth(trained: Labelling, truth: Labelling) -> list[str]:
    """Return a warning where the truth has other shapes than the run was trained on."""
    before, now = shapes_of(trained), shapes_of(truth)
    if before == now:
        return []
    return [
        f"the truth is {now} (annotations={truth.annotations}); the run was trained on {before}"
        f" (annotations={trained.annotations}). Figures of pixels compare the two shapes; those of"
        " nuclei show better what is found"
    ]


def shapes_of(labelling: Labelling) -> str:
    """Say which shapes a truth is made of."""
    discs = f"discs of radius_px={labelling.radius_px} about points"
    if not READERS[labelling.annotations].has_areas:
        return discs
    has_points = isinstance(READERS[labelling.annotations], ShapeReader)
    return f"areas as drawn, and {discs}" if has_points else "areas as drawn"


def notes_on_names(fields: Sequence[WholeField], case_regex: str) -> list[str]:
    """Return a warning about names that do not match case_regex; none where all match."""
    unmatched = unmatched_text([field.name for field in fields], case_regex)
    if not unmatched:
        return []
    return [
        f"{unmatched} of the training data: intervals over cases count each such field as a case of"
        " its own, also where several are of one patient"
    ]


def subject(config: EvaluateConfig) -> str:
    """Return the name of the folder of results."""
    parts = [Path(config.raw).resolve().name if config.raw else config.split, *config.cases]
    return "-".join(parts)
