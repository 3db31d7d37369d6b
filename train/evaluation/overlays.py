"""Pictures of fields in the report: an image, with the outlines of truth and prediction over it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Image
from data_prep.images.outlines import outline_path
from train.metrics.scores import Score, worst_first

WIDTH_PX = 900
JPG_QUALITY = 85


@dataclass(frozen=True)
class Overlay:
    """A field's image and its outlines, small enough to keep one for each field of a report."""

    index: int
    field: str
    case: str
    dice: Score
    width_px: int
    height_px: int
    jpg_base64: str
    truth: list[str]
    """Outlines of each class as the `d` of an SVG path, in px of the image."""
    prediction: list[str]
    """Outlines of the prediction in the same form."""


def make_overlay(
    index: int,
    field: str,
    case: str,
    dice: Score,
    image_HWC: Image,
    truth_CHW: npt.NDArray[np.bool_],
    predicted_CHW: npt.NDArray[np.bool_],
) -> Overlay:
    """Make the overlay of a field; one that is wider than WIDTH_PX is shrunk to it.

    `truth_CHW` and `predicted_CHW` say which pixels are of each class.
    """
    scale = min(1.0, WIDTH_PX / image_HWC.shape[1])
    size = round(image_HWC.shape[1] * scale), round(image_HWC.shape[0] * scale)
    small_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    bgr_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR)
    _, jpg = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, JPG_QUALITY])
    encoded = base64.b64encode(jpg.tobytes()).decode()
    outlines = (
        [outline_path(mask_HW, scale) for mask_HW in mask_CHW]
        for mask_CHW in (truth_CHW, predicted_CHW)
    )
    return Overlay(index, field, case, dice, *size, encoded, *outlines)


def by_dice(overlays: Sequence[Overlay]) -> list[Overlay]:
    """Sort by Dice, the worst first; fields with nothing annotated come last, in their order."""
    return sorted(overlays, key=lambda overlay: (*worst_first(overlay.dice), overlay.index))


def worst_and_best(overlays: Sequence[Overlay], num_each: int) -> list[Overlay]:
    """Return the `num_each` worst and as many best fields, the worst first; or all, where there are
    no more.

    Fields with nothing annotated are neither: they come last, where there is room.
    """
    ordered = by_dice(overlays)
    num_measured = sum(overlay.dice is not None for overlay in ordered)
    num_left_out = max(0, num_measured - 2 * num_each)
    return [*ordered[:num_each], *ordered[num_each + num_left_out :]][: 2 * num_each]
