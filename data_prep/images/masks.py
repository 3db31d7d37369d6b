"""Paint masks: discs at annotated points, over areas; and turn masks into channels of logits."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

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
) -> Mask:
    """Paint a disc of `radius_px` about the pixel that each point lies in; return HW uint8.

    Classes are painted in the order of `values`, later ones over earlier ones, each with its areas
    first. A disc about a point outside the field is painted as far as it reaches in.
    """
    mask = np.zeros((height_px, width_px), np.uint8)
    for name, value in values.items():
        if areas_HW is not None:
            mask[areas_HW == value] = value
        for center in np.floor(points[name] + 0.5).astype(int).tolist():
            cv2.circle(mask, center, radius_px, value, cv2.FILLED)
    return mask


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
