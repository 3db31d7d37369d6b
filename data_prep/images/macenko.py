"""Estimate the two stains of an H&E picture, and give it those of a reference.

After Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250. Light falls by exp(-concentration) in each
stain, so a pixel's optical density is a sum of the stains' densities. The densities of all pixels
lie in a plane, between the two stains. Other than in the implementations in use, white stays white
(255 and not 240 is the light that falls in), and percentiles are those of tissue, so that they do
not depend on how much glass there is.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Image
from data_prep.images.stains import LEAST_ANGLE_DEG, PUBLISHED, Stains, angle_deg
from data_prep.images.tiles import TISSUE_DENSITY, WHITE

Floats = npt.NDArray[np.float64]
DENSITY = np.log(WHITE / np.maximum(np.arange(256), 1.0))
"""Optical density of every uint8 value, natural logarithm."""
LEAST_DENSITY = TISSUE_DENSITY * math.log(10)
"""Mean over the channels above which a px is tissue: beta of the paper, 0.15 decadic."""
BLACK_DENSITY = math.log(10)
"""In the channel with the most light; no stain is so dark, but borders of scans are."""
LEAST_PX = 1000
"""Tissue that percentiles are taken of."""
PERCENTILE = 1.0
"""Of the angles that are left out on either side: alpha of the paper."""
LEAST_RATIO = 2.0
"""Of the spread along the second axis to that along the third, which is noise."""
LARGEST_ANGLE_DEG = 40.0
"""Between a stain and the published one; scanners and dyes differ by up to 30 degrees."""
STEPS = 2**12
"""Steps of density per unit in the tables: exact sums, the same bits on every machine."""
DIGITS = 6
"""Of estimates after the point: libraries may differ in the last bits of a float."""
AT_ONCE_PX = 2**14
"""Px that are converted at once: they and their tables fit into the cache."""


class NoStainsError(ValueError):
    """Pixels that the stains cannot be estimated of."""


def estimate(pixels_N3: Image) -> Stains:
    """Estimate the stains of pixels, (N, 3) uint8 RGB. Raises NoStainsError, with the reason."""
    density_N3 = DENSITY[pixels_N3]
    absorbs_N = density_N3.mean(axis=1) > LEAST_DENSITY
    density_N3 = density_N3[absorbs_N & (density_N3.min(axis=1) < BLACK_DENSITY)]
    if len(density_N3) < LEAST_PX:
        raise NoStainsError("too little tissue")
    hematoxylin, eosin = stain_vectors(density_N3)
    unmix_23 = unmixing(hematoxylin, eosin)
    maxima = [np.percentile(product(density_N3, row_3), 99) for row_3 in unmix_23]
    return Stains(hematoxylin, eosin, rounded(np.array(maxima)))


def stain_vectors(density_N3: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return hematoxylin and eosin, the ends of the angles that densities span in their plane."""
    channels_3N = np.ascontiguousarray(density_N3.T)
    # no product of matrices: its last bits depend on the number of threads
    moments_33 = np.array([[np.mean(a * b) for b in channels_3N] for a in channels_3N])
    values_3, axes_33 = np.linalg.eigh(moments_33)
    # densities are above 0, so all components of the first axis have one sign
    first_3, second_3 = np.abs(axes_33[:, 2]), axes_33[:, 1]
    angles_N = np.arctan2(product(density_N3, second_3), product(density_N3, first_3))
    found = []
    for angle in np.percentile(angles_N, [PERCENTILE, 100 - PERCENTILE]):
        vector_3 = np.maximum(first_3 * np.cos(angle) + second_3 * np.sin(angle), 0)
        found.append(rounded(vector_3 / np.linalg.norm(vector_3)))
    hematoxylin, eosin = sorted(found, reverse=True)  # hematoxylin absorbs more of red
    if angle_deg(hematoxylin, eosin) < LEAST_ANGLE_DEG:
        raise NoStainsError("it has one stain only")
    spread_3 = np.sqrt(np.maximum(values_3, 0))
    if spread_3[1] <= LEAST_RATIO * spread_3[0]:
        raise NoStainsError("its colours are not those of two stains")
    known = PUBLISHED.hematoxylin, PUBLISHED.eosin
    if max(map(angle_deg, (hematoxylin, eosin), known)) > LARGEST_ANGLE_DEG:
        raise NoStainsError("its colours are not those of hematoxylin and eosin")
    return hematoxylin, eosin


def product(density_N3: Floats, vector_3: Floats) -> Floats:
    """Return the scalar product of each density with a vector, (N,)."""
    return (
        density_N3[:, 0] * vector_3[0]
        + density_N3[:, 1] * vector_3[1]
        + density_N3[:, 2] * vector_3[2]
    )


def rounded(values: Floats) -> tuple[float, ...]:
    """Return numbers with the digits that estimates are given in."""
    return tuple(round(float(value), DIGITS) for value in values)


def unmixing(hematoxylin: tuple[float, ...], eosin: tuple[float, ...]) -> Floats:
    """Return the matrix (2, 3) from densities to concentrations, by least squares."""
    first_3, second_3 = np.array(hematoxylin), np.array(eosin)
    a, b, c = (first_3 * first_3).sum(), (first_3 * second_3).sum(), (second_3 * second_3).sum()
    determinant = a * c - b * b
    return np.stack(
        [
            (c * first_3 - b * second_3) / determinant,
            (a * second_3 - b * first_3) / determinant,
        ]
    )


class Conversion:
    """Gives pixels the stains of a reference, each by itself."""

    def __init__(self, own: Stains, reference: Stains) -> None:
        ratios_2 = np.array(reference.maxima) / np.array(own.maxima)
        unmix_23 = unmixing(own.hematoxylin, own.eosin) * ratios_2[:, None]
        mix_32 = np.stack([reference.hematoxylin, reference.eosin], axis=1)
        to_density_33 = mix_32[:, :1] * unmix_23[:1] + mix_32[:, 1:] * unmix_23[1:]
        # [input channel, output channel, input value]
        steps = np.rint(to_density_33.T[..., None] * DENSITY * STEPS)
        self.steps = steps.astype(np.int32)
        most = math.ceil(STEPS * math.log(2 * WHITE)) + 1  # where the value is 0
        self.values = np.rint(WHITE * np.exp(-np.arange(most + 1) / STEPS)).astype(np.uint8)

    def __call__(self, image_HWC: Image) -> Image:
        """Convert an image, HWC uint8 RGB."""
        made_HWC = np.empty_like(image_HWC)
        rows_at_once = max(1, AT_ONCE_PX // image_HWC.shape[1])
        for top in range(0, len(image_HWC), rows_at_once):
            rows = slice(top, top + rows_at_once)
            planes = cv2.split(np.ascontiguousarray(image_HWC[rows]))
            made = []
            for channel in range(3):
                steps_HW = cv2.LUT(planes[0], self.steps[0, channel])
                steps_HW += cv2.LUT(planes[1], self.steps[1, channel])
                steps_HW += cv2.LUT(planes[2], self.steps[2, channel])
                made.append(self.values.take(steps_HW, mode="clip"))
            made_HWC[rows] = cv2.merge(made)
        return made_HWC
