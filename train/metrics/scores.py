"""Compute metrics from counts of pixels or of nuclei.

Counts are (true positive, false positive, false negative, true negative), the last 0 for nuclei.
They are summed over fields and ranks before anything is divided, so a metric does not depend on
which rank measured which field. If nothing is annotated, only accuracy is defined (and if every
pixel is ignored, not even that): the other metrics are NaN in arrays, and None outside of arrays
(`nan_to_none`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common import seeds

if TYPE_CHECKING:  # what compares runs needs no torch, which takes seconds
    from torch import Tensor

Counts = npt.NDArray[np.int64]
"""(..., 4) int64: true positive, false positive, false negative, true negative."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

METRICS = ("accuracy", "iou", "dice", "precision", "recall")
Score = float | None
"""A metric; None if nothing is annotated in what is measured."""
EMPTY = "nothing annotated"
EMPTY_RULE = (
    "Where nothing is annotated, IoU, Dice, precision, recall, F1 and average precision are no"
    " numbers (null), and means over fields leave the field out. Where something is annotated and"
    " nothing is predicted, precision is 0. Ignored pixels count nowhere"
)
DEFAULT_THRESHOLD = 0.5
NUM_RESAMPLES = 2000  # of a bootstrap
# The thresholds to choose from; float32, since they are compared with float32 probabilities
THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32)


def count_pixels(
    predicted: "Tensor", truth: "Tensor", valid_B1HW: "Tensor | None" = None
) -> "Tensor":
    """Count the pixels of two bool tensors (B, C, H, W): (C, 4) int64, see Counts; if given, only
    the valid ones."""
    import torch

    pixels: int | Tensor = predicted.numel() // predicted.shape[1]
    if valid_B1HW is not None:
        predicted, truth, pixels = predicted & valid_B1HW, truth & valid_B1HW, valid_B1HW.sum()
    axes = (0, 2, 3)
    positive, annotated = predicted.sum(axes), truth.sum(axes)
    both = (predicted & truth).sum(axes)
    neither = pixels - positive - annotated + both
    return torch.stack((both, positive - both, annotated - both, neither), dim=-1)


def histogram(probability: npt.NDArray[np.float32], truth: Bools) -> npt.NDArray[np.int64]:
    """Count pixels by bins of probability: (2, 100) int64, first those that are true.

    Bin k has the pixels that are above the first k of THRESHOLDS and not above the next one. Both
    arrays have the same shape, which may be any.
    """
    import torch

    contiguous = torch.from_numpy(np.ascontiguousarray(probability))  # otherwise torch warns
    bins = torch.bucketize(contiguous, torch.from_numpy(THRESHOLDS)).numpy()
    num_bins = len(THRESHOLDS) + 1
    every = np.bincount(bins.ravel(), minlength=num_bins)
    true = np.bincount(bins[truth], minlength=num_bins)
    return np.stack([true, every - true])


def counts_at_thresholds(histogram: npt.NDArray[np.int64]) -> Counts:
    """Turn histograms (..., 2, 100) into counts (..., 99, 4) at each of THRESHOLDS."""
    above = histogram[..., ::-1].cumsum(axis=-1)[..., -2::-1]
    not_above = histogram.sum(axis=-1, keepdims=True) - above
    return np.moveaxis(np.concatenate([above, not_above], axis=-2), -2, -1)


def best_threshold(counts: Counts) -> tuple[float, float] | None:
    """Return the threshold with the highest Dice (for nuclei F1), and that Dice.

    `counts` are (99, 4), at THRESHOLDS. Ties go to the threshold nearest 0.5, then to the lower
    one. None if nothing is annotated: then no threshold is better than another.
    """
    dice = scores(counts)["dice"]
    if np.isnan(dice).any():
        return None
    distance = np.abs(np.arange(1, 100) - 50)
    best = int(np.lexsort((distance, -dice))[0])
    return (best + 1) / 100, float(dice[best])


