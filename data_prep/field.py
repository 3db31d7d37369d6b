"""Prepare one field of view: read it, and write the images, masks and points of its variants.

A field is one task for one worker: read once, written `copies` times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2

from common.ownership import Item
from data_prep import records
from data_prep.annotations import brecahad
from data_prep.annotations.findings import Findings
from data_prep.annotations.formats import reader_of
from data_prep.annotations.reader import Annotation, AnnotationReader, with_middles
from data_prep.augment.moving import Annotated, apply
from data_prep.augment.variants import Variant, plan_variants
from data_prep.config import IGNORE_LABEL, MAX_SIDE_PX, PrepConfig
from data_prep.dataset.manifest import unpublish
from data_prep.image_files.normalised import open_normalised
from data_prep.image_files.open_image import open_image
from data_prep.images import encoding, masks
from data_prep.images.arrays import Image, Mask, PointsPx
from data_prep.images.rescaling import at_resolution
from data_prep.images.stains import reference_of
from data_prep.images.tiles import Tile, inside_only, outside_only, tissue_fraction, whole
from data_prep.raw import CHANGED, BadFile, BadInputError, Field


@dataclass(frozen=True)
class FieldTask:
    """What a worker needs to prepare one field."""

    field: Field
    tile: Tile | None
    """The tile of the image that is the field; None if the whole image is."""
    copies: int
    out: Path
    config: PrepConfig
    key: str
    """Hash of everything that decides the prepared bytes, see `records`."""
    stamps: records.Stamps
    """The stamps of the files whose content is in the key."""

    @property
    def name(self) -> str:
        """The field's name; the names of its samples and its record begin with it."""
        return self.field.name + (self.tile.suffix if self.tile else "")

    @property
    def values(self) -> dict[str, int]:
        """Class -> mask value."""
        return masks.label_values(self.config.classes, self.config.labels)


@dataclass(frozen=True)
class PreparedField:
    """The records of a field's samples (Sample without the split), or the bad files."""

    samples: list[dict[str, Any]]
    bad: list[BadFile]
    findings: Findings = field(default_factory=Findings)
    """What the annotation of the whole image holds; the tiles of an image have the same."""
    largest_uint16: int = 0
    """As ImageFile.largest_uint16."""
    not_normalised: str = ""
    """As ImageFile.not_normalised."""

    @property
    def is_glass(self) -> bool:
        """Whether the field is a tile of glass, to be left out."""
        return not self.samples and not self.bad


def prepare_field(task: FieldTask) -> PreparedField:
    """Prepare one field, replacing its earlier files. A tile of glass gets no samples."""
    field, raw, reader = task.field, Path(task.config.raw), reader_of(task.config)
    bad: list[BadFile] = []
    with errors_collected(field.annotation, raw, bad):
        parsed = parse_annotation(reader, field)
    with errors_collected(field.image, raw, bad):
        image_HWC, tile, largest_uint16, not_normalised = read_image(task)
    if bad:
        return PreparedField([], bad)
    with errors_collected(field.annotation, raw, bad):
        annotation = reader.annotation_in(parsed, tile, task.values)
        findings = reader.findings(parsed, tile)
    for path, stamp in task.stamps:
        with errors_collected(path, raw, bad):
            if records.stamp_of(path) != stamp:  # changed since its preparation was planned
                raise BadInputError(CHANGED)
    if bad:
        return PreparedField([], bad)
    with errors_collected(field.image, raw, bad):
        is_kept = task.tile is None or not is_glass(task, task.tile, image_HWC, annotation)
    if bad:
        return PreparedField([], bad)
    with records.item_of(task.out, task.name) as item:
        try:
            samples = write_variants(task, image_HWC, annotation, item) if is_kept else []
        except BadInputError as error:  # not OSError: it comes from writing, not from the raw file
            return PreparedField([], [BadFile(str(field.image.relative_to(raw)), str(error))])
        unpublish(task.out)
        noted = {"largest_uint16": largest_uint16, "not_normalised": not_normalised}
        item.publish({"key": task.key, "samples": samples, "findings": asdict(findings), **noted})
    return PreparedField(samples, [], findings, largest_uint16, not_normalised)


@contextmanager
def errors_collected(path: Path, raw: Path, bad: list[BadFile]) -> Iterator[None]:
    """Add a raw file to the bad ones if using it fails."""
    try:
        yield
    except (BadInputError, OSError) as error:
        bad.append(BadFile(str(path.relative_to(raw)), str(error)))


@lru_cache(maxsize=1)
def parse_annotation(reader: AnnotationReader[Any], field: Field) -> Any:
    """Read a field's annotation; cached, since a worker's tiles are mostly of the same image."""
    return reader.parse(field)


def read_image(task: FieldTask) -> tuple[Image, Tile, int, str]:
    """Read the field's pixels; return also the tile of the image that they are, and the image's
    `largest_uint16` and `not_normalised`. Raises BadInputError."""
    config, mpp = task.config, task.config.mpp
    reference = reference_of(config.stain_norm, config.stain_reference)
    with open_normalised(task.field.image, config.uint16_white, reference) as file:
        image = at_resolution(file, mpp, otherwise_mpp=mpp)
        if task.tile:
            image_HWC = image.read(task.tile.box)
            return image_HWC, task.tile, image.largest_uint16, file.not_normalised
        if max(image.height_px, image.width_px) > MAX_SIDE_PX:
            raise BadInputError(
                f"{image.width_px} x {image.height_px} px is too large for one field (at most"
                f" {MAX_SIDE_PX}): cut it with tile_px=1024"
            )
        tile = whole(image.height_px, image.width_px, (file.height_px, file.width_px))
        return image.read(tile.box), tile, image.largest_uint16, file.not_normalised


