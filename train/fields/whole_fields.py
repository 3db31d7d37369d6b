"""Whole fields of view with their truth: those of a prepared set, and raw ones."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.command_line import UsageError, UserError
from data_prep.annotations.findings import Findings, add_up, summary, warnings
from data_prep.annotations.folders import NoAnnotationsError
from data_prep.annotations.formats import READERS, check_occurring, other_formats, reader_of
from data_prep.config import is_ignored
from data_prep.dataset.description import Labelling
from data_prep.dataset.manifest import Dataset, Sample
from data_prep.dataset.samples import read_points, read_sample
from data_prep.image_files.normalised import open_normalised
from data_prep.images import masks
from data_prep.images.arrays import Image, Mask, PointsN2, PointsPx
from data_prep.images.rescaling import at_resolution
from data_prep.images.stains import notes_on_stains
from data_prep.images.tiles import inside_only, whole
from data_prep.raw import BadInputError, Field
from train.prediction.model_resolution import notes_on_resolution


class FieldContent(NamedTuple):
    """The content of a field."""

    image_HWC: Image
    mask_HW: Mask
    annotated: list[PointsN2]
    """The annotated points of each channel of the logits."""
    largest_uint16: int = 0
    """As ImageFile.largest_uint16."""


@dataclass(frozen=True)
class WholeField:
    """A field of view with its truth, read when needed."""

    name: str
    case: str
    read: Callable[[], FieldContent]
    raw: Field | None = None
    """The files of a raw field."""


def prepared_fields(dataset: Dataset, split: str) -> list[WholeField]:
    """Return the original fields of a split: augmented copies never count in a metric."""
    return [
        WholeField(sample.field, sample.case, partial(read_prepared, dataset, sample))
        for sample in dataset.split(split, originals_only=True)
    ]


def read_prepared(dataset: Dataset, sample: Sample) -> FieldContent:
    """Read image, mask and points of a sample. Raises UserError where a file is bad."""
    image, mask = read_sample(dataset.folder, sample)
    labelling = dataset.description.labelling
    points = read_points(dataset.folder, sample, labelling.labels)
    return FieldContent(image, mask, by_channel(points, labelling))


def raw_fields(
    raw: Path, labelling: Labelling, described_in: Path | None, mpp: float = 0.0
) -> list[WholeField]:
    """Return the fields of a raw folder, to be read and drawn like the training data.

    `described_in`: the file that the format of the annotations is from, for messages; None if the
    user named it. `mpp`: the resolution of images that do not tell theirs, 0 for unknown. Raises
    UserError where a file has no partner, UsageError where a class is in no field.
    """
    reader = reader_of(labelling)
    expected = expected_format(labelling, described_in)
    try:
        fields, bad = reader.find_fields(raw, labelling.case_regex)
    except NoAnnotationsError as error:
        others = other_formats(raw, labelling.case_regex)
        raise UsageError(f"{error}; {expected}{others}") from None
    except UsageError as error:
        raise UsageError(f"{error}; {expected}") from None
    if bad:
        listed = "\n".join(f"  {entry}" for entry in bad)
        raise UserError(
            f"raw={raw}: {len(bad)} bad file(s); {expected}:\n{listed}\n"
            "Correct them, or give a folder that is annotated in that format, or name theirs:"
            " annotations=..."
        )
    try:
        check_occurring(reader, fields, [*labelling.labels], raw)
    except UsageError as error:
        raise UsageError(f"{error}; the run learned {', '.join(labelling.labels)}") from None
    return [
        WholeField(
            field.name,
            field.case,
            partial(read_raw, field, labelling, expected, mpp),
            field,
        )
        for field in fields
    ]


def notes_on_raw(fields: Sequence[WholeField], labelling: Labelling, mpp: float) -> list[str]:
    """Return notes on what the annotations of raw fields hold, and on their resolution.

    `mpp`: the resolution of images that do not tell theirs, 0 for unknown.
    """
    reader, told, problems, found = reader_of(labelling), {}, {}, []
    for field in (each.raw for each in fields if each.raw):
        with suppress(BadInputError, OSError):  # reading the field reports it
            with open_normalised(field.image, labelling.uint16_white, labelling.stains) as file:
                told[field.image.name] = file.mpp
                size = file.height_px, file.width_px
                problems[field.image.name] = file.not_normalised
            found.append(reader.findings(reader.parse(field), whole(*size, size)))
    notes = notes_on_findings(add_up(found), labelling)
    return notes + notes_on_resolution(told, labelling.mpp, mpp) + notes_on_stains(problems)


def notes_on_findings(found: Findings, labelling: Labelling) -> list[str]:
    """Say what of the annotations is not in the truth, but not which other classes there are."""
    classes = [*labelling.labels]
    told_of = {name: n for name, n in found.classes.items() if name in classes or is_ignored(name)}
    lines = summary(replace(found, classes=told_of), classes)
    told = [f"annotations: {'; '.join(lines)}"] if lines else []
    return told + warnings(found, classes, labelling.annotations)


def expected_format(labelling: Labelling, described_in: Path | None) -> str:
    """Name the format that raw fields must have, and the file that says so, for messages."""
    endings = " or ".join(READERS[labelling.annotations].suffixes)
    expected = f"expected annotations={labelling.annotations} ({endings})"
    if described_in is None:
        return f"{expected}, as given"
    return f"{expected}, the format of the training data in {described_in}"


def read_raw(field: Field, labelling: Labelling, expected: str, mpp: float) -> FieldContent:
    """Read image, mask and points of a raw field, at the resolution of the training data.

    Raises UserError where a file is bad.
    """
    reader, values = reader_of(labelling), labelling.labels
    try:
        with open_normalised(field.image, labelling.uint16_white, labelling.stains) as file:
            rescaled = at_resolution(file, labelling.mpp, mpp)
            image = rescaled.read(rescaled.whole)
            file_px = file.height_px, file.width_px
    except BadInputError as error:
        raise UserError(f"{field.image}: {error}") from None
    height_px, width_px = image.shape[:2]
    tile = whole(height_px, width_px, file_px)
    try:
        annotation = reader.annotation_in(reader.parse(field), tile, values)
    except (BadInputError, OSError) as error:
        raise UserError(f"{field.annotation}: {error}; {expected}") from None
    how = labelling.radius_px, height_px, width_px, annotation.areas_HW, labelling.ignore_px
    mask = masks.paint_mask(annotation.points, values, *how)
    nuclei = inside_only(annotation.nuclei, height_px, width_px)
    annotated = by_channel(masks.not_ignored(nuclei, mask), labelling)
    return FieldContent(image, mask, annotated, rescaled.largest_uint16)


def by_channel(points: PointsPx, labelling: Labelling) -> list[PointsN2]:
    """Return the points of each channel of the logits: those of all classes of its mask value."""
    labels = labelling.labels
    return [
        np.concatenate([points[name] for name in labels if labels[name] == value])
        for value in masks.channel_values(labels.values())
    ]
