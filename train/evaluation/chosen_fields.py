"""The fields that a run is evaluated on, as the settings choose them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.command_line import UsageError
from data_prep.annotations.formats import READERS
from data_prep.annotations.shapes import ShapeReader
from data_prep.cases.names import unmatched_text
from data_prep.config import SPLITS
from data_prep.dataset.manifest import Dataset, Labelling, read_dataset
from train.evaluation.config import EvaluateConfig
from train.evaluation.fields import WholeField, notes_on_raw, prepared_fields, raw_fields
from train.evaluation.measurement import Chosen
from train.runs.run_folder import Run
from train.runs.same_data import check_same_data


def choose_fields(config: EvaluateConfig, run: Run) -> Chosen:
    """Return the fields to evaluate. Raises UserError where there are none, or where they are
    labelled in another way than those that the run was trained on."""
    notes, truth = list[str](), run.data.labelling
    if config.raw:
        truth = truth_of(config.annotations, run.data.labelling)
        truth = replace(truth, empty=config.empty or truth.empty)
        described_in = None if config.annotations else run.description
        fields = raw_fields(Path(config.raw), truth, described_in, config.mpp)
        notes = notes_on_names(fields, truth.case_regex)
        notes += notes_on_truth(run.data.labelling, truth)
    else:
        if not (data := config.data or run.config.data):
            raise UsageError(f"run={run.path}: an exported model; give raw= or data=")
        dataset = seen_by(run, read_dataset(Path(data)))
        notes = check_same_data(run.data, dataset, run.path, is_named=bool(config.data))
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
    """Return how raw fields are labelled: as the training data, but in the given format.

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
    return replace(trained, labels=labels, annotations=annotations)


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
