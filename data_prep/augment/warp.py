"""A variant's geometry as one map from its pixels to those of its field.

Whatever the transform, the map is known on a coarse lattice and enlarged where it is needed, so
that an image is interpolated once; points are moved by the same map, turned round (inverse.py).
Places are pixel indices (x, y), (0, 0) being the centre of the first pixel.

    elastic     Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801: uniform noise, Gaussian-smoothed
    gaussian    the same with normal noise and a much wider Gaussian: whole regions shift
    barrel      r -> r (1 + k r^2 + k r^4), k > 0; pincushion the same with k < 0; r in field sides
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.augment.remap import Floats, Map, Pixels, remap
from data_prep.config import MARGIN_PX, MAX_SIDE_PX

Border = Literal["mirror", "white", "black"]
Noise = Literal["uniform", "normal"]

LATTICE_ERROR_PX = 0.06  # of straight cells, where a random displacement bends, RMS
SPARE_PX = 3  # of a border: pixels are read in pairs, and a little further

CV2_BORDERS = {
    "mirror": (cv2.BORDER_REFLECT_101, 0),
    "white": (cv2.BORDER_CONSTANT, 255),
    "black": (cv2.BORDER_CONSTANT, 0),
}


@dataclass(frozen=True)
class Lattice:
    """Places `step_px` apart that cover a field of view and MARGIN_PX around it.

    Nodes lie at the centres of cells of step_px pixels.
    """

    height_px: int
    width_px: int
    step_px: int

    @property
    def margin(self) -> int:
        """Cells beyond each side of the field."""
        return math.ceil(MARGIN_PX / self.step_px) + 1

    @property
    def middle(self) -> tuple[float, float]:
        """x and y of the field's centre."""
        return (self.width_px - 1) / 2, (self.height_px - 1) / 2

    @property
    def num_nodes(self) -> tuple[int, int]:
        """Nodes down and across."""
        down, across = (
            math.ceil(extent / self.step_px) + 2 * self.margin
            for extent in (self.height_px, self.width_px)
        )
        return down, across

    @property
    def origin_px(self) -> float:
        """The place of the first node, along both axes."""
        return (0.5 - self.margin) * self.step_px - 0.5

    def places(self) -> Floats:
        """HW2 float32: the place (x, y) of every node."""
        return side_by_side(*self.columns_and_rows())

    def columns_and_rows(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """x of the columns of nodes (1, W) and y of the rows (H, 1)."""
        down, across = (
            self.origin_px + self.step_px * np.arange(n, dtype=np.float64) for n in self.num_nodes
        )
        return across[None, :], down[:, None]


class Bordered:
    """A picture, HW or HWC uint8, with a border drawn as far as variants need it.

    Places outside a picture are taken one by one: within a drawn border it is several times as
    fast for a turned field, and comes to the same.
    """

    def __init__(self, pixels: Pixels, border: Border) -> None:
        self.pixels = self.drawn = np.ascontiguousarray(pixels)
        self.border, self.drawn_px = border, 0
        self.mode, value = CV2_BORDERS[border]
        self.fill = (value,) * 4

    def draw(self, reaches_px: Iterable[int]) -> None:
        """Draw a border that is wide enough for all of these, but for very wide ones."""
        height, width = self.pixels.shape[:2]
        largest_px = min(height, width, (MAX_SIDE_PX - max(height, width)) // 2)
        px = max((reach for reach in reaches_px if reach <= largest_px), default=0)
        if px > self.drawn_px:
            self.drawn_px = px
            self.drawn = cv2.copyMakeBorder(self.pixels, px, px, px, px, self.mode, value=self.fill)

    def reaching(self, reach_px: int) -> tuple[Pixels, int]:
        """The picture with the drawn border and its width, or without where it is not enough."""
        return (self.drawn, self.drawn_px) if reach_px <= self.drawn_px else (self.pixels, 0)


class Warp:
    """The map of one variant: for each of its places, the place in the field that is seen there."""

    def __init__(self, lattice: Lattice, sources_HW2: Floats, border: Border = "mirror") -> None:
        self.lattice, self.sources_HW2, self.border = lattice, sources_HW2, border

    @property
    def near_nodes(self) -> Floats:
        """The sources of the nodes in the field and of one beyond each of its sides."""
        beyond = self.lattice.margin - 1
        return self.sources_HW2[beyond:-beyond, beyond:-beyond]

    @cached_property
    def reach_px(self) -> int:
        """How wide a border the variant needs, in px."""
        low, high = extent(self.near_nodes)
        size = (self.lattice.width_px, self.lattice.height_px)
        return math.ceil(max(0, *-low, *(high - size))) + SPARE_PX

    def move_pixels(self, picture: Bordered, interpolation: int) -> Pixels:
        """The field's picture, HW or HWC uint8 -> the variant's, interpolated once."""
        lattice, nodes_KL2 = self.lattice, np.ascontiguousarray(self.near_nodes)
        sources = Map(nodes_KL2, lattice.step_px, lattice.height_px, lattice.width_px)
        bordered, border_px = picture.reaching(self.reach_px)
        return remap(bordered, border_px, sources, interpolation, picture.mode, picture.fill)


def extent(places_HW2: Floats) -> tuple[Floats, Floats]:
    """(x, y), the least and the largest."""
    low, high = (extreme(places_HW2, axis=0) for extreme in (np.min, np.max))
    return low.min(axis=0), high.max(axis=0)


def side_by_side(x_HW: npt.NDArray[np.float64], y_HW: npt.NDArray[np.float64]) -> Floats:
    """x and y, side by side: HW2 float32."""
    places_HW2 = np.empty((*np.broadcast_shapes(x_HW.shape, y_HW.shape), 2), np.float32)
    places_HW2[..., 0], places_HW2[..., 1] = x_HW, y_HW
    return places_HW2


def flip(lattice: Lattice, axis: int) -> Floats:
    """Left and right (axis 0) or top and bottom (axis 1) exchanged."""
    x, y = lattice.columns_and_rows()
    if axis == 0:
        return side_by_side(lattice.width_px - 1 - x, y)
    return side_by_side(x, lattice.height_px - 1 - y)


def turn_and_scale(lattice: Lattice, angle_deg: float, factor: float) -> Floats:
    """Turned against the clock and enlarged about the centre."""
    (x, y), (middle_x, middle_y) = lattice.columns_and_rows(), lattice.middle
    x, y = (x - middle_x) / factor, (y - middle_y) / factor
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return side_by_side(middle_x + cos * x - sin * y, middle_y + sin * x + cos * y)


def lens(lattice: Lattice, k: float) -> Floats:
    """What is seen at r was at r (1 + k r^2 + k r^4); x in field widths, y in field heights.

    From r = 1 on as there: of a small field the margin would lie thousands of px away.
    """
    (x, y), (middle_x, middle_y) = lattice.columns_and_rows(), lattice.middle
    x, y = x - middle_x, y - middle_y
    squared = np.minimum((x / lattice.width_px) ** 2 + (y / lattice.height_px) ** 2, 1.0)
    stretch = 1 + k * squared * (1 + squared)
    return side_by_side(middle_x + x * stretch, middle_y + y * stretch)


def lens_step_px(height_px: int, width_px: int) -> int:
    """The lattice whose straight cells are within 0.05 px of the strongest lens.

    Its second derivative falls with the field's sides: 8 px at 1024, 4 px at 256.
    """
    return max(1, math.isqrt(min(height_px, width_px)) // 4)


def random_displacement(
    lattice: Lattice,
    rms_px: float,
    sigma_px: float,
    noise: Noise,
    rng: np.random.Generator,
) -> Floats:
    """Noise smoothed by a Gaussian of `sigma_px`, with this root mean square along each axis.

    In whole numbers of 16 bit, which OpenCV smooths exactly: of floats it makes others on a
    processor that multiplies and adds in one step than on one that does not.
    """
    sigma = sigma_px / lattice.step_px
    more = math.ceil(3 * sigma) + 1  # the blur sees noise beyond the nodes
    down, across = (extent + 2 * more for extent in lattice.num_nodes)
    if noise == "normal":
        mean, spread = 2.0**15, 2.0**13
        normal = rng.standard_normal((down, across, 2), np.float32)
        normal *= np.float32(spread)
        normal += np.float32(mean + 0.5)  # what is above 0 is cut to whole numbers
        drawn = np.clip(normal, 0, 2**16 - 1, out=normal).astype(np.uint16)
    else:
        drawn = np.frombuffer(rng.bytes(2 * down * across * 2), "<u2").reshape(down, across, 2)
        mean, spread = (2**16 - 1) / 2, 2**16 / math.sqrt(12)
    smooth = cv2.GaussianBlur(drawn, (0, 0), sigma)[more:-more, more:-more]
    blurred = spread / (2 * math.sqrt(math.pi) * sigma)  # what the blur left of it
    displacement = smooth - np.float32(mean)
    displacement *= np.float32(rms_px / blurred)
    return lattice.places() + displacement


def displacement_step_px(rms_px: float, sigma_px: float) -> int:
    """The widest lattice whose straight cells are within LATTICE_ERROR_PX of a random displacement.

    Between nodes a distance h apart a curve is h^2 / 8 times its second derivative from straight;
    that of the displacement is sqrt(3) / 2 rms / sigma^2.
    """
    step_px = sigma_px * math.sqrt(8 * LATTICE_ERROR_PX / (math.sqrt(3) / 2 * rms_px))
    return max(1, int(min(step_px, sigma_px / 2)))
