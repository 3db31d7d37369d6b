"""Pictures of predictions, as arrays."""

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Okabe & Ito's palette: told apart with any kind of colour vision
HIT, MISS, FALSE_ALARM = (0, 158, 115), (230, 159, 0), (204, 33, 167)


def outcome_picture(image_HWC: Array, truth_HW: Bools, predicted_HW: Bools) -> Array:
    """The image with hits, misses and false alarms laid over it, HWC uint8."""
    picture = image_HWC.astype(np.float32)
    for region, colour in (
        (truth_HW & predicted_HW, HIT),
        (truth_HW & ~predicted_HW, MISS),
        (~truth_HW & predicted_HW, FALSE_ALARM),
    ):
        picture[region] = 0.5 * picture[region] + 0.5 * np.array(colour, np.float32)
    return picture.round().astype(np.uint8)


def outline_picture(image_HWC: Array, mask_HW: Bools) -> Array:
    """The image with the outlines of a mask drawn on it, 3 px wide, HWC uint8."""
    mask = mask_HW.astype(np.uint8)
    around = np.ones((3, 3), np.uint8)
    edge = mask - cv2.erode(mask, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    picture = image_HWC.copy()
    picture.reshape(-1, 3)[np.flatnonzero(cv2.dilate(edge, around).view(bool))] = HIT
    return picture


def panel_strip(image_HWC: Array, truth_HW: Bools, predicted_HW: Bools, height_px: int) -> Array:
    """Input, truth and prediction side by side, HWC uint8, for TensorBoard."""
    grey = [
        np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1) for mask in (truth_HW, predicted_HW)
    ]
    width_px = round(image_HWC.shape[1] * height_px / image_HWC.shape[0])
    panels = [
        cv2.resize(panel, (width_px, height_px), interpolation=cv2.INTER_AREA)
        for panel in (image_HWC, *grey)
    ]
    return np.hstack(panels)
