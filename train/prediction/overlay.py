"""Draw the overlay of a predicted image: outlines of the areas, dots for the nuclei, a legend."""

from collections.abc import Sequence

import numpy as np

from data_prep.images.arrays import Image, Mask
from data_prep.images.class_colours import colour_of, legend
from data_prep.images.outlines import paint_dots, paint_outlines
from train.metrics.detection import Nuclei

FOR_HALO_PX = 5
"""Least radius of a nucleus in the picture with a halo about its outline: a smaller one would be
dark all over."""


def draw_overlay(
    picture_HWC: Image,
    class_HW: Mask,
    nuclei: Sequence[Nuclei],
    names: Sequence[str],
    shrink: int,
    radius_px: float,
) -> Image:
    """Draw areas and nuclei in the colours of their classes over a copy of the picture, HWC uint8.

    `class_HW` is 0, or 1 for the first class and so on; `nuclei` are those of each class, in px of
    the image, of which `shrink` x `shrink` px are one of the picture. `radius_px` is that of a
    nucleus in the image: lines and dots leave most of it to be seen. A legend of several classes is
    below the picture.
    """
    overlay_HWC = picture_HWC.copy()
    seen_px = radius_px / shrink
    has_halo = seen_px >= FOR_HALO_PX
    paint_outlines(overlay_HWC, class_HW, int(seen_px / 10), has_halo)
    for number, found in enumerate(nuclei):
        centres_N2 = (found.centres_N2 + 0.5) / shrink - 0.5
        paint_dots(overlay_HWC, centres_N2, int(seen_px / 6), colour_of(number), has_halo)
    width_px = overlay_HWC.shape[1]
    font_px = int(np.clip(width_px / 80, 14, 40))
    return np.vstack([overlay_HWC, legend(width_px, names, font_px=font_px)])