def is_glass(task: FieldTask, tile: Tile, image_HWC: Image, annotation: Annotation) -> bool:
    """Return whether a tile holds too little tissue, no point and no pixel of an area. Raises
    BadInputError."""
    nuclei = inside_only(annotation.nuclei, *image_HWC.shape[:2])
    if any(map(len, nuclei.values())) or annotation.has_areas:
        return False
    config = task.config
    if config.stain_norm != "none":  # tissue is told by the image's own colours, as in `estimate`
        with open_image(task.field.image, config.uint16_white) as file:
            image_HWC = at_resolution(file, config.mpp, otherwise_mpp=config.mpp).read(tile.box)
    return tissue_fraction(image_HWC) < config.min_tissue


def write_variants(
    task: FieldTask, image_HWC: Image, annotation: Annotation, item: Item
) -> list[dict[str, Any]]:
    """Write every variant's files under temporary names; return the samples' records."""
    config, field = task.config, as_field(task, image_HWC, annotation)
    if config.mask_mode == "warp":  # variants move the discs with the areas
        field = replace(field, mask_HW=paint(task, field.points, field.mask_HW, image_HWC))
    variants = variants_of(task)
    moved = apply(field, variants, config.augment.border)
    return [
        write_variant(task, variant, its_field, item)
        for variant, its_field in zip(variants, moved, strict=True)
    ]


def as_field(task: FieldTask, image_HWC: Image, annotation: Annotation) -> Annotated:
    """Join an image and its annotation.

    Where a disc about a point outside reaches into the tile, it counts as an area: variants move
    it, but not its point.
    """
    size, areas_HW = image_HWC.shape[:2], annotation.areas_HW
    outside = outside_only(annotation.points, *size)
    if any(map(len, outside.values())):
        areas_HW = paint(task, outside, areas_HW, image_HWC)
        if task.config.ignore_px:  # rings lie below discs, but ignored areas over them
            whole_HW = paint(task, annotation.points, annotation.areas_HW, image_HWC)
            areas_HW[(areas_HW == IGNORE_LABEL) & (whole_HW != IGNORE_LABEL)] = 0
    points = inside_only(annotation.points, *size)
    return Annotated(image_HWC, points, areas_HW, annotation.middles)


def paint(task: FieldTask, points: PointsPx, areas_HW: Mask | None, image_HWC: Image) -> Mask:
    """Paint a mask of the image's size: discs at the points, over the areas."""
    height_px, width_px = image_HWC.shape[:2]
    radius_px, ignore_px = task.config.radius_px, task.config.ignore_px
    how = radius_px, height_px, width_px, areas_HW, ignore_px
    return masks.paint_mask(points, task.values, *how)


def write_variant(
    task: FieldTask, variant: Variant, moved: Annotated, item: Item
) -> dict[str, Any]:
    """Write a variant's files; return its sample's record."""
    config = task.config
    mask_HW = moved.mask_HW
    if mask_HW is None or config.mask_mode == "redraw":
        mask_HW = paint(task, moved.points, mask_HW, moved.image_HWC)
    height_px, width_px = mask_HW.shape
    nuclei = inside_only(with_middles(moved.points, moved.middles), height_px, width_px)
    nuclei = masks.not_ignored(nuclei, mask_HW)
    ignored_px = int((mask_HW == IGNORE_LABEL).sum())
    sample_id = id_of(task, variant)
    contents = {
        "image": encoding.encode_image(moved.image_HWC, config.format, config.jpg_quality),
        "mask": encoding.encode_mask(mask_HW),
        "points": brecahad.encode_points(nuclei, height_px, width_px),
    }
    files: dict[str, Any] = {}
    for kind, path in paths_of(sample_id, config.format).items():
        content = contents[kind]
        files |= {
            kind: path,
            f"{kind}_bytes": len(content),
            f"{kind}_sha256": item.write(path, content),
        }
    return {
        "id": sample_id,
        "case": task.field.case,
        "field": task.name,
        "variant": variant.index,
        "transform": variant.transform,
        "parameters": variant.parameters,
        "seed": variant.seed,
        "height_px": height_px,
        "width_px": width_px,
        "foreground_px": cv2.countNonZero(mask_HW) - ignored_px,
        "ignored_px": ignored_px,
        "nuclei": {name: len(nuclei[name]) for name in task.values},
        **files,
    }


def variants_of(task: FieldTask) -> list[Variant]:
    """Plan the variants of a field."""
    return plan_variants(task.name, task.copies, task.config.augment, task.config.seed)


def id_of(task: FieldTask, variant: Variant) -> str:
    """Return the id of a sample."""
    return f"{task.name}_v{variant.index:02d}_{variant.transform}"


def paths_of(sample_id: str, image_format: str) -> dict[str, str]:
    """Return the paths of a sample's files in the data set, by kind."""
    return {
        "image": f"images/{sample_id}.{image_format}",
        "mask": f"masks/{sample_id}.png",
        "points": f"points/{sample_id}.json",
    }


def files_of(task: FieldTask) -> list[str]:
    """List the paths that a field is written to, if it is not glass."""
    ids = (id_of(task, variant) for variant in variants_of(task))
    return [path for each in ids for path in paths_of(each, task.config.format).values()]
