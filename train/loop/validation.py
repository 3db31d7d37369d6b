"""Validate at an epoch's end, on whole fields of the validation split, with all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset
from data_prep.images.masks import channel_names, channel_values
from model.precision import Precision
from train.config import TrainConfig
from train.fields.measured_fields import (
    Criteria,
    FieldResult,
    Prediction,
    counts_of,
    gather_results,
    measure,
    predict_fields,
)
from train.fields.whole_fields import prepared_fields
from train.metrics.scores import Counts, Score, best_threshold, best_thresholds, score
from train.ranks.distributed import Ranks
from train.runs.monitor import panel_strip
from train.runs.thresholds import (
    NUCLEI_THRESHOLD,
    PIXEL_THRESHOLD,
    ClassThresholds,
    Thresholds,
    metric_of_class,
)

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
        self.default = ClassThresholds.default(len(self.class_names), "default")
        self.criteria = Criteria(Thresholds(self.default, self.default), radius_px, radius_px)

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
        metrics = validation_metrics(results, self.class_names) if results else {}
        return Validated(metrics, panels)

    def panel(self, prediction: Prediction) -> Any:
        """Draw TensorBoard's picture of a field: input, truth and prediction."""
        return panel_strip(
            prediction.image_HWC,
            prediction.annotated_classes,
            prediction.predicted_classes(self.default.values),
            self.class_names,
            PANEL_HEIGHT_PX,
        )


def validation_metrics(results: list[FieldResult], classes: Sequence[str]) -> dict[str, Score]:
    """Compute metrics over all pixels at the default threshold, and the mean loss over fields.

    The threshold is fixed so that epochs can be compared. The best thresholds for pixels and for
    nuclei are metrics too: evaluation and prediction use those of their checkpoint. They are of all
    classes together and, where there are several, of each. A metric is None if nothing is
    annotated.
    """
    scores = score(np.stack([result.counts for result in results]))
    losses = [each for result in results if (each := result.cross_entropy) is not None]
    pixels, nuclei = np.sum([counts_of(result) for result in results], axis=0)
    _, nuclei_f1 = best_threshold(nuclei.sum(axis=0)) or (None, None)
    return {
        "val/loss": float(np.mean(losses)) if losses else None,
        **{f"val/{name}": value for name, value in scores.items()},
        **threshold_metrics(PIXEL_THRESHOLD, pixels, classes),
        **threshold_metrics(NUCLEI_THRESHOLD, nuclei, classes),
        "val/nuclei_f1": nuclei_f1,
    }


def threshold_metrics(metric: str, counts: Counts, classes: Sequence[str]) -> dict[str, Score]:
    """Return the best threshold of all classes together as a metric, and where there are several
    those of each, see `metric_of_class`. `counts` are (C, 99, 4)."""
    of_all, _ = best_threshold(counts.sum(axis=0)) or (None, None)
    found: dict[str, Score] = {metric: of_all}
    if len(classes) > 1 and (each := best_thresholds(counts)):
        pairs = zip(classes, each, strict=True)
        found |= {metric_of_class(metric, name): value for name, value in pairs}
    return found
