"""Pictures of two stains, drawn by the law of Beer and Lambert from known numbers."""

import numpy as np

from data_prep.images.stains import Stains

ONE = Stains((0.65, 0.7, 0.29580399), (0.09, 0.95, 0.29899833), (1.6, 1.2))
OTHER = Stains((0.5, 0.75, 0.4330127), (0.25, 0.85, 0.46368092), (1.2, 0.9))


def draw(stains: Stains, height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """Draw squares of glass, of either stain and of both, HWC uint8.

    The maxima are the 99th percentile in tissue: the upper 1.5% of the two thirds that are stained.
    """
    rng = np.random.default_rng(seed)
    rows, columns = -(-height // 4), -(-width // 4)
    has_HW2 = rng.integers(0, 2, (rows, columns, 2))
    amounts_HW2 = has_HW2 * rng.uniform(0.8, 1.003, (rows, columns, 2)) * stains.maxima
    amounts_HW2 = amounts_HW2.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    density_HWC = amounts_HW2 @ np.array([stains.hematoxylin, stains.eosin])
    return np.rint(255 * np.exp(-density_HWC)).astype(np.uint8)


STRONGEST = Stains(ONE.hematoxylin, ONE.eosin, (10.0, 10.0))
"""A reference that makes pale px dark."""


def half_pale(height: int, width: int) -> np.ndarray:
    """Draw tissue on the left, and on the right the same so pale that it counts as glass."""
    left_HWC = draw(ONE, height, width // 2)
    right_HWC = np.rint(255 * (left_HWC / 255) ** 0.12).astype(np.uint8)
    return np.concatenate([left_HWC, right_HWC], axis=1)
