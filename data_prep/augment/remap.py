"""Pixels moved along a map, interpolated once.

OpenCV's remap does it. For RGB between pixels _remap.c does the same in half the time, to the bit,
where there was a compiler when this was installed and the processor has AVX2.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

VERSION = 2  # of _remap.c, to be raised there and here with every change of what it does

try:
    from data_prep.augment import _remap
except ImportError:
    _remap = None  # type: ignore[assignment]
if _remap and _remap.VERSION != VERSION:  # of an earlier installation
    _remap = None  # type: ignore[assignment]

STRIP_PX = 64  # rows that OpenCV moves at a time: their part of the map stays in the cache

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Map:
    """Where each pixel of an H x W picture comes from: known at nodes, straight between them.

    Places are pixel indices, (0, 0) being the centre of the first pixel. Nodes lie at the centres
    of cells of step_px: one in each cell, and one beyond each side.
    """

    nodes_KL2: Floats
    """The place (x, y) that each node comes from."""
    step_px: int
    height_px: int
    width_px: int

    @cached_property
    def in_node_rows(self) -> Floats:
        """The places of all pixels of the rows that go through nodes."""
        return self.between(self.nodes_KL2, 1, 0, self.width_px)

    def rows(self, top: int, bottom: int) -> tuple[Floats, Floats]:
        """x and y of some rows, as cv2.remap takes them."""
        x, y = cv2.split(self.between(self.in_node_rows, 0, top, bottom))
        return x, y

    def between(self, nodes: Floats, axis: int, start: int, stop: int) -> Floats:
        """What is known at nodes, at pixels of an axis: rounded as in _remap.c, in this order."""
        from_first = np.arange(start, stop) + (self.step_px + 1) // 2
        cell, pixel = np.divmod(from_first, self.step_px)
        share = (2 * pixel + 1 - self.step_px % 2).astype(np.float32) / np.float32(2 * self.step_px)
        before = np.take(nodes, cell, axis)
        places = np.take(nodes, cell + 1, axis)
        places -= before
        places *= np.expand_dims(share, [other for other in range(3) if other != axis])
        places += before
        return places


def remap(
    pixels: Pixels,
    border_px: int,
    sources: Map,
    interpolation: int,
    mode: int,
    fill: tuple[int, ...],
) -> Pixels:
    """A picture, HW or HWC uint8, moved along a map. The last three settings are cv2.remap's.

    `pixels` have a border of `border_px` that was drawn in this mode, outside of the place (0, 0).
    How wide it is makes no difference to what comes out.
    """
    height, width = sources.height_px, sources.width_px
    moved = np.empty((height, width, *pixels.shape[2:]), np.uint8)
    is_rgb = pixels.shape[2:] == (3,)
    is_linear = interpolation == cv2.INTER_LINEAR
    if is_rgb and is_linear and moved_fast(pixels, border_px, sources, moved):
        return moved
    for top in range(0, height, STRIP_PX):
        bottom = min(top + STRIP_PX, height)
        places = sources.rows(top, bottom)
        whole, shares = cv2.convertMaps(*places, cv2.CV_16SC2, nninterpolation=not is_linear)
        whole += border_px  # after they were rounded
        cv2.remap(pixels, whole, shares, interpolation, moved[top:bottom], mode, fill)
    return moved


def moved_fast(pixels: Pixels, border_px: int, sources: Map, moved: Pixels) -> bool:
    """Whether _remap.c is there, and has filled `moved`: only where the border is wide enough."""
    if _remap is None:
        return False
    nodes = sources.nodes_KL2, sources.nodes_KL2.shape[:2], sources.step_px
    return _remap.bilinear(pixels, pixels.shape[:2], border_px, *nodes, moved, moved.shape[:2])
