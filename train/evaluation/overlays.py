"""Fields to be looked at: the image, with the outlines of truth and prediction as paths over it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.image_files import Image
from train.metrics.scores import Score, worst_first

WIDTH_PX = 900
JPG_QUALITY = 85


@dataclass(frozen=True)
class Overlay:
    """A field's image and the outlines on it, small enough to be kept."""

    index: int
    field: str
    case: str
    dice: Score
    width_px: int
    height_px: int
    jpg_base64: str
    truth: str
    """Outlines as the `d` of an SVG path, in px of the image."""
    prediction: str
    """The same of the prediction."""


def make_overlay(
    index: int,
    field: str,
    case: str,
    dice: Score,
    image_HWC: Image,
    truth_HW: npt.NDArray[np.bool_],
    predicted_HW: npt.NDArray[np.bool_],
) -> Overlay:
    """A field of any size at a width of WIDTH_PX, or at its own where it is smaller."""
    scale = min(1.0, WIDTH_PX / image_HWC.shape[1])
    size = round(image_HWC.shape[1] * scale), round(image_HWC.shape[0] * scale)
    small_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    bgr_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR)
    _, jpg = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, JPG_QUALITY])
    encoded = base64.b64encode(jpg.tobytes()).decode()
    outlines = (outline_path(mask_HW, scale) for mask_HW in (truth_HW, predicted_HW))
    return Overlay(index, field, case, dice, *size, encoded, *outlines)


def outline_path(mask_HW: npt.NDArray[np.bool_], scale: float) -> str:
    """The outlines of a mask as the `d` of an SVG path, in px of the scaled image."""
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 0.7, closed=True)[:, 0]
        scaled = ((corners + 0.5) * scale).round(1).tolist()  # through the middles of pixels
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in scaled) + "Z")
    return "".join(parts)


def by_dice(overlays: Sequence[Overlay]) -> list[Overlay]:
    """Worst first; those with nothing annotated last, in their own order."""
    return sorted(overlays, key=lambda overlay: (*worst_first(overlay.dice), overlay.index))


def worst_and_best(overlays: Sequence[Overlay], num_each: int) -> list[Overlay]:
    """The `num_each` worst and as many best, worst first; all where there are no more.

    Fields with nothing annotated are neither: they come last, where there is room.
    """
    ordered = by_dice(overlays)
    num_measured = sum(overlay.dice is not None for overlay in ordered)
    num_left_out = max(0, num_measured - 2 * num_each)
    return [*ordered[:num_each], *ordered[num_each + num_left_out :]][: 2 * num_each]
