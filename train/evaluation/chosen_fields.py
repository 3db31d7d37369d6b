"""The fields that a run is evaluated on, as the settings choose them."""

from collections.abc import Sequence
from pathlib import Path

from common.command_line import UsageError
from data_prep.cases.names import unmatched_text
from data_prep.config import SPLITS
from data_prep.dataset.manifest import read_dataset
from train.evaluation.config import EvaluateConfig
from train.evaluation.fields import WholeField, prepared_fields, raw_fields
from train.evaluation.measurement import Chosen
from train.runs.run_folder import Run
from train.runs.same_data import check_same_data


def choose_fields(config: EvaluateConfig, run: Run) -> Chosen:
    """Return the fields to evaluate. Raises UserError where there are none, or where they are
    labelled in another way than those that the run was trained on."""
    notes: list[str] = []
    if config.raw:
        labelling = run.data.labelling
        fields, notes = raw_fields(Path(config.raw), labelling, run.description, config.mpp)
        notes += notes_on_names(fields, labelling.case_regex)
    else:
        if not (data := config.data or run.config.data):
            raise UsageError(f"run={run.path}: an exported model; give raw= or data=")
        dataset = read_dataset(Path(data))
        notes = check_same_data(run.data, dataset, run.path, is_named=bool(config.data))
        fields = prepared_fields(dataset, config.split)
        if not fields:
            others = ", ".join(name for name in SPLITS if dataset.split(name))
            raise UsageError(f"split={config.split}: the data set has no such fields, but {others}")
    if not config.cases:
        return Chosen(fields, notes)
    found = {field.case for field in fields}
    wanted = {name if name in found else f"Case_{name}" for name in config.cases}
    if unknown := sorted(wanted - found):
        raise UsageError(f"cases: no {', '.join(unknown)}; there are: {', '.join(sorted(found))}")
    return Chosen([field for field in fields if field.case in wanted], notes)


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
