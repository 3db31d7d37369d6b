"""Say what makes the figures of an evaluation doubtful: the warnings of its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.dataset.description import Labelling
from data_prep.dataset.white import doubts_about_white
from train.evaluation.config import EvaluateConfig
from train.evaluation.duplicates import split_warnings
from train.evaluation.measurement import FieldCheck, num_pixels
from train.exchange.origin import chosen_among
from train.fields.whole_fields import WholeField
from train.runs.run_folder import LoadedModel, Run
from train.runs.thresholds import NUCLEI_THRESHOLD, PIXEL_THRESHOLD, Thresholds, doubt_about_best

THRESHOLD_NAMES = PIXEL_THRESHOLD, NUCLEI_THRESHOLD
ON_VAL = frozenset({"val", "members"})  # of thresholds.CHOSEN_ON


def warnings_about(
    fields: Sequence[WholeField], models: Sequence[tuple[Run, LoadedModel]], chosen_on_val: str
) -> list[str]:
    """Say what makes the figures of a model, or of an ensemble's, look better than they are.

    `chosen_on_val`: what of them was chosen on the validation split.
    """
    cases = {field.case for field in fields}
    warnings = [line for run, _ in models for line in split_warnings(run.data.cases)]
    if seen := {case for run, _ in models for case in run.trained_among(cases)}:
        listed = ", ".join(sorted(seen))
        warnings.append(f"trained on: {listed}; these figures do not show new patients")
    chosen = {
        case
        for run, loaded in models
        if any(loaded.state["metrics"].get(name) is not None for name in THRESHOLD_NAMES)
        for case in chosen_among(cases, run.data, [run.as_origin("", 0, "")])
    }
    if chosen and chosen_on_val:
        listed = ", ".join(sorted(chosen))
        warnings.append(f"{chosen_on_val} chosen on: {listed}; test on other cases")
    if before := {case for run, _ in models for case in chosen_among(cases, run.data, run.origins)}:
        listed = ", ".join(sorted(before))
        warnings.append(
            f"the weights that it began with (init=) were chosen on: {listed}; test on other cases"
        )
    if files := {run.encoder.source for run, _ in models if run.encoder and run.encoder.is_a_file}:
        warnings.append(
            f"the encoder began with {', '.join(sorted(files))} (model.weights=): if that was"
            " trained on these cases, the figures do not show new patients"
        )
    return warnings


def chosen_on_val(config: EvaluateConfig, thresholds: Thresholds) -> str:
    """Say what is used that validations chose: "checkpoint and thresholds were"; '' for nothing."""
    is_best = config.checkpoint == "best"
    if ON_VAL.isdisjoint({thresholds.pixels.chosen_on, thresholds.nuclei.chosen_on}):
        return "checkpoint was" if is_best else ""
    return "checkpoint and thresholds were" if is_best else "thresholds were"


def doubts(config: EvaluateConfig, state: Mapping[str, Any]) -> list[str]:
    """Say that the best checkpoint was not chosen for what it finds; nothing of another one."""
    if config.checkpoint != "best":
        return []
    doubt = doubt_about_best(state["metrics"].get("val/dice"), state["step"])
    return [doubt] if doubt else []


def doubts_about_images(checks: Sequence[FieldCheck], labelling: Labelling) -> list[str]:
    """Say which 16-bit images are read as darker or lighter than they are meant."""
    largest = {check.fingerprint.field: check.largest_uint16 for check in checks}
    return doubts_about_white(largest, labelling.uint16_white, may_set=False)


def notes_on_ignored(checks: Sequence[FieldCheck]) -> list[str]:
    """Say how many pixels are ignored; nothing where none is."""
    numbers = num_pixels(checks)
    if not numbers["ignored"]:
        return []
    share = numbers["ignored"] / numbers["total"]
    return [f"{share:.3%} of the pixels are ignored: no figure of pixels counts them"]
