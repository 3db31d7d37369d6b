"""Measure predicted fields: the network and baselines, checks of truth and data, and pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common.ownership import Item
from data_prep.annotations.formats import READERS
from data_prep.dataset.description import Labelling
from data_prep.images.class_colours import veiled
from train.evaluation.duplicates import Fingerprint, fingerprint, truth_sha256
from train.evaluation.figures import draw
from train.evaluation.overlays import Overlay, make_overlay, worst_and_best
from train.fields.baselines import BASELINES, Baseline
from train.fields.measured_fields import Criteria, FieldResult, Prediction, gather_results, measure
from train.metrics.scores import Counts, score
from train.metrics.sensitivity import counts_by_radius, radii_around
from train.ranks.distributed import Ranks
from train.runs.thresholds import ClassThresholds, Thresholds

NUM_OVERLAYS = 4  # number of the worst fields in the report, and of the best ones


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


def num_pixels(checks: Sequence[FieldCheck]) -> dict[str, int]:
    """Count the pixels of fields, and those of them that no figure counts."""
    return {
        "total": sum(check.num_px for check in checks),
        "ignored": sum(check.ignored_px for check in checks),
    }
