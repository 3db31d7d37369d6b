"""Measure a run on whole fields: figures of the network and of baselines, checks of truth and data,
and pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.ownership import Item
from common.progress import track
from common.stop_request import StopRequest
from data_prep.annotations.formats import READERS
from data_prep.dataset.description import Labelling
from data_prep.dataset.white import doubts_about_white
from data_prep.images.class_colours import veiled
from model.precision import choose_precision
from train.evaluation.baselines import BASELINES, Baseline
from train.evaluation.config import EvaluateConfig
from train.evaluation.duplicates import (
    Fingerprint,
    agreement,
    compare_with_training,
    duplicate_warnings,
    fingerprint,
    split_warnings,
    truth_sha256,
)
from train.evaluation.fields import (
    Criteria,
    FieldResult,
    Prediction,
    WholeField,
    gather_results,
    measure,
    predict_fields,
)
from train.evaluation.figures import draw
from train.evaluation.overlays import Overlay, make_overlay, worst_and_best
from train.evaluation.summary import summarise, summarise_nuclei, summarise_pixels
from train.exchange.origin import chosen_among
from train.metrics.scores import EMPTY_RULE, Counts, score
from train.metrics.sensitivity import counts_by_radius, dice_by_radius, radii_around
from train.ranks.distributed import Ranks
from train.runs.ensemble import about_model
from train.runs.run_folder import LoadedModel, Run
from train.runs.thresholds import (
    NUCLEI_THRESHOLD,
    PIXEL_THRESHOLD,
    ClassThresholds,
    Thresholds,
    doubt_about_best,
    in_file,
    thresholds_of,
)

THRESHOLD_NAMES = PIXEL_THRESHOLD, NUCLEI_THRESHOLD
ON_VAL = frozenset({"val", "members"})  # of thresholds.CHOSEN_ON
NUM_OVERLAYS = 4  # number of the worst fields in the report, and of the best ones


@dataclass(frozen=True)
class Chosen:
    """The fields that a run is measured on."""

    fields: Sequence[WholeField]
    truth: Labelling
    """How their truth is painted."""
    notes: Sequence[str]
    """Warnings about the fields, for the report."""


@dataclass(frozen=True)
class Group:
    """A run, or several as one model, and the fields that it is measured on."""

    run: Run
    chosen: Chosen


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation of one run, or of several as one model."""

    summary: dict[str, Any]
    measured: "Measured"


@dataclass(frozen=True)
class Model:
    """What is known of a loaded model, without its network."""

    group: Group
    about: dict[str, Any]
    """As the summary names it."""
    warnings: Sequence[str]


@dataclass(frozen=True)
class FieldCheck:
    """What is measured of a field's truth and picture, not of the network."""

    fingerprint: Fingerprint
    counts_by_radius: Counts
    """(R, C, 4) int64, of pixels, against discs of each radius; R = 0 if the truth is areas."""
    largest_uint16: int
    """As ImageFile.largest_uint16."""
    truth_sha256: str
    """Hash of the truth: the mask of each class and its annotated points."""
    num_px: int
    ignored_px: int
    """How many of these are ignored."""


@dataclass
class Measured:
    """What one rank has measured, or all ranks together."""

    results: list[FieldResult] = field(default_factory=list)
    of_baselines: dict[str, list[FieldResult]] = field(
        default_factory=lambda: {name: [] for name in BASELINES}
    )
    checks: list[FieldCheck] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    """Pictures of the worst and the best fields so far."""


def evaluate_run(
    config: EvaluateConfig, run: Run, chosen: Chosen, item: Item, ranks: Ranks
) -> Evaluation:
    """Evaluate a run on the chosen fields, and add this rank's pictures to `item`. Collective."""
    group = Group(run, chosen)
    loaded = run.load_model(config.checkpoint, ranks)
    thresholds = thresholds_of(loaded.state, run.class_names, config.threshold)
    model = model_of(config, group, loaded, thresholds)
    predictions = predict(config, group, loaded, ranks)
    return evaluate_predictions(config, model, predictions, thresholds, item, ranks)


def model_of(
    config: EvaluateConfig, group: Group, loaded: LoadedModel, thresholds: Thresholds
) -> Model:
    """Collect what a summary says of a model, whose figures are not known yet."""
    each = list(zip(group.run.members, loaded.state.get("members", [loaded]), strict=True))
    about = about_model(group.run, loaded)
    for entry, (_, member) in zip(about.get("members", [about]), each, strict=True):
        entry |= {"step": member.state["step"], "epoch": member.state["epochs"]}
    warnings = [
        *loaded.state.get("notes", []),
        *warnings_about(group.chosen.fields, each, chosen_on_val(config, thresholds)),
        *(line for _, member in each for line in doubts(config, member.state)),
    ]
    return Model(group, about, list(dict.fromkeys(warnings)))


