"""Baselines: segmentations without a network, which a model must beat."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from train.crops.random_crop import DENSITY, EOSIN, HEMATOXYLIN

# Unmixed against all three stains of Ruifrok & Johnston 2001, as scikit-image does: on BreCaHAD
# that marks nuclei better than hematoxylin against eosin alone.
DAB = np.array([0.268, 0.570, 0.776])
STAINS = np.stack([HEMATOXYLIN, EOSIN, DAB])
TO_HEMATOXYLIN = np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))[:, 0]
BLUR_PX = 3.0  # of the order of the grain inside a nucleus
BRIGHTEST = 99.9  # percentile that ends the histogram, so that a speck of ink does not stretch it


def otsu_on_hematoxylin(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Mark pixels whose smoothed amount of hematoxylin is above Otsu's threshold, HW bool.

    The threshold is the field's own.

    Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    density = cv2.GaussianBlur(
        DENSITY[image_HWC] @ TO_HEMATOXYLIN.astype(np.float32), (0, 0), BLUR_PX
    )
    low, high = density.min(), np.percentile(density, BRIGHTEST)
    scaled = np.clip((density - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    _, dark = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return dark.astype(bool)


def all_foreground(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Mark every pixel, HW bool: the score of not looking at all."""
    return np.ones(image_HWC.shape[:2], bool)


Baseline = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]
BASELINES: dict[str, Baseline] = {
    "otsu_hematoxylin": otsu_on_hematoxylin,
    "all_foreground": all_foreground,
}
"""Name in summary.json -> image HWC uint8 RGB to foreground HW bool."""
