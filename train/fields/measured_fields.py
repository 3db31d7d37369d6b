"""Predict whole fields over the ranks; count their pixels and nuclei."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.stop_request import StopRequest
from data_prep.config import IGNORE_LABEL
from data_prep.images import masks
from data_prep.images.arrays import Image, Mask, PointsN2
from model.precision import Precision
from train.config import TileConfig
from train.fields.whole_fields import FieldContent, WholeField
from train.metrics.detection import Detections, detect
from train.metrics.scores import (
    THRESHOLDS,
    Counts,
    Score,
    count_pixels,
    counts_at_thresholds,
    histogram,
)
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.thresholds import Thresholds


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
