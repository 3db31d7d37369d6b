"""Cut images that are too large for one field into tiles, each a field of its own; leave out glass.

Tissue is where light is absorbed: optical density above 0.15 in the mean over the channels, after
Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.config import MARGIN_PX
from data_prep.images.arrays import Image
from data_prep.images.image_files import Box
from data_prep.raw import Points

TISSUE_DENSITY = 0.15  # decadic optical density
WHITE = 255

Pixels = dict[str, npt.NDArray[np.int64]]
"""Class name -> pixels of an image, (N, 2): x and y."""


@dataclass(frozen=True)
class Tile:
    """A part of an image that is a field of its own."""

    box: Box
    height_px: int
    """Height of the whole image."""
    width_px: int
    """Width of the whole image."""

    @property
    def suffix(self) -> str:
        """What its field's name has behind the image's."""
        return f"_x{self.box.x}_y{self.box.y}"

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole image."""
        return (self.box.height, self.box.width) == (self.height_px, self.width_px)

    def reaches(self, pixels_N2: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(N,): which pixels (x, y) of the image lie in the tile or up to MARGIN_PX outside."""
        box = self.box
        inside_N2 = pixels_N2 - (box.x, box.y)
        end = np.array([box.width, box.height]) + MARGIN_PX
        return np.all((inside_N2 >= -MARGIN_PX) & (inside_N2 < end), axis=1)


def whole(height_px: int, width_px: int) -> Tile:
    """An image as its only tile."""
    return Tile(Box(0, 0, width_px, height_px), height_px, width_px)


def cut(height_px: int, width_px: int, tile_px: int, overlap_px: int) -> list[Tile]:
    """Tiles that cover an image, row by row, all of one size, evenly."""
    return [
        Tile(Box(x, y, min(tile_px, width_px), min(tile_px, height_px)), height_px, width_px)
        for y in tile_starts(height_px, tile_px, overlap_px)
        for x in tile_starts(width_px, tile_px, overlap_px)
    ]


def tile_starts(length_px: int, size_px: int, overlap_px: int, grid_px: int = 1) -> list[int]:
    """Where tiles start so that they cover a length evenly and overlap at least as asked.

    All but the last, which ends with the length, start at multiples of `grid_px`, unless that is
    more than a tile has beside its overlap.
    """
    if length_px <= size_px:
        return [0]
    step_px, last_px = size_px - overlap_px, length_px - size_px
    grid_px = min(grid_px, step_px)
    last_cell = -(-last_px // grid_px)
    num_steps = -(-last_cell // (step_px // grid_px))
    return [index * last_cell // num_steps * grid_px for index in range(num_steps)] + [last_px]


def points_in(points: Points, tile: Tile) -> Points:
    """An image's points in shares of the tile, each the centre of its pixel.

    Those come too that lie up to MARGIN_PX outside, whose discs may reach in.
    """
    inside: Pixels = {}
    size = np.array([tile.width_px, tile.height_px])
    for name, points_N2 in points.items():
        pixels_N2 = np.floor(points_N2 * size).astype(np.int64)
        pixels_N2 = np.minimum(pixels_N2, size - 1)  # on the far edge: the last pixel
        inside[name] = pixels_N2[tile.reaches(pixels_N2)]
    return pixels_in(inside, tile)


def pixels_in(pixels: Pixels, tile: Tile) -> Points:
    """Pixels of an image as points in shares of the tile, each the centre of its pixel."""
    box = tile.box
    return {
        name: (pixels_N2 - (box.x, box.y) + 0.5) / (box.width, box.height)
        for name, pixels_N2 in pixels.items()
    }


def tissue_share(image_HWC: Image, step: int = 4) -> float:
    """The share of pixels, from 0 to 1, that are tissue and not glass: of each `step`-th along
    either side, for every sixteenth will do."""
    density = np.log10(WHITE / np.maximum(np.arange(256), 1.0)).astype(np.float32)  # of a uint8
    density_HW = density[image_HWC[::step, ::step]].mean(axis=-1)
    return float((density_HW > TISSUE_DENSITY).mean())
