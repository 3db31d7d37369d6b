"""The thresholds that a validation chooses."""

import numpy as np

from train.loop.validation import threshold_metrics
from train.metrics.scores import counts_at_thresholds, histogram


def test_several_classes_have_a_threshold_together_and_one_each() -> None:
    """Of one nucleus each: the first is parted from its background by 0.6 to 0.79, the second by
    0.12 to 0.29; together 0.29 finds both, with one false alarm."""
    probability = np.array([[0.8, 0.6], [0.3, 0.12]], np.float32)
    truth = np.array([[True, False], [True, False]])
    each = zip(probability, truth, strict=True)
    counts = np.stack([counts_at_thresholds(histogram(*pair)) for pair in each])
    of_two = threshold_metrics("val/threshold", counts, ["a", "b"])
    assert of_two == {"val/threshold": 0.29, "val/threshold/a": 0.6, "val/threshold/b": 0.29}
    assert threshold_metrics("val/threshold", counts[:1], ["a"]) == {"val/threshold": 0.6}
    assert threshold_metrics("val/threshold", 0 * counts, ["a", "b"]) == {"val/threshold": None}
