"""Move a field's image, mask and points together, as its variants show them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.augment.variants import ORIGINAL, Border, Variant
from data_prep.config import FLIPS, MARGIN_PX, MAX_SIDE_PX, PIPELINE
from data_prep.images.arrays import Image, Mask, PointsPx
from data_prep.raw import BadInputError

POINT_DECIMALS = 3  # of points, in px


@dataclass(frozen=True)
class Annotated:
    """An image, the points in it, and the part of its mask that moves with the image."""

    image_HWC: Image
    points: PointsPx
    mask_HW: Mask | None = None
    middles: PointsPx | None = None
    """The middles of areas in the mask, where it has any."""


def apply(field: Annotated, variants: Sequence[Variant], border: Border) -> Iterator[Annotated]:
    """Yield the variants of a field in turn, of the same sizes and types.

    Points that come to lie up to MARGIN_PX outside come too: their discs may reach in. In a
    mirrored border a point comes again. Raises BadInputError for a picture that is too large.
    """
    for variant in variants:
        yield field if variant.transform == ORIGINAL else move(field, variant, border)


def move(field: Annotated, variant: Variant, border: Border) -> Annotated:
    """Return the field as a variant shows it. Raises BadInputError as apply()."""
    height_px, width_px = field.image_HWC.shape[:2]
    check_size(height_px, width_px, variant)
    groups = [*field.points.values(), *(field.middles or {}).values()]
    group_of = np.repeat(np.arange(len(groups)), [*map(len, groups)])
    points_N2 = np.concatenate([np.zeros((0, 2)), *groups])
    given = {"image": field.image_HWC, "keypoints": np.column_stack([points_N2, group_of])}
    if field.mask_HW is not None:
        given["mask"] = field.mask_HW
    moved = albumentations_of(variant, border)(**given)

    moved_M2 = np.round(moved["keypoints"][:, :2].astype(np.float64), POINT_DECIMALS)
    end = np.array([width_px, height_px]) + MARGIN_PX
    is_near = np.all((moved_M2 > -MARGIN_PX) & (moved_M2 < end), axis=1)
    group_of = moved["keypoints"][:, -1]
    moved_groups = [moved_M2[is_near & (group_of == group)] for group in range(len(groups))]
    num_classes = len(field.points)
    points = dict(zip(field.points, moved_groups[:num_classes], strict=True))
    middles = None
    if field.middles is not None:
        middles = dict(zip(field.middles, moved_groups[num_classes:], strict=True))
    return Annotated(moved["image"], points, moved.get("mask"), middles)


def albumentations_of(variant: Variant, border: Border) -> Any:
    """The transform of a variant, for `image`, `mask` and `keypoints`."""
    # Imported late: it takes half a second, which a run that augments nothing need not wait for
    if variant.transform == PIPELINE:
        from data_prep.augment import pipeline

        return pipeline.seeded(pipeline.build(variant.pipeline, with_points=True), variant.seed)
    from data_prep.augment.transforms import pipeline_of

    return pipeline_of(variant, border)


def check_size(height_px: int, width_px: int, variant: Variant) -> None:
    """Raise BadInputError where pixels may come from too far away to be counted in 16 bit."""
    if variant.transform in (*FLIPS, PIPELINE):
        return
    drawn = variant.parameters
    half_diagonal_px = math.hypot(height_px, width_px) / 2
    farthest_px = max(height_px, width_px) / 2 + 5 * drawn.get("rms_px", 0)
    farthest_px += half_diagonal_px * max(1.3, 1 / drawn.get("factor", 1))  # 1.3: of a lens
    if farthest_px > MAX_SIDE_PX:
        raise BadInputError(
            f"{width_px} x {height_px} px is too large for variant {variant.index}"
            f" ({variant.transform}), which may need pixels {farthest_px:.0f} px away (at most"
            f" {MAX_SIDE_PX}): cut it with tile_px=1024"
        )