def best_thresholds(counts: Counts) -> list[float] | None:
    """Return the best threshold of each class, see `best_threshold`. `counts` are (C, 99, 4).

    A class that is annotated nowhere has that of all classes together. None if nothing is
    annotated.
    """
    of_all = best_threshold(counts.sum(axis=0))
    return of_all and [(best_threshold(of_class) or of_all)[0] for of_class in counts]


def score(counts: Counts) -> dict[str, Score]:
    """Sum counts (..., 4) to (4,), and compute accuracy, IoU, Dice, precision and recall.

    If nothing is annotated, the last four are None (see EMPTY_RULE).
    """
    total = counts.reshape(-1, 4).sum(axis=0)
    return {name: nan_to_none(value) for name, value in scores(total).items()}


def scores(counts: Counts) -> dict[str, Floats]:
    """Compute the same metrics for each of counts (..., 4): arrays (...), with NaN for None."""
    hit, false_alarm, miss, neither = np.moveaxis(counts, -1, 0)
    is_annotated = hit + miss > 0

    def ratio(numerator: Counts, denominator: Counts) -> Floats:
        return np.where(is_annotated, numerator / np.maximum(denominator, 1), np.nan)

    total = hit + false_alarm + miss + neither
    return {
        "accuracy": np.where(total > 0, (hit + neither) / np.maximum(total, 1), np.nan),
        "iou": ratio(hit, hit + false_alarm + miss),
        "dice": ratio(2 * hit, 2 * hit + false_alarm + miss),
        "precision": ratio(hit, hit + false_alarm),
        "recall": ratio(hit, hit + miss),
    }


def nan_to_none(value: float | Floats) -> Score:
    """Convert a number to Python's float, and NaN to None."""
    return None if np.isnan(value) else float(value)


def score_text(value: Score, num_digits: int = 4) -> str:
    """Write a metric for a console or for the title of a figure."""
    return EMPTY if value is None else f"{value:.{num_digits}f}"


def worst_first(dice: Score) -> tuple[bool, float]:
    """Return the key that sorts by Dice, with None at the end."""
    return dice is None, dice or 0.0


ConfidenceInterval = tuple[float, float] | None
"""Low and high end; None if fewer than two cases have annotation."""


def bootstrap_over_cases(
    values: Sequence[float] | Floats, cases: Sequence[str], num_resamples: int, seed: int
) -> ConfidenceInterval:
    """Compute the 95% percentile interval of the mean over fields, see `bootstrap_pooled`."""
    values_and_ones = np.stack([values, np.ones(len(values))], axis=1)

    def mean(sums: Floats) -> dict[str, Floats]:
        return {"mean": sums[:, 0] / sums[:, 1]}

    return bootstrap_pooled(values_and_ones, cases, mean, num_resamples, seed)["mean"]


def bootstrap_pooled(
    amounts: npt.NDArray[Any],
    cases: Sequence[str],
    statistics: Callable[[npt.NDArray[Any]], dict[str, Floats]],
    num_resamples: int,
    seed: int,
) -> dict[str, ConfidenceInterval]:
    """Compute 95% percentile intervals of statistics of sums over fields, by resampling cases.

    `amounts` (fields, K) are summed over the fields of the resampled cases. `statistics` turns sums
    (resamples, K) into values (resamples,) by name. Not fields but cases (patients) are resampled:
    the fields of one case are alike, so intervals over fields would be too narrow.

    A statistic is NaN for a resample without annotation, which is left out. The interval is None if
    fewer than two cases have annotation: then there is nothing to resample.
    """
    names = sorted(set(cases))
    case_of = np.array([names.index(case) for case in cases])
    sums = np.stack([amounts[case_of == number].sum(axis=0) for number in range(len(names))])
    num_known = {
        name: int(np.sum(~np.isnan(of_case))) for name, of_case in statistics(sums).items()
    }
    rng = seeds.generator(seed, "bootstrap")
    chosen = rng.integers(len(names), size=(num_resamples, len(names)))
    resampled = statistics(sums[chosen].sum(axis=1))
    return {
        name: percentile_interval(values) if num_known[name] > 1 else None
        for name, values in resampled.items()
    }


def percentile_interval(values: Floats) -> ConfidenceInterval:
    """Return the interval of the middle 95% of values, without NaN."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