def predict(
    config: EvaluateConfig, group: Group, loaded: LoadedModel, ranks: Ranks
) -> Iterator[Prediction]:
    """Predict this rank's fields of a group, with a progress bar. Collective."""
    run, fields = group.run, group.chosen.fields
    precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
    how = run.label_values, run.config.tile, precision, ranks, StopRequest(), config.tta
    predictions = predict_fields(loaded.model, fields, *how)
    total = len(ranks.items_of_rank(fields))
    return track(predictions, total=total, label="evaluate", unit="field")


def criteria_of(config: EvaluateConfig, run: Run, thresholds: Thresholds) -> Criteria:
    """Return what counts as a predicted pixel, and as a predicted and a found nucleus."""
    radius_px = run.data.labelling.radius_px
    match_radius_px = config.match_radius_px or radius_px
    return Criteria(thresholds, radius_px, match_radius_px)


def evaluate_predictions(
    config: EvaluateConfig,
    model: Model,
    predictions: Iterable[Prediction],
    thresholds: Thresholds,
    item: Item,
    ranks: Ranks,
) -> Evaluation:
    """Measure what a model predicts, and add this rank's pictures to `item`. Collective."""
    run, chosen = model.group.run, model.group.chosen
    criteria = criteria_of(config, run, thresholds)
    radii_px, names = disc_radii(chosen.truth), run.class_names
    mine = measure_all(predictions, criteria, radii_px, names, config.figures, item)
    measured = gather(mine, ranks)

    figures = figures_of(measured, run, radii_px)
    of_nuclei = {
        "radius_px": criteria.match_radius_px,
        "threshold": in_file(thresholds.nuclei.values, names),
        "threshold_chosen_on": thresholds.nuclei.chosen_on,
    }
    prints = [check.fingerprint for check in measured.checks]
    near_duplicates = compare_with_training(prints, run, config.data, ranks)
    read_again = partial(agreement, chosen.fields, prints, run.label_values)
    summary = {
        **model.about,
        "data": about_fields(config, chosen.truth),
        "tta": config.tta,
        "threshold": {
            "value": in_file(thresholds.pixels.values, names),
            "chosen_on": thresholds.pixels.chosen_on,
        },
        **figures,
        "detection": of_nuclei | figures["detection"],
        "agreement": ranks.first_does(read_again),
        "near_duplicates": near_duplicates,
        "empty_rule": EMPTY_RULE,
        "warnings": [
            *chosen.notes,
            *notes_on_ignored(measured.checks),
            *doubts_about_images(measured.checks, run.data.labelling),
            *model.warnings,
            *duplicate_warnings(near_duplicates),
        ],
    }
    return Evaluation(summary, measured)


def measure_all(
    predictions: Iterable[Prediction],
    criteria: Criteria,
    radii_px: Sequence[int],
    names: Sequence[str],
    num_figures: int,
    item: Item,
) -> Measured:
    """Measure predicted fields, and add pictures of the first `num_figures` fields to `item`.

    `radii_px`: the radii of discs that predictions are measured against, besides the truth.
    `names`: those of the classes.
    """
    measured, thresholds = Measured(), criteria.thresholds.pixels.values
    for prediction in predictions:
        result = measure(prediction, criteria)
        measured.results.append(result)
        for name, baseline in BASELINES.items():
            measured.of_baselines[name].append(measure_baseline(prediction, baseline, criteria))
        measured.checks.append(check_field(prediction, thresholds, radii_px))
        measured.overlays.append(overlay_of(prediction, result, thresholds))
        measured.overlays = overlays_to_show(measured, num_figures)
        if prediction.index < num_figures:
            draw(prediction, result, thresholds, names, item)
    return measured


def overlays_to_show(measured: Measured, num_figures: int) -> list[Overlay]:
    """Choose the overlays for a report, the worst first."""
    return worst_and_best(measured.overlays, min(NUM_OVERLAYS, num_figures))


def gather(mine: Measured, ranks: Ranks) -> Measured:
    """Gather what all ranks have measured of a run, in the order of the fields. Collective."""
    checks = [check for of_rank in ranks.gather(mine.checks) for check in of_rank]
    return Measured(
        gather_results(mine.results, ranks),
        {name: gather_results(results, ranks) for name, results in mine.of_baselines.items()},
        sorted(checks, key=lambda check: check.fingerprint.index),
        [overlay for of_rank in ranks.gather(mine.overlays) for overlay in of_rank],
    )


def pool(runs: Sequence[Measured]) -> Measured:
    """Join what was measured of several runs, one run after the other."""
    pooled = Measured()
    for run in runs:
        pooled.results += run.results
        for name, results in run.of_baselines.items():
            pooled.of_baselines[name] += results
        pooled.checks += run.checks
        pooled.overlays += run.overlays
    return pooled


def disc_radii(labelling: Labelling) -> list[int]:
    """Return the radii of discs to measure against; none if the annotations are areas, or if rings
    are ignored: discs of another radius would differ by px of the ring, which do not count."""
    has_others = READERS[labelling.annotations].has_areas or labelling.ignore_px
    return [] if has_others else radii_around(labelling.radius_px)


