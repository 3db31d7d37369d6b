"""Measure how much a score depends on the radius of the discs that are its truth.

The annotation is a point for each nucleus; the radius of its disc is a choice. The same predictions
are scored against discs of several radii: a model that finds the nuclei keeps most of its Dice.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from train.metrics.detection import Places
from train.metrics.scores import Counts, count_pixels, score

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)


def radii_around(radius_px: float) -> list[int]:
    """Return the radii to try, in whole px, the smallest first; `radius_px` is one of them."""
    return sorted({max(1, round(factor * radius_px)) for factor in FACTORS})


def paint_discs(
    points_px: Sequence[Places], radius_px: int, height_px: int, width_px: int
) -> npt.NDArray[np.bool_]:
    """Paint the discs of each channel's points, CHW bool, later channels over earlier ones.

    As data_prep.images.masks does: a disc is centred on the pixel that its point lies in.
    """
    label_HW = np.zeros((height_px, width_px), np.uint8)
    for label, points in enumerate(points_px, start=1):
        for x, y in np.floor(points + 0.5).astype(int).tolist():
            cv2.circle(label_HW, (x, y), radius_px, label, cv2.FILLED)
    return np.stack([label_HW == label for label in range(1, len(points_px) + 1)])


def counts_by_radius(
    predicted_CHW: npt.NDArray[np.bool_], points_px: Sequence[Places], radii_px: Sequence[int]
) -> Counts:
    """Count a prediction's pixels against discs of each radius, (R, C, 4) int64.

    `points_px` holds the annotated points of each channel.
    """
    predicted_BCHW = torch.from_numpy(predicted_CHW)[None]
    truths = [paint_discs(points_px, radius_px, *predicted_CHW.shape[1:]) for radius_px in radii_px]
    counts = [count_pixels(predicted_BCHW, torch.from_numpy(truth)[None]) for truth in truths]
    return np.array(counts, np.int64).reshape(len(radii_px), len(points_px), 4)


def dice_by_radius(counts: Sequence[Counts], radii_px: Sequence[int]) -> list[dict[str, Any]]:
    """Compute Dice over all pixels of all fields from the counts (R, C, 4) of each field."""
    total = np.sum(counts, axis=0)
    return [
        {"radius_px": radius_px, "dice": score(of_radius)["dice"]}
        for radius_px, of_radius in zip(radii_px, total, strict=True)
    ]
