"""Variants of a field: one named transform each, with parameters drawn from a seed.

A variant's image is interpolated once, and its points are moved by the same map (see warp.py). What
comes in from outside the field is the field mirrored, if not asked for otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from common import seeds
from data_prep.augment import inverse
from data_prep.augment.warp import (
    Border,
    Bordered,
    Lattice,
    Noise,
    Warp,
    displacement_step_px,
    flip,
    lens,
    lens_step_px,
    random_displacement,
    turn_and_scale,
)
from data_prep.config import (
    FLIPS,
    MAX_SIDE_PX,
    AugmentConfig,
    DisplacementConfig,
    LensConfig,
)
from data_prep.images.arrays import Image, Mask, PointsPx
from data_prep.raw import BadInputError

ORIGINAL = "original"
STRAIGHT_STEP_PX = 32  # of maps that are linear, which any lattice has exactly
NOISE: dict[str, Noise] = {"elastic": "uniform", "gaussian": "normal"}
AT_A_TIME = 16  # variants of a field whose points are moved together
POINT_DECIMALS = 3  # of points, in px


@dataclass(frozen=True)
class Variant:
    """One variant of a field: `transform` with the parameters drawn from `seed`."""

    index: int
    transform: str
    seed: int
    parameters: dict[str, float]


def plan_variants(field: str, copies: int, config: AugmentConfig, seed: int) -> list[Variant]:
    """Variant 0, the original, and copies - 1 others that go through the transforms in turn.

    A flip draws nothing, so it is used once; the others come again with new draws.
    """
    variants = [Variant(0, ORIGINAL, 0, {})]
    names = list(config.transforms)
    while len(variants) < copies:
        for name in names[: copies - len(variants)]:
            variant_seed = seeds.derive_seed(seed, "augment", field, len(variants))
            parameters = draw_parameters(name, config, variant_seed)
            variants.append(Variant(len(variants), name, variant_seed, parameters))
        names = [name for name in config.transforms if name not in FLIPS]
    return variants


def draw_parameters(name: str, config: AugmentConfig, seed: int) -> dict[str, float]:
    """The drawn numbers of a transform; displacements are drawn from the seed when applied."""
    rng = np.random.default_rng(seed)
    if name == "rotation":
        return {"angle_deg": rng.uniform(-config.rotation.max_deg, config.rotation.max_deg)}
    if name in ("elastic", "gaussian"):
        displacement: DisplacementConfig = getattr(config, name)
        return {"rms_px": displacement.rms_px, "sigma_px": displacement.sigma_px}
    if name in ("barrel", "pincushion"):
        lens: LensConfig = getattr(config, name)
        k = rng.uniform(lens.min_k, lens.max_k)
        return {"k": k if name == "barrel" else -k}
    if name == "scale":
        low, high = math.log(config.scale.min), math.log(config.scale.max)
        return {"factor": math.exp(rng.uniform(low, high))}
    return {}


def warp_of(variant: Variant, height_px: int, width_px: int, border: Border) -> Warp:
    """The map of a variant of a field of this size."""
    drawn = variant.parameters

    def lattice(step_px: int) -> Lattice:
        return Lattice(height_px, width_px, step_px)

    match variant.transform:
        case "horizontal_flip" | "vertical_flip" as name:
            nodes = lattice(STRAIGHT_STEP_PX)
            sources = flip(nodes, FLIPS.index(name))
        case "rotation":
            nodes = lattice(STRAIGHT_STEP_PX)
            sources = turn_and_scale(nodes, drawn["angle_deg"], 1.0)
        case "scale":
            nodes = lattice(STRAIGHT_STEP_PX)
            sources = turn_and_scale(nodes, 0.0, drawn["factor"])
        case "barrel" | "pincushion":
            nodes = lattice(lens_step_px(height_px, width_px))
            sources = lens(nodes, drawn["k"])
        case "elastic" | "gaussian" as name:
            nodes = lattice(displacement_step_px(**drawn))
            rng = np.random.default_rng(variant.seed)
            sources = random_displacement(nodes, **drawn, noise=NOISE[name], rng=rng)
    return Warp(nodes, sources, border)


@dataclass(frozen=True)
class Annotated:
    """A picture with the points in it, and what of its mask is moved and not redrawn."""

    image_HWC: Image
    points: PointsPx
    mask_HW: Mask | None = None
    middles: PointsPx | None = None
    """The middles of areas in the mask, where it has any."""


def apply(annotated: Annotated, variants: Sequence[Variant], border: Border) -> Iterator[Annotated]:
    """Variants of a field, one after the other: the same sizes and types come back.

    Points come, too, that now lie up to warp.MARGIN_PX outside, whose discs may reach in. Raises
    BadInputError for a picture that is too large for a variant.
    """
    image, mask = Bordered(annotated.image_HWC, border), None
    if annotated.mask_HW is not None:  # what comes in from outside is background
        mask = Bordered(annotated.mask_HW, "mirror" if border == "mirror" else "black")
    for first in range(0, len(variants), AT_A_TIME):
        some = variants[first : first + AT_A_TIME]
        moved = move(annotated, image, mask, [of for of in some if of.transform != ORIGINAL])
        yield from (annotated if of.transform == ORIGINAL else next(moved) for of in some)


def move(
    annotated: Annotated, image: Bordered, mask: Bordered | None, variants: Sequence[Variant]
) -> Iterator[Annotated]:
    """Some variants that are not the original; all of their maps are held at once."""
    height_px, width_px = annotated.image_HWC.shape[:2]
    warps = [warp_of(variant, height_px, width_px, image.border) for variant in variants]
    reaches_px = [
        checked_reach(variant, warp)
        for variant, warp in zip(variants, warps, strict=True)
        if variant.transform not in FLIPS  # which see no border
    ]
    for picture in (image, mask):
        if picture is not None:
            picture.draw(reaches_px)
    points = move_points(annotated.points, warps)
    middles: Sequence[PointsPx | None] = [None] * len(warps)
    if annotated.middles is not None:
        middles = move_points(annotated.middles, warps)
    for variant, warp, its_points, its_middles in zip(
        variants, warps, points, middles, strict=True
    ):
        # of a mask, no value that it did not hold before
        mask_HW = None if mask is None else move_pixels(mask, variant, warp, cv2.INTER_NEAREST)
        image_HWC = move_pixels(image, variant, warp, cv2.INTER_LINEAR)
        yield Annotated(image_HWC, its_points, mask_HW, its_middles)


def checked_reach(variant: Variant, warp: Warp) -> int:
    """How far the variant sees beyond the field, in px. Raises BadInputError where that is too far
    to be counted in 16 bit."""
    height_px, width_px = warp.lattice.height_px, warp.lattice.width_px
    if max(height_px, width_px) + warp.reach_px > MAX_SIDE_PX:
        raise BadInputError(
            f"{width_px} x {height_px} px is too large for variant {variant.index}"
            f" ({variant.transform}), which looks {warp.reach_px} px further (at most {MAX_SIDE_PX}"
            " in all): cut it with tile_px=1024"
        )
    return warp.reach_px


def move_pixels(picture: Bordered, variant: Variant, warp: Warp, interpolation: int) -> Image:
    """A picture, HW or HWC uint8, as the variant shows it."""
    if variant.transform in FLIPS:  # needs no interpolation
        return cv2.flip(picture.pixels, 1 - FLIPS.index(variant.transform))
    return warp.move_pixels(picture, interpolation)


def move_points(points: PointsPx, warps: Sequence[Warp]) -> list[PointsPx]:
    """The points of a field where each variant shows them."""
    class_of = np.repeat(np.arange(len(points)), [*map(len, points.values())])
    x, y = np.concatenate([np.zeros((0, 2)), *points.values()]).T
    moved = []
    for places, which in inverse.move_points(x + 1j * y, warps):
        places_N2 = np.round(places.view(np.float64).reshape(-1, 2), POINT_DECIMALS)
        classes = class_of[which]
        moved.append({name: places_N2[classes == index] for index, name in enumerate(points)})
    return moved
