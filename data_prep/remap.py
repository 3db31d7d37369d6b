"""Pixels moved along a map, interpolated once.

OpenCV's remap does it. For RGB between pixels _remap.c does the same in half the time, to the bit,
where there was a compiler when this was installed and the processor has AVX2.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

VERSION = 1  # of _remap.c, to be raised there and here with every change of what it does

try:
    from data_prep import _remap
except ImportError:
    _remap = None  # type: ignore[assignment]
if _remap and _remap.VERSION != VERSION:  # of an earlier installation
    _remap = None  # type: ignore[assignment]

STRIP_PX = 64  # rows that OpenCV moves at a time: their part of the map stays in the cache

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Map:
    """Where each pixel of an H x W picture comes from: known on K of its rows, straight between.

    Places are pixel indices, (0, 0) being the centre of the first pixel.
    """

    x_KW: Floats
    y_KW: Floats
    above_H: npt.NDArray[np.int32]
    """The known row at or above each row, from 0 to K - 2."""
    share_H: Floats
    """How far each row is on the way from there to the next known one, from 0 to 1."""

    def strip(self, rows: slice) -> tuple[Floats, Floats]:
        """x and y of some rows."""
        x, y = (self.between(known, rows) for known in (self.x_KW, self.y_KW))
        return x, y

    def between(self, known_KW: Floats, rows: slice) -> Floats:
        """What is known on K rows, on other rows: as _remap.c does it, in this order."""
        above = known_KW[self.above_H[rows]]
        places = known_KW[self.above_H[rows] + 1]
        places -= above
        places *= self.share_H[rows, None]
        places += above
        return places


def remap(
    pixels: Pixels, sources: Map, interpolation: int, border: int, fill: tuple[int, ...]
) -> Pixels:
    """A picture, HW or HWC uint8, moved along a map. The settings are those of cv2.remap."""
    shape = len(sources.above_H), sources.x_KW.shape[1]
    moved = np.empty((*shape, *pixels.shape[2:]), np.uint8)
    is_rgb = pixels.shape[2:] == (3,)
    if not (is_rgb and interpolation == cv2.INTER_LINEAR and moved_fast(pixels, sources, moved)):
        for top in range(0, shape[0], STRIP_PX):
            rows = slice(top, top + STRIP_PX)
            cv2.remap(pixels, *sources.strip(rows), interpolation, moved[rows], border, fill)
    return moved


def moved_fast(pixels: Pixels, sources: Map, moved: Pixels) -> bool:
    """Whether _remap.c is there, and has filled `moved`: only where no border is needed."""
    if _remap is None:
        return False
    known = sources.x_KW, sources.y_KW, len(sources.x_KW), sources.above_H, sources.share_H
    return _remap.bilinear(pixels, pixels.shape[:2], *known, moved, moved.shape[:2])
