"""Metrics from counts, of pixels and of nuclei.

Counts are (true positive, false positive, false negative, true negative), the last 0 for nuclei.
They are summed over fields and ranks before anything is divided, so a metric does not depend on how
fields were shared out. Where nothing is annotated no metric but accuracy says anything: it is NaN
within arrays, and None in what leaves them (`known`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import seeds

Counts = npt.NDArray[np.int64]
"""(..., 4) int64: true positive, false positive, false negative, true negative."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

METRICS = ("accuracy", "iou", "dice", "precision", "recall")
Score = float | None
"""A metric; None where nothing is annotated in what is measured."""
EMPTY = "nothing annotated"
EMPTY_RULE = (
    "Where nothing is annotated, IoU, Dice, precision, recall, F1 and average precision are no"
    " numbers (null), and means over fields leave the field out. Where something is annotated and"
    " nothing is predicted, precision is 0"
)
DEFAULT_THRESHOLD = 0.5
# The thresholds that one is chosen from; float32 as the probabilities that are held against them
THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32)


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """Two bool tensors (B, C, H, W) -> int64 counts (C, 4)."""
    axes = (0, 2, 3)
    positive, annotated = predicted.sum(axes), truth.sum(axes)
    both = (predicted & truth).sum(axes)
    pixels = predicted.numel() // predicted.shape[1]
    neither = pixels - positive - annotated + both
    return torch.stack((both, positive - both, annotated - both, neither), dim=-1)


def histogram(probability: npt.NDArray[np.float32], truth: Bools) -> npt.NDArray[np.int64]:
    """(2, 100) int64: how many that are true, and how many that are not, are in each bin.

    In bin k are those above the first k of THRESHOLDS and not above the next. Both arrays are of
    one shape, whatever it is.
    """
    in_a_row = torch.from_numpy(np.ascontiguousarray(probability))  # or torch warns
    bins = torch.bucketize(in_a_row, torch.from_numpy(THRESHOLDS)).numpy()
    num_bins = len(THRESHOLDS) + 1
    every = np.bincount(bins.ravel(), minlength=num_bins)
    true = np.bincount(bins[truth], minlength=num_bins)
    return np.stack([true, every - true])


def counts_at_thresholds(histogram: npt.NDArray[np.int64]) -> Counts:
    """(2, 100), see `histogram` -> counts (99, 4) at each of THRESHOLDS."""
    above = histogram[:, ::-1].cumsum(axis=1)[:, -2::-1]
    hit, false_alarm = above
    miss, neither = histogram.sum(axis=1, keepdims=True) - above
    return np.stack([hit, false_alarm, miss, neither], axis=-1)


def best_threshold(counts: Counts) -> tuple[float, float] | None:
    """(the threshold of the highest Dice, which is the F1, and that), of counts at THRESHOLDS.

    Of several as good, the nearest to 0.5, and of two as near the lower. None where nothing is
    annotated: then no threshold is better than another.
    """
    dice = scores(counts)["dice"]
    if np.isnan(dice).any():
        return None
    distance = np.abs(np.arange(1, 100) - 50)
    best = int(np.lexsort((distance, -dice))[0])
    return (best + 1) / 100, float(dice[best])


def score(counts: Counts) -> dict[str, Score]:
    """Accuracy, IoU, Dice, precision and recall of counts (..., 4), summed to (4,) first.

    Where nothing is annotated, the last four are None (see EMPTY_RULE).
    """
    return {name: known(value) for name, value in scores(counts.reshape(-1, 4).sum(axis=0)).items()}


def scores(counts: Counts) -> dict[str, Floats]:
    """The same of each of counts (..., 4), in arrays (...) with NaN for None."""
    hit, false_alarm, miss, neither = np.moveaxis(counts, -1, 0)
    is_annotated = hit + miss > 0

    def ratio(part: Counts, whole: Counts) -> Floats:
        return np.where(is_annotated, part / np.maximum(whole, 1), np.nan)

    total = hit + false_alarm + miss + neither
    return {
        "accuracy": (hit + neither) / np.maximum(total, 1),
        "iou": ratio(hit, hit + false_alarm + miss),
        "dice": ratio(2 * hit, 2 * hit + false_alarm + miss),
        "precision": ratio(hit, hit + false_alarm),
        "recall": ratio(hit, hit + miss),
    }


def known(value: float | Floats) -> Score:
    """A number as Python's; None for NaN."""
    return None if np.isnan(value) else float(value)


def score_text(value: Score, num_digits: int = 4) -> str:
    """A metric as a console or a figure's title shows it."""
    return EMPTY if value is None else f"{value:.{num_digits}f}"


def worst_first(dice: Score) -> tuple[bool, float]:
    """The key that sorts by Dice, with what has none at the end."""
    return dice is None, dice or 0.0


Interval = tuple[float, float] | None
"""Low and high end; None where fewer than two cases have something annotated."""


def bootstrap_over_cases(
    values: Sequence[float] | Floats, cases: Sequence[str], num_resamples: int, seed: int
) -> Interval:
    """95% percentile interval of the mean over fields, see `bootstrap_pooled`."""
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
) -> dict[str, Interval]:
    """95% percentile intervals of statistics of sums over fields, resampling cases (patients).

    `amounts` (fields, K) are summed over the fields of the cases drawn; `statistics` makes of sums
    (resamples, K) values (resamples,) by name. Fields of one case are alike, so resampling fields
    would promise too much.

    A statistic is NaN where nothing is annotated. Resamples without any annotation are left out,
    and where fewer than two cases have one there is nothing to resample: None.
    """
    names = sorted(set(cases))
    case_of = np.array([names.index(case) for case in cases])
    sums = np.stack([amounts[case_of == number].sum(axis=0) for number in range(len(names))])
    num_known = {
        name: int(np.sum(~np.isnan(of_case))) for name, of_case in statistics(sums).items()
    }
    rng = seeds.generator(seed, "bootstrap")
    drawn = rng.integers(len(names), size=(num_resamples, len(names)))
    resampled = statistics(sums[drawn].sum(axis=1))
    return {
        name: percentile_interval(values) if num_known[name] > 1 else None
        for name, values in resampled.items()
    }


def percentile_interval(values: Floats) -> Interval:
    """What holds the middle 95% of values, NaN left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