def check_field(
    prediction: Prediction, thresholds: Sequence[float], radii_px: Sequence[int]
) -> FieldCheck:
    """Compute a field's fingerprint, and its counts against discs of other radii."""
    field, is_valid_HW = prediction.field, prediction.is_valid_HW
    is_predicted_CHW = prediction.is_predicted(thresholds)
    return FieldCheck(
        fingerprint(prediction.index, field.name, field.case, prediction.image_HWC),
        counts_by_radius(is_predicted_CHW, is_valid_HW, prediction.annotated, radii_px),
        prediction.largest_uint16,
        truth_sha256(prediction.truth_CHW, is_valid_HW, prediction.annotated),
        is_valid_HW.size,
        int(np.count_nonzero(~is_valid_HW)),
    )


def about_fields(config: EvaluateConfig, truth: Labelling) -> dict[str, str | int]:
    """Say in the summary which fields were measured, and what of them was ignored."""
    of_raw = {"annotations": config.annotations} if config.annotations else {}
    about = {"raw": Path(config.raw).name, **of_raw} if config.raw else {"split": config.split}
    value = {} if truth.ignore_value == "none" else {"ignore_value": truth.ignore_value}
    return {**about, **value, **({"ignore_px": truth.ignore_px} if truth.ignore_px else {})}


def figures_of(measured: Measured, run: Run, radii_px: Sequence[int]) -> dict[str, Any]:
    """Compute the figures of the network and the baselines, and Dice by radius of discs."""
    seed = run.config.seed
    counts = [check.counts_by_radius for check in measured.checks]
    by_radius = dice_by_radius(counts, radii_px)
    return {
        **summarise(measured.results, run.class_names, seed),
        "pixels": num_pixels(measured.checks),
        "truth_sha256": {each.fingerprint.field: each.truth_sha256 for each in measured.checks},
        "baselines": {
            name: {
                **summarise_pixels(results, seed),
                "detection": summarise_nuclei(results, seed),
            }
            for name, results in measured.of_baselines.items()
        },
        **({"sensitivity": by_radius} if by_radius else {}),
    }


def num_pixels(checks: Sequence[FieldCheck]) -> dict[str, int]:
    """Count the pixels of fields, and those of them that no figure counts."""
    return {
        "total": sum(check.num_px for check in checks),
        "ignored": sum(check.ignored_px for check in checks),
    }


def notes_on_ignored(checks: Sequence[FieldCheck]) -> list[str]:
    """Say how many pixels are ignored; nothing where none is."""
    numbers = num_pixels(checks)
    if not numbers["ignored"]:
        return []
    share = numbers["ignored"] / numbers["total"]
    return [f"{share:.3%} of the pixels are ignored: no figure of pixels counts them"]


def measure_baseline(prediction: Prediction, baseline: Baseline, criteria: Criteria) -> FieldResult:
    """Measure a baseline on the same field; it predicts the same for every class."""
    foreground_HW = baseline(prediction.image_HWC)
    probability = np.broadcast_to(foreground_HW, prediction.truth_CHW.shape).astype(np.float32)
    default = ClassThresholds.default(len(probability), "default")
    criteria = replace(criteria, thresholds=Thresholds(default, default))
    return measure(replace(prediction, probability_CHW=probability), criteria)


def overlay_of(prediction: Prediction, result: FieldResult, thresholds: Sequence[float]) -> Overlay:
    """Make a field's picture for the report."""
    return make_overlay(
        result.index,
        result.name,
        result.case,
        score(result.counts)["dice"],
        veiled(prediction.image_HWC, ~prediction.is_valid_HW),
        prediction.truth_CHW,
        prediction.is_predicted(thresholds),
    )


def doubts_about_images(checks: Sequence[FieldCheck], labelling: Labelling) -> list[str]:
    """Say which 16-bit images are read as darker or lighter than they are meant."""
    largest = {check.fingerprint.field: check.largest_uint16 for check in checks}
    return doubts_about_white(largest, labelling.uint16_white, may_set=False)


def doubts(config: EvaluateConfig, state: Mapping[str, Any]) -> list[str]:
    """Say that the best checkpoint was not chosen for what it finds; nothing of another one."""
    if config.checkpoint != "best":
        return []
    doubt = doubt_about_best(state["metrics"].get("val/dice"), state["step"])
    return [doubt] if doubt else []


def chosen_on_val(config: EvaluateConfig, thresholds: Thresholds) -> str:
    """Say what is used that validations chose: "checkpoint and thresholds were"; '' for nothing."""
    is_best = config.checkpoint == "best"
    if ON_VAL.isdisjoint({thresholds.pixels.chosen_on, thresholds.nuclei.chosen_on}):
        return "checkpoint was" if is_best else ""
    return "checkpoint and thresholds were" if is_best else "thresholds were"


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
