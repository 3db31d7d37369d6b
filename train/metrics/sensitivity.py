"""Measure how much Dice depends on the radius of the discs that are the truth.

The annotation is a point for each nucleus; the radius of its disc is a choice. The same predictions
are scored against discs of several radii: a model that finds the nuclei keeps most of its Dice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_prep.images.arrays import PointsN2
from data_prep.images.masks import channels_of, paint_mask
from train.metrics.scores import Counts, count_pixels, score

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)


def radii_around(radius_px: float) -> list[int]:
    """Return the radii to try, in whole px, the smallest first; `radius_px` is one of them."""
    return sorted({max(1, round(factor * radius_px)) for factor in FACTORS})


def paint_discs(
    annotated: Sequence[PointsN2], radius_px: int, height_px: int, width_px: int
) -> npt.NDArray[np.bool_]:
    """Paint the discs of each channel's points, CHW bool, later channels over earlier ones."""
    values = {f"channel {value}": value for value in range(1, len(annotated) + 1)}
    points = dict(zip(values, annotated, strict=True))
    mask_HW = paint_mask(points, values, radius_px, height_px, width_px)
    return channels_of(mask_HW, [*values.values()])


def counts_by_radius(
    predicted_CHW: npt.NDArray[np.bool_],
    is_valid_HW: npt.NDArray[np.bool_],
    annotated: Sequence[PointsN2],
    radii_px: Sequence[int],
) -> Counts:
    """Count a prediction's valid pixels against discs of each radius, (R, C, 4) int64.

    `annotated` holds the points of each channel.
    """
    predicted_BCHW = torch.from_numpy(predicted_CHW)[None]
    valid_B1HW = torch.from_numpy(is_valid_HW)[None, None]
    truths = [paint_discs(annotated, radius_px, *predicted_CHW.shape[1:]) for radius_px in radii_px]
    counts = [
        count_pixels(predicted_BCHW, torch.from_numpy(truth)[None], valid_B1HW) for truth in truths
    ]
    return np.array(counts, np.int64).reshape(len(radii_px), len(annotated), 4)


def dice_by_radius(counts: Sequence[Counts], radii_px: Sequence[int]) -> list[dict[str, Any]]:
    """Compute Dice over all pixels of all fields from the counts (R, C, 4) of each field."""
    total = np.sum(counts, axis=0)
    return [
        {"radius_px": radius_px, "dice": score(of_radius)["dice"]}
        for radius_px, of_radius in zip(radii_px, total, strict=True)
    ]
