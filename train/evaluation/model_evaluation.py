"""Evaluate a run, or several as one model, on the fields that were chosen for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.ownership import Item
from common.progress import track
from common.stop_request import StopRequest
from data_prep.dataset.description import Labelling
from model.precision import choose_precision
from train.evaluation.config import EvaluateConfig
from train.evaluation.doubts import (
    chosen_on_val,
    doubts,
    doubts_about_images,
    notes_on_ignored,
    warnings_about,
)
from train.evaluation.duplicates import agreement, compare_with_training, duplicate_warnings
from train.evaluation.measurement import Measured, disc_radii, gather, measure_all, num_pixels
from train.evaluation.summary import summarise, summarise_nuclei, summarise_pixels
from train.fields.measured_fields import Criteria, Prediction, predict_fields
from train.fields.whole_fields import WholeField
from train.metrics.scores import EMPTY_RULE
from train.metrics.sensitivity import dice_by_radius
from train.ranks.distributed import Ranks
from train.runs.ensemble import about_model
from train.runs.run_folder import LoadedModel, Run
from train.runs.thresholds import Thresholds, in_file, thresholds_of


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
    measured: Measured


@dataclass(frozen=True)
class Model:
    """What is known of a loaded model, without its network."""

    group: Group
    about: dict[str, Any]
    """As the summary names it."""
    warnings: Sequence[str]


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
