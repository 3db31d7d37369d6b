"""Whole fields of view: read them, predict them over the ranks, count their pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from command_line import UserError
from data_prep import brecahad, images, masks
from data_prep.manifest import Dataset, Labelling
from data_prep.pack import read_sample
from train.config import TileConfig
from train.data import mask_to_target
from train.distributed import Ranks
from train.metrics import Counts, count_pixels
from train.precision import Precision
from train.preemption import StopRequest
from train.tiles import predict_probability

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WholeField:
    """A field of view with its truth, read when needed."""

    name: str
    case: str
    read: Callable[[], tuple[Array, Array]]
    """-> image HWC uint8 RGB, mask HW uint8."""


@dataclass(frozen=True)
class Prediction:
    """A field, its truth and what a network makes of it."""

    index: int
    """Place of the field among all that are predicted."""
    field: WholeField
    image_HWC: Array
    truth_CHW: npt.NDArray[np.bool_]
    probability_CHW: npt.NDArray[np.float32]


@dataclass(frozen=True)
class FieldResult:
    """The pixel counts of a predicted field."""

    index: int
    name: str
    case: str
    counts: Counts
    """(C, 4) int64, see train.metrics."""
    cross_entropy: float
    """Mean over pixels and classes of the binary cross-entropy, in nats."""


def prepared_fields(dataset: Dataset, split: str) -> list[WholeField]:
    """The original fields of a split (augmented copies never count in a metric)."""
    return [
        WholeField(sample.field, sample.case, partial(read_sample, dataset.folder, sample))
        for sample in dataset.split(split, originals_only=True)
    ]


def raw_fields(raw: Path, labelling: Labelling) -> list[WholeField]:
    """The fields of a raw folder, with masks drawn as the training data's were.

    Raises UserError where a file there has no partner.
    """
    fields, bad = brecahad.find_fields(raw, labelling.case_regex)
    if bad:
        listed = "; ".join(f"{entry.file}: {entry.reason}" for entry in bad)
        raise UserError(f"raw={raw}: {listed}")
    return [
        WholeField(field.name, field.case, partial(read_raw, field, labelling)) for field in fields
    ]


def read_raw(field: brecahad.Field, labelling: Labelling) -> tuple[Array, Array]:
    """Image and mask of a raw field. Raises UserError where a file is bad."""
    try:
        image = images.read_image(field.image, labelling.uint16_white)
    except brecahad.BadInputError as error:
        raise UserError(f"{field.image}: {error}") from None
    try:
        points = brecahad.parse_points(field.annotation.read_bytes())
        points = brecahad.select_classes(points, labelling.labels)
    except (brecahad.BadInputError, OSError) as error:
        raise UserError(f"{field.annotation}: {error}") from None
    size = image.shape[:2]
    return image, masks.draw_mask(points, labelling.labels, labelling.radius_px, *size)


def predict_fields(
    model: nn.Module,
    fields: Sequence[WholeField],
    label_values: Sequence[int],
    tile: TileConfig,
    precision: Precision,
    ranks: Ranks,
    stop: StopRequest,
) -> Iterator[Prediction]:
    """This rank's share of the fields, predicted; each field on one rank only. Collective.

    Ends early, on all ranks after the same round, where any was asked to stop.
    """
    model.eval()
    for first in range(0, len(fields), ranks.world_size):
        if any(ranks.max([stop.signum])):
            return
        index = first + ranks.rank
        if index < len(fields):
            image_HWC, mask_HW = fields[index].read()
            truth_BCHW = mask_to_target(torch.from_numpy(mask_HW)[None], label_values)
            yield Prediction(
                index,
                fields[index],
                image_HWC,
                truth_BCHW[0].bool().numpy(),
                predict_probability(model, image_HWC, tile, precision),
            )


def measure(prediction: Prediction, threshold: float) -> FieldResult:
    """Count the pixels of a prediction at a threshold of the probability."""
    probability_CHW, truth_CHW = prediction.probability_CHW, prediction.truth_CHW
    predicted = torch.from_numpy(probability_CHW > threshold)[None]
    counts = count_pixels(predicted, torch.from_numpy(truth_CHW)[None]).numpy()
    right = np.where(truth_CHW, probability_CHW, 1 - probability_CHW)
    cross_entropy = float(-np.log(np.maximum(right, 1e-7)).mean(dtype=np.float64))
    field = prediction.field
    return FieldResult(prediction.index, field.name, field.case, counts, cross_entropy)


def gather_results(results: list[FieldResult], ranks: Ranks) -> list[FieldResult]:
    """All ranks' results in the order of the fields, on every rank. Collective.

    In one order, so that sums of floats come out the same on any number of ranks.
    """
    gathered = [result for part in ranks.gather(results) for result in part]
    return sorted(gathered, key=lambda result: result.index)
