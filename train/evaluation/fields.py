"""Whole fields of view: read them, predict them over the ranks, count their pixels and nuclei."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.command_line import UsageError, UserError
from common.stop_request import StopRequest
from data_prep.annotations.findings import Findings, add_up, summary, warnings
from data_prep.annotations.folders import NoAnnotationsError
from data_prep.annotations.formats import READERS, check_occurring, other_formats, reader_of
from data_prep.config import IGNORE_LABEL, is_ignored
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
from model.precision import Precision
from train.config import TileConfig
from train.metrics.detection import Detections, detect
from train.metrics.scores import (
    THRESHOLDS,
    Counts,
    Score,
    count_pixels,
    counts_at_thresholds,
    histogram,
)
from train.prediction.model_resolution import notes_on_resolution
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.thresholds import Thresholds


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


@dataclass(frozen=True)
class Prediction:
    """A field, its truth and a network's probabilities."""

    index: int
    """Number of the field among all that are predicted."""
    field: WholeField
    image_HWC: Image
    truth_CHW: npt.NDArray[np.bool_]
    is_valid_HW: npt.NDArray[np.bool_]
    """Which pixels count; the others are ignored."""
    annotated: list[PointsN2]
    """The annotated points of each channel, none of them ignored."""
    probability_CHW: npt.NDArray[np.float32]
    largest_uint16: int = 0
    """As ImageFile.largest_uint16."""

    @property
    def annotated_classes(self) -> Mask:
        """(H, W): the class that each pixel is annotated as, 0 for none, 1 for the first, ...;
        IGNORE_LABEL for ignored pixels."""
        return np.where(self.is_valid_HW, masks.numbers_of(self.truth_CHW), np.uint8(IGNORE_LABEL))

    def predicted_classes(self, thresholds: Sequence[float]) -> Mask:
        """Return (H, W) in the same numbers: the most probable of the classes that are above their
        thresholds."""
        is_predicted_CHW = self.is_predicted(thresholds)
        kept_CHW = np.where(is_predicted_CHW, self.probability_CHW, -1)
        return masks.numbers_of(is_predicted_CHW & (kept_CHW == kept_CHW.max(axis=0)))

    def is_predicted(self, thresholds: Sequence[float]) -> npt.NDArray[np.bool_]:
        """Return (C, H, W): which pixels count as predicted to be of each class."""
        return np.asarray(self.probability_CHW > np.asarray(thresholds, np.float32)[:, None, None])


@dataclass(frozen=True)
class Criteria:
    """What counts as a predicted pixel, and as a predicted and a found nucleus."""

    thresholds: Thresholds
    radius_px: float
    """Radius of a nucleus."""
    match_radius_px: float
    """How far from its annotated point a nucleus may be found."""


@dataclass(frozen=True)
class FieldResult:
    """The counts of a predicted field, see train.metrics.scores."""

    index: int
    name: str
    case: str
    counts: Counts
    """(C, 4) int64, of pixels."""
    nuclei_counts: Counts
    """(C, 4) int64, of nuclei."""
    histogram: npt.NDArray[np.int64]
    """(C, 2, 100), of the pixels' probability."""
    detections: list[Detections]
    """Of each channel."""
    cross_entropy: Score
    """Mean over pixels and classes of the binary cross-entropy, in nats; None if no pixel
    counts."""


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


def predict_fields(
    model: nn.Module,
    fields: Sequence[WholeField],
    label_values: Sequence[int],
    tile: TileConfig,
    precision: Precision,
    ranks: Ranks,
    stop: StopRequest,
    tta: bool = False,
) -> Iterator[Prediction]:
    """Predict the fields that fall to this rank; each field on one rank only. Collective.

    Ends early, on all ranks after the same round, where any rank was asked to stop. `tta`: see
    train.prediction.tiles.
    """
    model.eval()
    for first in range(0, len(fields), ranks.world_size):
        if any(ranks.max([stop.signum])):
            return
        index = first + ranks.rank
        if index < len(fields):
            content = fields[index].read()
            probability_CHW = predict_probability(model, content.image_HWC, tile, precision, tta)
            yield prediction_of(index, fields[index], content, probability_CHW, label_values)


def prediction_of(
    index: int,
    field: WholeField,
    content: FieldContent,
    probability_CHW: npt.NDArray[np.float32],
    label_values: Sequence[int],
) -> Prediction:
    """Put a field, its truth and what is predicted of it together."""
    return Prediction(
        index,
        field,
        content.image_HWC,
        masks.channels_of(content.mask_HW, label_values),
        content.mask_HW != IGNORE_LABEL,
        content.annotated,
        probability_CHW,
        content.largest_uint16,
    )


def measure(prediction: Prediction, criteria: Criteria) -> FieldResult:
    """Count the pixels and the nuclei of a prediction."""
    probability_CHW, is_valid_HW = prediction.probability_CHW, prediction.is_valid_HW
    radii_px = criteria.radius_px, criteria.match_radius_px
    detections = [
        detect(probability_HW, annotated, *radii_px, is_valid_HW)
        for probability_HW, annotated in zip(probability_CHW, prediction.annotated, strict=True)
    ]
    probability_CN, truth_CN = probability_CHW[:, is_valid_HW], prediction.truth_CHW[:, is_valid_HW]
    is_predicted_CN = prediction.is_predicted(criteria.thresholds.pixels.values)[:, is_valid_HW]
    predicted, truth = (
        torch.from_numpy(each)[None, :, None] for each in (is_predicted_CN, truth_CN)
    )
    counts = count_pixels(predicted, truth).numpy()
    right_CN = np.where(truth_CN, probability_CN, 1 - probability_CN)
    losses_CN = -np.log(np.maximum(right_CN, 1e-7))
    cross_entropy = float(losses_CN.mean(dtype=np.float64)) if losses_CN.size else None
    least_scores = criteria.thresholds.nuclei.values
    nuclei = [each.counts([least])[0] for each, least in zip(detections, least_scores, strict=True)]
    return FieldResult(
        prediction.index,
        prediction.field.name,
        prediction.field.case,
        counts,
        np.stack(nuclei),
        np.stack([histogram(*each) for each in zip(probability_CN, truth_CN, strict=True)]),
        detections,
        cross_entropy,
    )


def counts_of(result: FieldResult) -> Counts:
    """Return (2, C, 99, 4): the counts of a field's pixels, and of its nuclei, at each of
    THRESHOLDS."""
    nuclei = np.stack([each.counts(THRESHOLDS) for each in result.detections])
    return np.stack([counts_at_thresholds(result.histogram), nuclei])


def gather_results(results: list[FieldResult], ranks: Ranks) -> list[FieldResult]:
    """Return all ranks' results in the order of the fields, on every rank. Collective.

    In one order, sums of floats come out the same on any number of ranks.
    """
    gathered = [result for of_rank in ranks.gather(results) for result in of_rank]
    return sorted(gathered, key=lambda result: result.index)
