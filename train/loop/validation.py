"""Validate at an epoch's end, on whole fields of the validation split, with all ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset
from data_prep.images.masks import channel_names, channel_values
from model.precision import Precision
from train.config import TrainConfig
from train.evaluation.fields import (
    Criteria,
    FieldResult,
    Prediction,
    gather_results,
    measure,
    predict_fields,
    prepared_fields,
)
from train.metrics.scores import (
    DEFAULT_THRESHOLD,
    THRESHOLDS,
    Score,
    best_threshold,
    counts_at_thresholds,
    score,
)
from train.ranks.distributed import Ranks
from train.runs.monitor import panel_strip

PANEL_HEIGHT_PX = 256


@dataclass
class Validated:
    """The results of a validation."""

    metrics: dict[str, Score]
    """Empty if the split has no fields."""
    panels: list[tuple[str, Any]]
    """Names and pictures for TensorBoard."""


class Validation:
    """Measures models on the fields of the validation split."""

    def __init__(
        self, dataset: Dataset, config: TrainConfig, precision: Precision, ranks: Ranks
    ) -> None:
        labelling = dataset.description.labelling
        self.config, self.precision, self.ranks = config, precision, ranks
        self.label_values = channel_values(labelling.labels.values())
        self.class_names = channel_names(labelling.labels)
        self.fields = prepared_fields(dataset, "val")
        radius_px = labelling.radius_px
        self.criteria = Criteria(DEFAULT_THRESHOLD, DEFAULT_THRESHOLD, radius_px, radius_px)

    def validate(self, model: nn.Module, stop: StopRequest) -> Validated | None:
        """Measure the model on every field; None if a stop comes before the end. Collective."""
        results, pictures = [], []
        for prediction in predict_fields(
            model,
            self.fields,
            self.label_values,
            self.config.tile,
            self.precision,
            self.ranks,
            stop,
        ):
            results.append(measure(prediction, self.criteria))
            if prediction.index < self.config.panels:
                pictures.append((f"panels/{prediction.field.name}", self.panel(prediction)))
        results = gather_results(results, self.ranks)
        if len(results) < len(self.fields):
            return None
        panels = [panel for of_rank in self.ranks.gather(pictures) for panel in of_rank]
        return Validated(validation_metrics(results) if results else {}, panels)

    def panel(self, prediction: Prediction) -> Any:
        """Draw TensorBoard's picture of a field: input, truth and prediction."""
        return panel_strip(
            prediction.image_HWC,
            prediction.annotated_classes,
            prediction.predicted_classes(DEFAULT_THRESHOLD),
            self.class_names,
            PANEL_HEIGHT_PX,
        )


def validation_metrics(results: list[FieldResult]) -> dict[str, Score]:
    """Compute metrics over all pixels at the default threshold, and the mean loss over fields.

    The threshold is fixed so that epochs can be compared. The best thresholds for pixels and for
    nuclei are metrics too: evaluation and prediction use those of their checkpoint. A metric is
    None if nothing is annotated.
    """
    scores = score(np.stack([result.counts for result in results]))
    losses = [each for result in results if (each := result.cross_entropy) is not None]
    pixels = counts_at_thresholds(np.sum([result.histogram for result in results], axis=0))
    nuclei = [each.counts(THRESHOLDS) for result in results for each in result.detections]
    threshold, _ = best_threshold(pixels) or (None, None)
    nuclei_threshold, nuclei_f1 = best_threshold(np.sum(nuclei, axis=0)) or (None, None)
    return {
        "val/loss": float(np.mean(losses)) if losses else None,
        **{f"val/{name}": value for name, value in scores.items()},
        "val/threshold": threshold,
        "val/nuclei_threshold": nuclei_threshold,
        "val/nuclei_f1": nuclei_f1,
    }
