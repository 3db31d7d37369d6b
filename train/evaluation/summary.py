"""Compute what summary.json holds: scores of pixels and nuclei, with intervals over cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.raw import natural_key
from train.fields.measured_fields import FieldResult
from train.metrics.detection import average_precision
from train.metrics.scores import (
    METRICS,
    NUM_RESAMPLES,
    THRESHOLDS,
    Counts,
    Floats,
    Score,
    bootstrap_over_cases,
    bootstrap_pooled,
    nan_to_none,
    score,
    scores,
)
from train.runs.thresholds import ClassThresholds, Thresholds

BOOTSTRAP = {"over": "cases", "resamples": NUM_RESAMPLES, "confidence": 0.95}


def summarise(
    results: Sequence[FieldResult], class_names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Summarise fields: all together, each class, and each field.

    `class_names` names the channels of the logits.
    """
    counts_FC4 = np.stack([result.counts for result in results])
    return {
        "num_fields": len(results),
        "cases": sorted({result.case for result in results}),
        **summarise_pixels(results, seed),
        "bootstrap": BOOTSTRAP,
        "per_class": {name: score(counts_FC4[:, i]) for i, name in enumerate(class_names)},
        "per_field": [
            {"field": result.name, "case": result.case, **score(result.counts)}
            | {"counts": by_class(result.counts, class_names)}
            for result in results
        ],
        "per_case": [
            {
                "case": case,
                "num_fields": len(fields),
                **score(np.stack([field.counts for field in fields])),
                "nuclei_f1": nuclei_figures(fields)["f1"],
            }
            for case, fields in by_case(results).items()
        ],
        "detection": {
            **summarise_nuclei(results, seed),
            "curve": precision_recall_curve(results),
            "per_class": {
                name: nuclei_figures(results, [channel]) for channel, name in enumerate(class_names)
            },
            "per_field": [
                {"field": result.name, "case": result.case, **nuclei_figures([result])}
                | {"counts": by_class(result.nuclei_counts, class_names)}
                for result in results
            ],
        },
    }


def thresholds_in(summary: Mapping[str, Any]) -> Thresholds:
    """Read the thresholds in the summary of one run, or of several as one model."""
    pixels, nuclei, classes = summary["threshold"], summary["detection"], [*summary["per_class"]]
    return Thresholds(
        ClassThresholds.from_file(pixels["value"], pixels["chosen_on"], classes),
        ClassThresholds.from_file(nuclei["threshold"], nuclei["threshold_chosen_on"], classes),
    )


def by_class(counts_C4: Counts, class_names: Sequence[str]) -> dict[str, list[int]]:
    """Return the counts of each class of a field, from which train.compare computes differences."""
    return dict(zip(class_names, counts_C4.tolist(), strict=True))


def by_case(results: Sequence[FieldResult]) -> dict[str, list[FieldResult]]:
    """Return the fields of each case, Case_2 before Case_10."""
    cases = sorted({result.case for result in results}, key=natural_key)
    return {case: [result for result in results if result.case == case] for case in cases}


def summarise_pixels(results: Sequence[FieldResult], seed: int) -> dict[str, Any]:
    """Compute metrics over all pixels and their mean over fields, with intervals over cases."""
    counts = np.stack([result.counts.sum(axis=0) for result in results])
    cases = [result.case for result in results]
    per_field = scores(counts)
    return {
        "all_pixels": score(counts),
        "all_pixels_interval": bootstrap_pooled(counts, cases, scores, NUM_RESAMPLES, seed),
        "mean_over_fields": {name: mean_of(per_field[name], cases, seed) for name in METRICS},
    }


def mean_of(values: Floats, cases: Sequence[str], seed: int) -> dict[str, Any]:
    """Average a metric (F,) over the fields where it is known; NaN means nothing annotated."""
    indices = np.flatnonzero(~np.isnan(values)).tolist()
    if not indices:
        return {"mean": None, "num_fields": 0, "interval": None}
    kept = values[indices]
    interval = bootstrap_over_cases(kept, [cases[index] for index in indices], NUM_RESAMPLES, seed)
    return {"mean": float(np.mean(kept)), "num_fields": len(indices), "interval": interval}


def summarise_nuclei(results: Sequence[FieldResult], seed: int) -> dict[str, Any]:
    """Score the nuclei of all fields, with bootstrap intervals over cases."""
    counts = np.stack([result.nuclei_counts.sum(axis=0) for result in results])
    cases = [result.case for result in results]
    interval = bootstrap_pooled(counts, cases, detection_scores, NUM_RESAMPLES, seed)
    return {**nuclei_figures(results), "interval": interval}


def nuclei_figures(
    results: Sequence[FieldResult], channels: Sequence[int] | None = None
) -> dict[str, Any]:
    """Count and score the nuclei of fields, in some channels or in all."""
    kept = range(len(results[0].detections)) if channels is None else channels
    counts = np.sum([result.nuclei_counts[kept].sum(axis=0) for result in results], axis=0)
    hit, false_alarm, miss, _ = counts.tolist()
    detections = [result.detections[channel] for result in results for channel in kept]
    return {
        "annotated": hit + miss,
        "predicted": hit + false_alarm,
        **{name: nan_to_none(value) for name, value in detection_scores(counts).items()},
        "average_precision": average_precision(detections),
    }


def detection_scores(counts: Counts) -> dict[str, Floats]:
    """Compute precision, recall and F1 of nuclei from counts (..., 4); their F1 is their Dice."""
    of_counts = scores(counts)
    return {
        "precision": of_counts["precision"],
        "recall": of_counts["recall"],
        "f1": of_counts["dice"],
    }


def precision_recall_curve(results: Sequence[FieldResult]) -> dict[str, list[Score]]:
    """Compute precision and recall of all nuclei at each threshold of 0.01 to 0.99."""
    detections = [each for result in results for each in result.detections]
    counts = np.sum([each.counts(THRESHOLDS) for each in detections], axis=0)
    at_threshold = detection_scores(counts)
    return {
        "threshold": [number / 100 for number in range(1, 100)],
        "precision": [nan_to_none(value) for value in at_threshold["precision"]],
        "recall": [nan_to_none(value) for value in at_threshold["recall"]],
    }
