"""Pixel metrics from counts.

Counts are (true positive, false positive, false negative, true negative) pixels. They are summed
over fields and ranks before anything is divided, so a metric does not depend on how fields were
shared out.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import seeds

Counts = npt.NDArray[np.int64]
"""(..., 4) int64: true positive, false positive, false negative, true negative pixels."""

METRICS = ("accuracy", "iou", "dice", "precision", "recall")
EMPTY_RULE = (
    "IoU, Dice, precision and recall are 1 where neither truth nor prediction has any foreground;"
    " a ratio that is 0/0 otherwise is 0"
)


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """Two bool tensors (B, C, H, W) -> int64 counts (C, 4)."""
    axes = (0, 2, 3)
    positive, annotated = predicted.sum(axes), truth.sum(axes)
    both = (predicted & truth).sum(axes)
    pixels = predicted.numel() // predicted.shape[1]
    neither = pixels - positive - annotated + both
    return torch.stack((both, positive - both, annotated - both, neither), dim=-1)


def score(counts: Counts) -> dict[str, float]:
    """Accuracy, IoU, Dice, precision and recall of counts (..., 4), summed to (4,) first.

    Where neither truth nor prediction has any foreground, the last four are 1 (see EMPTY_RULE).
    """
    hit, false_alarm, miss, neither = (int(n) for n in counts.reshape(-1, 4).sum(axis=0))
    empty = hit + false_alarm + miss == 0

    def ratio(part: int, whole: int) -> float:
        return 1.0 if empty else part / whole if whole else 0.0

    total = hit + false_alarm + miss + neither
    return {
        "accuracy": (hit + neither) / total if total else 1.0,
        "iou": ratio(hit, hit + false_alarm + miss),
        "dice": ratio(2 * hit, 2 * hit + false_alarm + miss),
        "precision": ratio(hit, hit + false_alarm),
        "recall": ratio(hit, hit + miss),
    }


def bootstrap_over_cases(
    values: Sequence[float], cases: Sequence[str], num_resamples: int, seed: int
) -> tuple[float, float] | None:
    """95% percentile interval of the mean over fields, resampling whole cases (patients).

    Fields of one case are alike, so resampling fields would promise too much. With one case there
    is nothing to resample: None.
    """
    names = sorted(set(cases))
    if len(names) < 2:
        return None
    index = np.array([names.index(case) for case in cases])
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index)
    rng = seeds.generator(seed, "bootstrap")
    drawn = rng.integers(len(names), size=(num_resamples, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
