"""Cut images that are too large for one field into tiles, each a field of its own; skip glass.

Tissue is where light is absorbed: optical density above 0.15 in the mean over the channels, after
Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.config import MARGIN_PX
from data_prep.images.arrays import Box, Image, PointsN2, PointsPx

TISSUE_DENSITY = 0.15  # decadic optical density
WHITE = 255


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image that is a field of its own."""

    box: Box
    height_px: int
    """Height of the whole image."""
    width_px: int
    """Width of the whole image."""
    file_px: tuple[int, int] = (0, 0)
    """Height and width that the image has in its file, which may be of another resolution; those
    of the image where none are given."""

    def __post_init__(self) -> None:
        if self.file_px == (0, 0):
            object.__setattr__(self, "file_px", (self.height_px, self.width_px))

    @property
    def scale(self) -> tuple[float, float]:
        """Px of the image for a px of its file, along x and y."""
        height_px, width_px = self.file_px
        return self.width_px / width_px, self.height_px / height_px

    @property
    def suffix(self) -> str:
        """The end of the field's name, after the image's name."""
        return f"_x{self.box.x}_y{self.box.y}"

    def reaches(self, points_N2: PointsN2) -> npt.NDArray[np.bool_]:
        """Return (N,) bool: which points lie in the tile or up to MARGIN_PX outside."""
        return are_inside(
            points_N2 - (self.box.x, self.box.y), self.box.height, self.box.width, MARGIN_PX
        )


def whole(height_px: int, width_px: int, file_px: tuple[int, int] = (0, 0)) -> Tile:
    """Make the tile that is the whole image; `file_px` as Tile has it."""
    return Tile(Box(0, 0, width_px, height_px), height_px, width_px, file_px)


def cut(
    height_px: int,
    width_px: int,
    tile_px: int,
    overlap_px: int,
    file_px: tuple[int, int] = (0, 0),
) -> list[Tile]:
    """Cut an image into evenly spread tiles of one size, row by row; `file_px` as Tile has it."""
    size = min(tile_px, width_px), min(tile_px, height_px)
    return [
        Tile(Box(x, y, *size), height_px, width_px, file_px)
        for y in tile_starts(height_px, tile_px, overlap_px)
        for x in tile_starts(width_px, tile_px, overlap_px)
    ]


def tile_starts(length_px: int, size_px: int, overlap_px: int, grid_px: int = 1) -> list[int]:
    """Return starts of tiles that cover a length evenly and overlap by `overlap_px` at least.

    The last tile ends with the length. The others start at multiples of `grid_px`, or of the size
    without its overlap if that is less.
    """
    if length_px <= size_px:
        return [0]
    step_px, last_px = size_px - overlap_px, length_px - size_px
    grid_px = min(grid_px, step_px)
    last_cell = -(-last_px // grid_px)
    num_steps = -(-last_cell // (step_px // grid_px))
    return [index * last_cell // num_steps * grid_px for index in range(num_steps)] + [last_px]


def pixels_of(from_corner_N2: npt.NDArray[np.float64], tile: Tile) -> PointsN2:
    """Return the pixels that points lie in; the points are in px from the image's corner.

    A point on the far edge lies in the last pixel.
    """
    return np.minimum(np.floor(from_corner_N2), (tile.width_px - 1, tile.height_px - 1))


def points_in(points: PointsPx, tile: Tile) -> PointsPx:
    """Return an image's points in px of the tile, with those up to MARGIN_PX around it."""
    corner = tile.box.x, tile.box.y
    return {name: found[tile.reaches(found)] - corner for name, found in points.items()}


def inside_only(points: PointsPx, height_px: int, width_px: int) -> PointsPx:
    """Return the points that lie in an image of this size."""
    return {name: found[are_inside(found, height_px, width_px)] for name, found in points.items()}


def outside_only(points: PointsPx, height_px: int, width_px: int) -> PointsPx:
    """Return the points that do not lie in an image of this size."""
    return {name: found[~are_inside(found, height_px, width_px)] for name, found in points.items()}


def are_inside(
    points_N2: PointsN2, height_px: int, width_px: int, margin_px: int = 0
) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: which points lie in an image of this size or up to `margin_px` outside."""
    first, end = -0.5 - margin_px, np.array([width_px, height_px]) - 0.5 + margin_px
    return np.all((points_N2 >= first) & (points_N2 < end), axis=1)


def tissue_fraction(image_HWC: Image, step: int = 4) -> float:
    """Return the fraction of pixels that are tissue and not glass, from 0 to 1.

    Looks at every `step`-th pixel along either side; one pixel in sixteen is enough.
    """
    # of every uint8 value
    density = np.log10(WHITE / np.maximum(np.arange(256), 1.0)).astype(np.float32)
    density_HW = density[image_HWC[::step, ::step]].mean(axis=-1)
    return float((density_HW > TISSUE_DENSITY).mean())
