"""Draw made-up H&E fields: an image and its annotated points.

Axes in names: H height, W width, C red-green-blue, S the two stains (hematoxylin, eosin), P the
side of a patch around one object; N3 is one round object a row: x, y and radius, in pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.tools.config import SyntheticConfig

Random = np.random.Generator
Plane = NDArray[np.float32]
Array = NDArray[np.float64]
Points = dict[str, list[tuple[int, int]]]

KEYS = ("mitosis", "non_mitosis", "apoptosis", "tumor", "non_tumor", "lumen", "non_lumen")
STAINS_SC = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])  # Ruifrok & Johnston 2001
FULL_AREA_PX = 1360 * 1024  # counts of objects are per BreCaHAD field and scale with the area
CASE, LAYOUT, PIXELS = range(3)  # random streams: a change to one leaves the others as they were


@dataclass(frozen=True)
class CaseStyle:
    """What the fields of one case have in common."""

    stains: Array  # (S, C) optical density per unit of each stain
    glass: Array  # (C,) optical density of the empty slide
    pale: float  # how pale the inside of a tumour nucleus is, 0 to 1
    fat: float  # how many fat gaps there are, 0 to 1
    infiltrate: float  # how many lymphocytes there are, 0 to 1
    cleft_px: float  # width of the white cleft around a nest
    blur_px: float  # standard deviation of the microscope's blur


@dataclass(frozen=True)
class Layout:
    """Where things lie in one field."""

    nest_depth: Plane  # (H, W) distance to the border of the tumour nests, negative outside, px
    across: Plane  # (H, W) coordinate across the stroma's fibres, constant along a fibre, px
    along: Plane  # (H, W) coordinate along the fibres, px
    spots: dict[str, Array]  # kind of object -> (N, 3) places


@dataclass(frozen=True)
class Kind:
    """One kind of object: how many, where, and how it looks; (a, b) is a range to draw from."""

    key: str  # the annotation key that lists it, or "" where none does
    tries: int  # darts thrown per full field; one too close to an earlier object is dropped
    site: str  # where its centre may lie, of draw_sites
    gap_px: float  # least distance to its neighbours
    radius_px: tuple[float, float]
    stains: tuple[float, float]  # densities inside
    rim: tuple[float, float] = (0, 0)  # densities added along the edge
    texture: float = 0.08  # standard deviation of the hematoxylin inside
    dots: tuple[int, float, float] = (0, 0, 0)  # at most how many, their radius px, their density
    stretch: tuple[float, float] = (1, 1.35)  # length / width
    rough: float = 0.06  # unevenness of the outline, as a share of the radius


EMPTY, MEMBRANE, DENSE = (0.01, 0.02), (0.18, 0.4), (1.2, 0.3)
KINDS = {  # what comes first is placed first and painted first
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
    """Noise of about unit variance over (H, W), `scale_px` between features, wider by `stretch`."""
    steps = (scale_px, scale_px * stretch)
    cells = [int(side / step) + 4 for side, step in zip(shape, steps, strict=True)]
    size_xy = round(cells[1] * steps[1]), round(cells[0] * steps[0])
    lattice = rng.standard_normal(cells, dtype=np.float32)
    fine_HW = cv2.resize(lattice, size_xy, interpolation=cv2.INTER_CUBIC)
    top, left = (int(step) for step in steps)
    return np.asarray(fine_HW[top : top + shape[0], left : left + shape[1]] * np.float32(1.4))


def ramp(value: Plane, width: float) -> Plane:
    """0 below -width/2, 1 above width/2, linear between: a soft edge at zero."""
    return np.asarray(np.clip(value / np.float32(width) + np.float32(0.5), 0, 1))


def draw_style(seed: int, case: int) -> CaseStyle:
    """The staining and the tissue habits of a case."""
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
    """Distance to the border of the tumour nests in pixels, positive inside: (H, W)."""
    level_HW = smooth_noise(rng, shape, 150) + 0.3 * smooth_noise(rng, shape, 45)
    inside_HW = (level_HW > np.quantile(level_HW, 1 - rng.uniform(0.16, 0.38))).astype(np.uint8)
    inner_HW = cv2.distanceTransform(inside_HW, cv2.DIST_L2, 5)
    outer_HW = cv2.distanceTransform(1 - inside_HW, cv2.DIST_L2, 5)
    return np.asarray(inner_HW - outer_HW)


def draw_fibre_axes(rng: Random, nest_depth_HW: Plane) -> tuple[Plane, Plane]:
    """Coordinates (across, along) the fibres in pixels: one direction, bent around the nests."""
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
    """Throw a dart per radius at the allowed pixels; drop those too close to others: (N, 3)."""
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
    """Name of a region -> where it is, (H, W), given the depth in nests."""
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
    """Place everything in one field; what is placed first keeps its room."""
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


def draw_stroma(rng: Random, layout: Layout) -> Plane:
    """Stain densities of fibrous stroma, with white slits where it is loose: (H, W, S)."""
    shape = layout.across.shape
    square = (sum(shape), sum(shape))
    fibre = 0.5 * smooth_noise(rng, square, 4, 14) + 0.6 * smooth_noise(rng, square, 13, 8)
    fibre_HW = cv2.remap(
        fibre, layout.along, layout.across, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT
    )
    fibre_HW += 0.3 * smooth_noise(rng, shape, 5)
    loose_HW = smooth_noise(rng, shape, 130)
    tissue_HW = ramp(fibre_HW + 1.4 - 0.7 * loose_HW, 1.2)
    eosin_HW = (0.72 - 0.16 * loose_HW + 0.20 * fibre_HW) * tissue_HW
    hematoxylin_HW = (0.17 + 0.05 * loose_HW + 0.05 * smooth_noise(rng, shape, 8)) * tissue_HW
    return np.asarray(np.maximum(np.dstack([hematoxylin_HW, eosin_HW]), 0.02))


def draw_cytoplasm(rng: Random, layout: Layout) -> Plane:
    """Stain densities inside nests: one tint per cell, paler where two cells meet: (H, W, S)."""
    shape = layout.nest_depth.shape
    nuclei_HW = np.ones(shape, np.uint8)
    x, y, _ = layout.spots["tumor"].astype(int).T
    nuclei_HW[y, x] = 0
    _, cell_HW = cv2.distanceTransformWithLabels(
        nuclei_HW, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    edge_HW = cv2.morphologyEx(cell_HW.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    border_HW = cv2.GaussianBlur(edge_HW.astype(np.float32), (0, 0), 1.8)
    tint_N = rng.normal(1, 0.18, int(cell_HW.max()) + 1).astype(np.float32)
    grain_HW = smooth_noise(rng, shape, 4) + smooth_noise(rng, shape, 11)
    clear_HW = border_HW * ramp(smooth_noise(rng, shape, 30), 2)
    body_HW1 = (tint_N[cell_HW] + 0.11 * grain_HW - 0.9 * clear_HW)[..., None]
    return np.asarray(np.maximum(body_HW1 * np.array([0.36, 0.42], np.float32), 0.02))


def draw_tissue(rng: Random, style: CaseStyle, layout: Layout) -> Plane:
    """Stain densities of all that is no cell (stroma, nests, the clefts between): (H, W, S)."""
    shape = layout.nest_depth.shape
    ragged_HW = layout.nest_depth + 2 * smooth_noise(rng, shape, 12)
    cleft_HW = np.maximum(style.cleft_px * (0.4 + smooth_noise(rng, shape, 60)), 0)
    nest_HWS = ramp(ragged_HW, 4)[..., None] * draw_cytoplasm(rng, layout)
    return nest_HWS + ramp(-ragged_HW - cleft_HW, 4)[..., None] * draw_stroma(rng, layout)


def outline(rng: Random, radius_px: float, stretch: float, angle: float, rough: float) -> Plane:
    """How deep each pixel lies in an irregular ellipse, in pixels, negative outside: (P, P)."""
    half = int(radius_px * np.sqrt(stretch) * 1.2) + 4
    y_PP, x_PP = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along_PP = (np.cos(angle) * x_PP + np.sin(angle) * y_PP) / np.sqrt(stretch)
    across_PP = (np.cos(angle) * y_PP - np.sin(angle) * x_PP) * np.sqrt(stretch)
    turn_PP = np.arctan2(across_PP, along_PP)
    edge_PP = np.ones_like(turn_PP)
    for waves in (2, 3, 4, 5):
        edge_PP += rng.normal(0, rough / waves) * np.cos(waves * turn_PP + rng.uniform(0, 6.3))
    depth_PP = (radius_px * edge_PP - np.hypot(along_PP, across_PP)) / np.sqrt(stretch)
    return np.asarray(depth_PP, np.float32)


def dots(rng: Random, side: int, num: int, spread_px: float, size_px: float) -> Plane:
    """1 in `num` round dots near the middle of a patch, 0 elsewhere, soft edges: (P, P)."""
    y_PP, x_PP = np.mgrid[:side, :side].astype(np.float32) - side // 2
    dots_PP = np.zeros((side, side), np.float32)
    for x, y in rng.uniform(-spread_px, spread_px, (num, 2)):
        radius_px = size_px * rng.uniform(0.8, 1.3)
        dots_PP = np.maximum(dots_PP, ramp(radius_px - np.hypot(x_PP - x, y_PP - y), 2))
    return dots_PP


def draw_object(
    rng: Random, kind: Kind, radius_px: float, angle: float, pale: float
) -> tuple[Plane, Plane]:
    """How far an object covers what is below, 0 to 1 (P, P), and its densities (P, P, S)."""
    depth_PP = outline(rng, radius_px, rng.uniform(*kind.stretch), angle, kind.rough)
    rim_PP1 = np.exp(-np.square((depth_PP - 1.5) / 1.8))[..., None]
    patch_PPS = np.array(kind.stains, np.float32) + rim_PP1 * np.array(kind.rim, np.float32)
    clumps_PP = smooth_noise(rng, depth_PP.shape, 3.5) + 0.7 * smooth_noise(rng, depth_PP.shape, 7)
    patch_PPS[..., 0] += kind.texture * clumps_PP - 0.35 * pale
    patch_PPS *= rng.normal(1, 0.12)
    most, dot_px, density = kind.dots
    num = int(rng.integers(most // 3, most + 1))
    patch_PPS[..., 0] += density * dots(rng, len(depth_PP), num, 0.4 * radius_px, dot_px)
    return ramp(depth_PP, 2), np.maximum(patch_PPS, 0)


def fibre_angle(across_HW: Plane, x: int, y: int) -> float:
    """Direction of the fibres at a pixel, in radians from the x axis."""
    near_HW = across_HW[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
    slope_y, slope_x = (slope.mean() for slope in np.gradient(near_HW))
    return float(np.arctan2(slope_x, -slope_y))


def paint(canvas_HWS: Plane, x: int, y: int, cover_PP: Plane, patch_PPS: Plane) -> None:
    """Lay a patch over the canvas, centred on a pixel; what is outside of the field is cut."""
    half = len(cover_PP) // 2
    rows, columns = slice(max(half - y, 0), None), slice(max(half - x, 0), None)
    below = canvas_HWS[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
    seen = slice(below.shape[0]), slice(below.shape[1])
    cover, patch = cover_PP[rows, columns][seen], patch_PPS[rows, columns][seen]
    below += cover[..., None] * (patch - below)


def paint_objects(rng: Random, style: CaseStyle, layout: Layout, canvas_HWS: Plane) -> None:
    """Paint every object of the layout; fibroblasts lie along the fibres, the others anyhow."""
    for name, kind in KINDS.items():
        for x, y, radius_px in layout.spots[name]:
            turn = rng.normal(0, 0.1) if name == "spindle" else rng.uniform(0, np.pi)
            angle = fibre_angle(layout.across, int(x), int(y)) + turn
            pale = style.pale * rng.uniform(0.3, 1) if name == "tumor" else 0
            paint(canvas_HWS, int(x), int(y), *draw_object(rng, kind, radius_px, angle, pale))


def develop(rng: Random, style: CaseStyle, density_HWS: Plane) -> NDArray[np.uint8]:
    """Stain densities -> the camera's picture: blur, Beer-Lambert, sensor noise: (H, W, C)."""
    shape = density_HWS.shape[:2]
    blurred_HWS = cv2.GaussianBlur(density_HWS, (0, 0), style.blur_px)
    absorbed_HWC = blurred_HWS @ style.stains.astype(np.float32) + style.glass.astype(np.float32)
    light_HWC = 255 * np.exp(-absorbed_HWC) + 2 * smooth_noise(rng, shape, 400)[..., None]
    light_HWC += 1.5 * rng.standard_normal((*shape, 1), dtype=np.float32)
    return np.asarray(np.clip(light_HWC + 0.5, 0, 255).astype(np.uint8))


def draw_field(config: SyntheticConfig, case: int, field: int) -> tuple[NDArray[np.uint8], Points]:
    """One field: image (H, W, C) uint8 RGB, and the (x, y) pixels of each key's annotations."""
    style = draw_style(config.seed, case)
    layout = draw_layout(config, style, case, field)
    rng = np.random.default_rng([config.seed, PIXELS, case, field])
    canvas_HWS = draw_tissue(rng, style, layout)
    paint_objects(rng, style, layout, canvas_HWS)
    points: Points = {key: [] for key in KEYS}
    for name, kind in KINDS.items():
        if kind.key:
            points[kind.key] += [(int(x), int(y)) for x, y, _ in layout.spots[name]]
    return develop(rng, style, canvas_HWS), points
