"""Paint synthetic H&E fields: an image and its annotated points.

Axes in names: H height, W width, C red-green-blue, S the two stains (hematoxylin, eosin), P the
side of a patch around one object.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.annotations.brecahad import CLASSES
from data_prep.tools.config import SyntheticConfig
from data_prep.tools.synthetic_layout import (
    KINDS,
    PIXELS,
    CaseStyle,
    Kind,
    Layout,
    Plane,
    Random,
    draw_layout,
    draw_style,
    smooth_noise,
)

Points = dict[str, list[tuple[int, int]]]


def ramp(value: Plane, width: float) -> Plane:
    """Return 0 below -width/2, 1 above width/2, linear between: a soft edge at zero."""
    return np.asarray(np.clip(value / np.float32(width) + np.float32(0.5), 0, 1))


def stroma_density(rng: Random, layout: Layout) -> Plane:
    """Make stain densities of fibrous stroma, with white slits where it is loose: (H, W, S)."""
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


def cytoplasm_density(rng: Random, layout: Layout) -> Plane:
    """Make stain densities in nests: one tint per cell, paler where two cells meet: (H, W, S)."""
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


def tissue_density(rng: Random, style: CaseStyle, layout: Layout) -> Plane:
    """Make stain densities below the cells: stroma, nests, the clefts between: (H, W, S)."""
    shape = layout.nest_depth.shape
    ragged_HW = layout.nest_depth + 2 * smooth_noise(rng, shape, 12)
    cleft_HW = np.maximum(style.cleft_px * (0.4 + smooth_noise(rng, shape, 60)), 0)
    nest_HWS = ramp(ragged_HW, 4)[..., None] * cytoplasm_density(rng, layout)
    return nest_HWS + ramp(-ragged_HW - cleft_HW, 4)[..., None] * stroma_density(rng, layout)


def outline(rng: Random, radius_px: float, stretch: float, angle: float, rough: float) -> Plane:
    """Return the depth of each pixel in an irregular ellipse, in px, negative outside: (P, P)."""
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
    """Return 1 in `num` round dots near the middle of a patch, 0 outside, soft edges: (P, P)."""
    y_PP, x_PP = np.mgrid[:side, :side].astype(np.float32) - side // 2
    dots_PP = np.zeros((side, side), np.float32)
    for x, y in rng.uniform(-spread_px, spread_px, (num, 2)):
        radius_px = size_px * rng.uniform(0.8, 1.3)
        dots_PP = np.maximum(dots_PP, ramp(radius_px - np.hypot(x_PP - x, y_PP - y), 2))
    return dots_PP


def make_object(
    rng: Random, kind: Kind, radius_px: float, angle: float, pale: float
) -> tuple[Plane, Plane]:
    """Return the opacity of an object, 0 to 1 (P, P), and its stain densities (P, P, S)."""
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
    """Return the direction of the fibres at a pixel, in radians from the x axis."""
    near_HW = across_HW[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
    slope_y, slope_x = (slope.mean() for slope in np.gradient(near_HW))
    return float(np.arctan2(slope_x, -slope_y))


def paint(canvas_HWS: Plane, x: int, y: int, cover_PP: Plane, patch_PPS: Plane) -> None:
    """Paint a patch on the canvas, centred on a pixel; cut it at the border of the field."""
    half = len(cover_PP) // 2
    rows, columns = slice(max(half - y, 0), None), slice(max(half - x, 0), None)
    below = canvas_HWS[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
    seen = slice(below.shape[0]), slice(below.shape[1])
    cover, patch = cover_PP[rows, columns][seen], patch_PPS[rows, columns][seen]
    below += cover[..., None] * (patch - below)


def paint_objects(rng: Random, style: CaseStyle, layout: Layout, canvas_HWS: Plane) -> None:
    """Paint every object of the layout; fibroblasts lie along the fibres, others at any angle."""
    for name, kind in KINDS.items():
        for x, y, radius_px in layout.spots[name]:
            turn = rng.normal(0, 0.1) if name == "spindle" else rng.uniform(0, np.pi)
            angle = fibre_angle(layout.across, int(x), int(y)) + turn
            pale = style.pale * rng.uniform(0.3, 1) if name == "tumor" else 0
            paint(canvas_HWS, int(x), int(y), *make_object(rng, kind, radius_px, angle, pale))


def develop(rng: Random, style: CaseStyle, density_HWS: Plane) -> NDArray[np.uint8]:
    """Turn stain densities into a picture: blur, Beer-Lambert, sensor noise: (H, W, C) uint8."""
    shape = density_HWS.shape[:2]
    blurred_HWS = cv2.GaussianBlur(density_HWS, (0, 0), style.blur_px)
    absorbed_HWC = blurred_HWS @ style.stains.astype(np.float32) + style.glass.astype(np.float32)
    light_HWC = 255 * np.exp(-absorbed_HWC) + 2 * smooth_noise(rng, shape, 400)[..., None]
    light_HWC += 1.5 * rng.standard_normal((*shape, 1), dtype=np.float32)
    return np.asarray(np.clip(light_HWC + 0.5, 0, 255).astype(np.uint8))


def make_field(config: SyntheticConfig, case: int, field: int) -> tuple[NDArray[np.uint8], Points]:
    """Make one field: image (H, W, C) uint8 RGB, and the annotated (x, y) pixels by class."""
    style = draw_style(config.seed, case)
    layout = draw_layout(config, style, case, field)
    rng = np.random.default_rng([config.seed, PIXELS, case, field])
    canvas_HWS = tissue_density(rng, style, layout)
    paint_objects(rng, style, layout, canvas_HWS)
    points: Points = {key: [] for key in CLASSES}
    for name, kind in KINDS.items():
        if kind.key:
            points[kind.key] += [(int(x), int(y)) for x, y, _ in layout.spots[name]]
    return develop(rng, style, canvas_HWS), points
