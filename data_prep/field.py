"""Prepare one field of view: read it, and write its variants' images, masks and points.

A field is one task for one worker: read once, written `copies` times.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import brecahad, images, masks, records
from data_prep.augment import Annotated, Original, plan_variants
from data_prep.config import PrepConfig
from data_prep.manifest import unpublish
from data_prep.raw import BadFile, BadInputError, Field, Points
from data_prep.tiles import Tile, points_in, tissue_share
from data_prep.warp import MAX_SIDE_PX


@dataclass(frozen=True)
class FieldTask:
    """All that a worker needs to prepare one field."""

    field: Field
    tile: Tile | None
    """The part of the image that is the field; None where the whole image is."""
    copies: int
    out: Path
    config: PrepConfig
    key: str
    """A hash over everything that decides its prepared bytes, see `records`."""

    @property
    def name(self) -> str:
        """The field's name, by which its samples and its record are called."""
        return self.field.name + (self.tile.suffix if self.tile else "")


@dataclass(frozen=True)
class FieldResult:
    """The records of a field's samples (all of Sample but the split), or why there are none."""

    samples: list[dict[str, Any]]
    bad: list[BadFile]


def prepare_field(task: FieldTask) -> FieldResult:
    """Prepare one field, whatever stands there. A tile of glass has no samples."""
    field, raw = task.field, Path(task.config.raw)
    bad = []
    try:
        points = read_points(task)
    except (BadInputError, OSError) as error:
        bad.append(BadFile(str(field.annotation.relative_to(raw)), str(error)))
    try:
        image_HWC = read_image(task)
    except (BadInputError, OSError) as error:
        bad.append(BadFile(str(field.image.relative_to(raw)), str(error)))
    if bad:
        return FieldResult([], bad)
    unpublish(task.out)
    records.remove(task.out, task.name)
    samples = [] if is_glass(task, image_HWC, points) else write_variants(task, image_HWC, points)
    records.write(task.out, task.name, task.key, samples)
    return FieldResult(samples, [])


def read_points(task: FieldTask) -> Points:
    """The field's points of every class. Raises BadInputError, also where a class has no list."""
    points = parse_annotation(task.field.annotation)
    brecahad.select_classes(points, task.config.classes)
    return points_in(points, task.tile) if task.tile else points


@lru_cache(maxsize=1)
def parse_annotation(path: Path) -> Points:
    """A file's points; a worker's tiles are mostly of one image."""
    return brecahad.parse_points(path.read_bytes())


def read_image(task: FieldTask) -> images.Image:
    """The field's pixels. Raises BadInputError."""
    path, white = task.field.image, task.config.uint16_white
    if task.tile:
        return images.read_tile(path, task.tile.box, white)
    image_HWC = images.read_image(path, white)
    height_px, width_px = image_HWC.shape[:2]
    if max(height_px, width_px) > MAX_SIDE_PX:
        raise BadInputError(
            f"{width_px} x {height_px} px is too large for one field (at most {MAX_SIDE_PX}):"
            " cut it with tile_px=1024"
        )
    return image_HWC


def is_glass(task: FieldTask, image_HWC: images.Image, points: Points) -> bool:
    """Whether this is a tile with neither tissue nor a point."""
    if task.tile is None or any(inside_only(points).values()):
        return False
    return tissue_share(image_HWC) < task.config.min_tissue


def write_variants(
    task: FieldTask, image_HWC: images.Image, points: Points
) -> list[dict[str, Any]]:
    """Write every variant's files; returns their records."""
    config = task.config
    values = masks.label_values(config.classes, config.labels)
    height_px, width_px = image_HWC.shape[:2]

    def draw(points: Points) -> images.Mask:
        return masks.draw_mask(points, values, config.radius_px, height_px, width_px)

    mask_HW = draw(points) if config.mask_mode == "warp" else None
    original = Original(Annotated(image_HWC, points, mask_HW), config.augment.border)
    samples = []
    for variant in plan_variants(task.name, task.copies, config.augment, config.seed):
        moved = original.apply(variant)
        mask_HW = draw(moved.points) if moved.mask_HW is None else moved.mask_HW
        sample_id = f"{task.name}_v{variant.index:02d}_{variant.transform}"
        files = {
            "image": (
                f"images/{sample_id}.{config.format}",
                images.encode_image(moved.image_HWC, config.format, config.jpg_quality),
            ),
            "mask": (f"masks/{sample_id}.png", images.encode_mask(mask_HW)),
            "points": (
                f"points/{sample_id}.json",
                brecahad.encode_points(inside_only(moved.points)),
            ),
        }
        samples.append(
            {
                "id": sample_id,
                "case": task.field.case,
                "field": task.name,
                "variant": variant.index,
                "transform": variant.transform,
                "parameters": variant.parameters,
                "seed": variant.seed,
                "height_px": height_px,
                "width_px": width_px,
                "foreground_px": int(np.count_nonzero(mask_HW)),
                **write_files(task.out, files),
            }
        )
    return samples


def write_files(out: Path, files: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Write kind -> (path, content); returns what the manifest says of each.

    In place: the field's record, which vouches for them, is away meanwhile.
    """
    said: dict[str, Any] = {}
    for kind, (path, content) in files.items():
        (out / path).write_bytes(content)
        said |= {
            kind: path,
            f"{kind}_bytes": len(content),
            f"{kind}_sha256": hashlib.sha256(content).hexdigest(),
        }
    return said


def inside_only(points: Points) -> Points:
    """The points whose pixel is in the picture."""
    return {
        name: [(x, y) for x, y in entries if 0 <= x <= 1 and 0 <= y <= 1]
        for name, entries in points.items()
    }
