"""Paint masks: discs at annotated points, over areas; and turn masks into channels of logits."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.config import IGNORE_LABEL, is_ignored
from data_prep.images.arrays import Mask, PointsPx

BINARY_LABEL = 255


def label_values(classes: Sequence[str], labels: Literal["binary", "per_class"]) -> dict[str, int]:
    """Choose the mask value of each class: all 255, or 1, 2, ... in the given order."""
    if labels == "binary":
        return dict.fromkeys(classes, BINARY_LABEL)
    return {name: index for index, name in enumerate(classes, start=1)}


def paint_mask(
    points: PointsPx,
    values: Mapping[str, int],
    radius_px: int,
    height_px: int,
    width_px: int,
    areas_HW: Mask | None = None,
    ignore_px: int = 0,
) -> Mask:
    """Paint a disc of `radius_px` about the pixel that each point lies in; return HW uint8.

    Classes are painted in the order of `values`, later ones over earlier ones, each with its areas
    first; then areas and discs that are ignored, over all. Below all lies a ring of `ignore_px`
    around each disc of a class, ignored too. A disc about a point outside the field is painted as
    far as it reaches in.
    """
    mask = np.zeros((height_px, width_px), np.uint8)

    def paint(name: str, value: int, reach_px: int) -> None:
        for center in np.floor(points[name] + 0.5).astype(int).tolist():
            cv2.circle(mask, center, reach_px, value, cv2.FILLED)

    for name in values if ignore_px else ():
        paint(name, IGNORE_LABEL, radius_px + ignore_px)
    for name, value in values.items():
        if areas_HW is not None:
            mask[areas_HW == value] = value
        paint(name, value, radius_px)
    if areas_HW is not None:
        mask[areas_HW == IGNORE_LABEL] = IGNORE_LABEL
    for name in filter(is_ignored, points):
        paint(name, IGNORE_LABEL, radius_px)
    return mask


def not_ignored(points: PointsPx, mask_HW: Mask) -> PointsPx:
    """Return the points in a mask whose pixel is not ignored."""
    kept = {}
    for name, points_N2 in points.items():
        x, y = np.floor(points_N2 + 0.5).astype(int).T
        kept[name] = points_N2[mask_HW[y, x] != IGNORE_LABEL]
    return kept


def channel_values(values: Iterable[int]) -> list[int]:
    """Sort the distinct mask values: one channel of logits each."""
    return sorted(set(values))


def channel_names(labels: Mapping[str, int]) -> list[str]:
    """Name each channel of logits: its class, or its classes where they share a mask value."""
    values = channel_values(labels.values())
    return ["+".join(name for name in labels if labels[name] == value) for value in values]


def channels_of(mask_HW: Mask, values: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return CHW bool: for each of the mask values, which pixels have it."""
    return np.stack([mask_HW == value for value in values])


def numbers_of(is_class_CHW: npt.NDArray[np.bool_]) -> Mask:
    """Return HW uint8: 0 where there is no class, else 1 for the first channel and so on.

    The first counts where a pixel is of several classes.
    """
    return np.where(is_class_CHW.any(axis=0), is_class_CHW.argmax(axis=0) + 1, 0).astype(np.uint8)
