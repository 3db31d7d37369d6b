"""Evaluate folds, each on its own cases, and pool them; choose thresholds on what others predict.

A threshold that was chosen on the predictions which it is applied to makes their figures better
than those of new fields. So the thresholds of each group are the best on the predictions of all
other groups. That needs all predictions before the first figure: they wait in files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.ownership import Item
from train.evaluation.config import EvaluateConfig
from train.evaluation.measurement import disc_radii, pool
from train.evaluation.model_evaluation import (
    Evaluation,
    Group,
    Model,
    criteria_of,
    evaluate_predictions,
    figures_of,
    model_of,
    predict,
)
from train.fields.measured_fields import Prediction, counts_of, measure, prediction_of
from train.metrics.scores import EMPTY_RULE, THRESHOLDS, Counts, best_thresholds
from train.prediction.predicted_bands import save_array
from train.ranks.distributed import Ranks
from train.runs.run_folder import Run
from train.runs.thresholds import (
    ClassThresholds,
    InFile,
    Thresholds,
    chosen_out_of_fold,
    given_or,
    in_file,
)


@dataclass(frozen=True)
class Predicted:
    """What a group predicts of its fields."""

    model: Model
    files: dict[int, Path]
    """Number of a field of this rank -> its probability, (C, H, W) float32."""
    pixels: Counts
    """(C, 99, 4): of all ranks' fields at each of THRESHOLDS."""
    nuclei: Counts
    """(C, 99, 4): the same of nuclei."""


@contextmanager
def kept_on_disk(item: Item) -> Iterator[list[Path]]:
    """Give a list for files of this rank that are removed at the end. After a kill the next
    evaluation removes them, as all temporary files in the private folder of the results."""
    files: list[Path] = []
    try:
        yield files
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def evaluate_groups(
    config: EvaluateConfig, groups: Sequence[Group], item: Item, ranks: Ranks
) -> Evaluation:
    """Evaluate each group at thresholds chosen on the others, and pool them. Collective.

    The summary also holds the thresholds that are best on what all predict; None where nothing is
    annotated.
    """
    with kept_on_disk(item) as files:
        predicted = [predict_group(config, group, files, item, ranks) for group in groups]
        evaluations = []
        for number, group in enumerate(predicted):
            others = predicted[:number] + predicted[number + 1 :]
            thresholds = best_of(others, config)
            predictions = from_disk(group)
            evaluations.append(
                evaluate_predictions(config, group.model, predictions, thresholds, item, ranks)
            )
    evaluation = pooled(groups, evaluations)
    evaluation.summary["out_of_fold"] = best_named(predicted, groups[0].run)
    return evaluation


def predict_group(
    config: EvaluateConfig, group: Group, files: list[Path], item: Item, ranks: Ranks
) -> Predicted:
    """Predict the fields of a group into files, and count at all thresholds. Collective."""
    loaded = group.run.load_model(config.checkpoint, ranks)
    default = ClassThresholds.default(len(group.run.label_values), "default")
    model, criteria = (
        model_of(config, group, loaded, Thresholds(default, default)),
        criteria_of(config, group.run, Thresholds(default, default)),
    )
    of_fields: dict[int, Path] = {}
    mine = np.zeros((2, len(default.values), len(THRESHOLDS), 4), np.int64)
    for prediction in predict(config, group, loaded, ranks):
        files.append(item.new_file())
        save_array(files[-1], prediction.probability_CHW)
        of_fields[prediction.index] = files[-1]
        result = measure(prediction, criteria)
        mine += counts_of(result)
    return Predicted(model, of_fields, *np.sum(ranks.gather(mine), axis=0))


def best_of(predicted: Sequence[Predicted], config: EvaluateConfig) -> Thresholds:
    """Return the thresholds that are best on what groups predict; of pixels the one that is given,
    if it is not auto."""
    num_classes = len(predicted[0].pixels)
    pixels, nuclei = (
        chosen_out_of_fold(best, config.tta, num_classes) for best in best_pair(predicted)
    )
    return Thresholds(given_or(config.threshold, pixels, num_classes), nuclei)


def best_pair(predicted: Sequence[Predicted]) -> tuple[list[float] | None, list[float] | None]:
    """Return the thresholds of pixels and of nuclei that are best on what groups predict, of each
    class; None where nothing is annotated."""
    pixels = best_thresholds(np.sum([each.pixels for each in predicted], axis=0))
    nuclei = best_thresholds(np.sum([each.nuclei for each in predicted], axis=0))
    return pixels, nuclei


def best_named(predicted: Sequence[Predicted], run: Run) -> dict[str, InFile | None]:
    """Return the same as ensemble.json has them."""
    pixels, nuclei = (
        None if best is None else in_file(best, run.class_names) for best in best_pair(predicted)
    )
    return {"threshold": pixels, "nuclei_threshold": nuclei}


def from_disk(predicted: Predicted) -> Iterator[Prediction]:
    """Yield the predictions of this rank's fields of a group again."""
    group = predicted.model.group
    for index, file in predicted.files.items():
        field = group.chosen.fields[index]
        probability_CHW: npt.NDArray[np.float32] = np.load(file)
        yield prediction_of(index, field, field.read(), probability_CHW, group.run.label_values)


def pooled(groups: Sequence[Group], evaluations: Sequence[Evaluation]) -> Evaluation:
    """Pool the evaluations of groups into one."""
    measured = pool([evaluation.measured for evaluation in evaluations])
    folds = [evaluation.summary for evaluation in evaluations]
    first = groups[0]
    summary: dict[str, Any] = {
        "runs": [fold["run"] for fold in folds],
        "data": folds[0]["data"],
        "tta": folds[0]["tta"],
        **figures_of(measured, first.run, disc_radii(first.chosen.truth)),
        "folds": folds,
        "empty_rule": EMPTY_RULE,
        "warnings": [f"{fold['run']}: {warning}" for fold in folds for warning in fold["warnings"]],
    }
    return Evaluation(summary, measured)
