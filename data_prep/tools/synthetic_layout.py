"""Draw at random the layout of synthetic H&E fields, and the style of their cases.

Axes in names: H height, W width, C red-green-blue, S the two stains (hematoxylin, eosin); N3 is
one round object in each row: x, y and radius, in pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.tools.config import SyntheticConfig

Random = np.random.Generator
Plane = NDArray[np.float32]
Array = NDArray[np.float64]

STAINS_SC = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])  # Ruifrok & Johnston 2001
FULL_AREA_PX = 1360 * 1024  # counts of objects are per BreCaHAD field and scale with the area
CASE, LAYOUT, PIXELS = range(3)  # random streams: changing one does not change the others


@dataclass(frozen=True)
class CaseStyle:
    """The look that all fields of one case have."""

    stains: Array  # (S, C) optical density per unit of each stain
    glass: Array  # (C,) optical density of the empty slide
    pale: float  # how pale the inside of a tumour nucleus is, 0 to 1
    fat: float  # amount of fat gaps, 0 to 1
    infiltrate: float  # amount of lymphocytes, 0 to 1
    cleft_px: float  # width of the white cleft around a nest
    blur_px: float  # standard deviation of the microscope's blur


@dataclass(frozen=True)
class Layout:
    """The positions of everything in one field."""

    nest_depth: Plane  # (H, W) distance to the border of the tumour nests, negative outside, px
    across: Plane  # (H, W) coordinate across the stroma's fibres, constant along a fibre, px
    along: Plane  # (H, W) coordinate along the fibres, px
    spots: dict[str, Array]  # kind of object -> (N, 3) x, y and radius, px


@dataclass(frozen=True)
class Kind:
    """One kind of object: how many, where, and how it looks; (a, b) is a range to draw from."""

    key: str  # the class that it is annotated as; "" for none
    tries: int  # darts thrown per full field; one too close to an earlier object is dropped
    site: str  # the region of draw_sites() in which its centre lies
    gap_px: float  # least distance to its neighbours
    radius_px: tuple[float, float]
    stains: tuple[float, float]  # densities inside
    rim: tuple[float, float] = (0, 0)  # densities added along the edge
    texture: float = 0.08  # standard deviation of the hematoxylin inside
    dots: tuple[int, float, float] = (0, 0, 0)  # largest number, radius px, density
    stretch: tuple[float, float] = (1, 1.35)  # length / width
    rough: float = 0.06  # unevenness of the outline, as a fraction of the radius


EMPTY, MEMBRANE, DENSE = (0.01, 0.02), (0.18, 0.4), (1.2, 0.3)
KINDS = {  # in the order of placing and painting
    "fat": Kind("non_lumen", 40, "fat", 3, (25, 75), EMPTY, MEMBRANE, 0, rough=0.12),
    "lumen": Kind("lumen", 4, "lumen", 10, (14, 30), EMPTY, MEMBRANE, 0, rough=0.12),
    "mitosis": Kind("mitosis", 3, "nest", 6, (17, 20), (0.1, 0.25), dots=(9, 4, 2)),
    "apoptosis": Kind("apoptosis", 3, "nest", 6, (13, 15), (0.2, 0.9), (-0.3, -1), dots=(3, 4, 2)),
    "smudge": Kind("non_mitosis", 2, "nest", 6, (11, 15), (1.4, 0.5), stretch=(1.2, 2), rough=0.1),
    "tumor": Kind("tumor", 900, "nest", 1.5, (16.5, 20), (0.75, 0.3), (0.2, 0), 0.12, (3, 2.4, 1)),
    "spindle": Kind("non_tumor", 180, "stroma", 4, (8, 12), (1, 0.4), stretch=(3, 8), rough=0.12),
    "lymphocyte": Kind("non_tumor", 900, "crowd", 0, (7.5, 10.5), DENSE),
    "stray": Kind("non_tumor", 80, "tissue", 1, (7, 10), DENSE),
    "red": Kind("", 500, "vessel", -1, (6.5, 8.5), (0.04, 1.7), rough=0.1),
}


def smooth_noise(rng: Random, shape: tuple[int, ...], scale_px: float, stretch: float = 1) -> Plane:
    """Draw (H, W) noise of unit variance, with features `scale_px` apart, wider by `stretch`."""
    steps = (scale_px, scale_px * stretch)
    cells = [int(side / step) + 4 for side, step in zip(shape, steps, strict=True)]
    size_xy = round(cells[1] * steps[1]), round(cells[0] * steps[0])
    lattice = rng.standard_normal(cells, dtype=np.float32)
    fine_HW = cv2.resize(lattice, size_xy, interpolation=cv2.INTER_CUBIC)
    top, left = (int(step) for step in steps)
    return np.asarray(fine_HW[top : top + shape[0], left : left + shape[1]] * np.float32(1.4))


def draw_style(seed: int, case: int) -> CaseStyle:
    """Draw the staining and the tissue habits of a case."""
    rng = np.random.default_rng([seed, CASE, case])
    strength_S1 = rng.uniform((0.65, 0.45), (1.15, 1.0))[:, None]
    hue_SC = STAINS_SC + rng.uniform(0, 1, (2, 1)) * [[0.08, 0.02, 0.0], [0.14, -0.12, 0.16]]
    return CaseStyle(
        stains=strength_S1 * hue_SC,
        glass=rng.uniform(0.01, 0.05) + rng.uniform(0, 0.03, 3),
        pale=rng.uniform(0.6, 1),
        fat=rng.uniform(0, 1),
        infiltrate=rng.uniform(0.5, 1),
        cleft_px=rng.uniform(0, 14),
        blur_px=rng.uniform(0.6, 1.3),
    )


def draw_nest_depth(rng: Random, shape: tuple[int, int]) -> Plane:
    """Draw tumour nests: (H, W) distance to their border in px, positive inside."""
    level_HW = smooth_noise(rng, shape, 150) + 0.3 * smooth_noise(rng, shape, 45)
    inside_HW = (level_HW > np.quantile(level_HW, 1 - rng.uniform(0.16, 0.38))).astype(np.uint8)
    inner_HW = cv2.distanceTransform(inside_HW, cv2.DIST_L2, 5)
    outer_HW = cv2.distanceTransform(1 - inside_HW, cv2.DIST_L2, 5)
    return np.asarray(inner_HW - outer_HW)


def draw_fibre_axes(rng: Random, nest_depth_HW: Plane) -> tuple[Plane, Plane]:
    """Draw fibres in one direction, bent around the nests: coordinates (across, along) in px."""
    shape = nest_depth_HW.shape
    y_HW, x_HW = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    bend_HW = cv2.blur(np.maximum(nest_depth_HW, -90), (61, 61))
    wave_HW = 40 * smooth_noise(rng, shape, 260) + 5 * smooth_noise(rng, shape, 50)
    return cos * y_HW - sin * x_HW + bend_HW + wave_HW, cos * x_HW + sin * y_HW


def scatter(
    rng: Random, allowed_HW: NDArray[np.bool_], radii_px: Array, taken_N3: Array, gap_px: float
) -> Array:
    """Throw one dart per radius at the allowed pixels; drop darts too close to others: (N, 3)."""
    pixels = np.flatnonzero(allowed_HW)
    if not len(pixels):
        return np.zeros((0, 3))
    y, x = np.divmod(rng.choice(pixels, len(radii_px)), allowed_HW.shape[1])
    spots_N3 = np.concatenate([taken_N3, np.zeros((len(radii_px), 3))])
    used = len(taken_N3)
    for dart in np.stack([x, y, radii_px], axis=1):
        apart_N = np.hypot(*(spots_N3[:used, :2] - dart[:2]).T) - spots_N3[:used, 2] - dart[2]
        if np.all(apart_N >= gap_px):
            spots_N3[used] = dart
            used += 1
    return spots_N3[len(taken_N3) : used]


def draw_sites(rng: Random, depth_HW: Plane, cleft_px: float) -> dict[str, NDArray[np.bool_]]:
    """Draw the regions, given the depth in nests: name -> (H, W)."""
    stroma_HW = depth_HW < -cleft_px - 6
    return {
        "nest": depth_HW > 14,
        "lumen": depth_HW > 40,
        "fat": depth_HW < -60,
        "stroma": stroma_HW,
        "tissue": stroma_HW | (depth_HW > 12),
        "crowd": stroma_HW & (smooth_noise(rng, depth_HW.shape, 110) > 0.4),
        "vessel": stroma_HW & (smooth_noise(rng, depth_HW.shape, 70) > 1.9),
    }


def draw_layout(config: SyntheticConfig, style: CaseStyle, case: int, field: int) -> Layout:
    """Draw the positions of everything in one field; earlier objects keep their room."""
    rng = np.random.default_rng([config.seed, LAYOUT, case, field])
    shape = (config.height_px, config.width_px)
    depth_HW = draw_nest_depth(rng, shape)
    across_HW, along_HW = draw_fibre_axes(rng, depth_HW)
    sites = draw_sites(rng, depth_HW, style.cleft_px)
    habits = {"fat": style.fat, "lymphocyte": style.infiltrate}
    spots: dict[str, Array] = {}
    for name, kind in KINDS.items():
        tries = kind.tries * habits.get(name, 1) * depth_HW.size / FULL_AREA_PX
        radii_px = rng.uniform(*kind.radius_px, rng.poisson(tries))
        taken_N3 = np.concatenate([np.zeros((0, 3)), *spots.values()])
        spots[name] = scatter(rng, sites[kind.site], radii_px, taken_N3, kind.gap_px)
    return Layout(depth_HW, across_HW, along_HW, spots)
