"""Metrics worked out by hand, the rule for empty masks, and what the bootstrap promises."""

from itertools import product

import numpy as np
import pytest
import torch

from train.metrics.scores import (
    EMPTY_RULE,
    METRICS,
    THRESHOLDS,
    best_threshold,
    best_thresholds,
    bootstrap_over_cases,
    bootstrap_pooled,
    count_pixels,
    counts_at_thresholds,
    histogram,
    score,
    scores,
)


def test_counts_of_a_picture_one_can_count() -> None:
    """Class 0: 1 hit, 2 false alarms, 1 miss, 2 neither; class 1: all hits. Two images."""
    truth = torch.tensor([[[[1, 1, 0]], [[1, 1, 1]]], [[[0, 0, 0]], [[1, 1, 1]]]]).bool()
    predicted = torch.tensor([[[[1, 0, 1]], [[1, 1, 1]]], [[[1, 0, 0]], [[1, 1, 1]]]]).bool()
    counts = count_pixels(predicted, truth)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 2, 1, 2], [6, 0, 0, 0]]


def test_counts_are_of_valid_pixels() -> None:
    """Of the same six pixels a class the first two of one image, and the last of the other."""
    truth = torch.tensor([[[[1, 1, 0]], [[1, 1, 1]]], [[[0, 0, 0]], [[1, 1, 1]]]]).bool()
    predicted = torch.tensor([[[[1, 0, 1]], [[1, 1, 1]]], [[[1, 0, 0]], [[1, 1, 1]]]]).bool()
    valid = torch.tensor([[[[1, 1, 0]]], [[[0, 0, 1]]]]).bool()
    assert count_pixels(predicted, truth, valid).tolist() == [[1, 0, 1, 1], [3, 0, 0, 0]]


def test_scores_worked_out_by_hand() -> None:
    """6 hits, 2 false alarms, 4 misses, 8 neither."""
    scores = score(np.array([6, 2, 4, 8]))
    assert tuple(scores) == METRICS
    assert scores == pytest.approx(
        {"accuracy": 14 / 20, "iou": 6 / 12, "dice": 12 / 18, "precision": 6 / 8, "recall": 6 / 10}
    )


def test_counts_are_summed_before_anything_is_divided() -> None:
    """Two fields of 1/1 and 0/9 hits: 1/10 together, not the mean 1/2."""
    both = score(np.array([[[1, 0, 0, 0]], [[0, 0, 9, 0]]]))
    assert both["recall"] == pytest.approx(0.1)
    assert both["dice"] == pytest.approx(2 / 11)


NOTHING = dict.fromkeys(("iou", "dice", "precision", "recall"))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # nothing is annotated, and nothing predicted
        ([0, 0, 0, 5], {"accuracy": 1} | NOTHING),
        # or something predicted
        ([0, 2, 0, 3], {"accuracy": 0.6} | NOTHING),
        # every pixel is ignored
        ([0, 0, 0, 0], {"accuracy": None} | NOTHING),
        # nothing predicted where something is: precision is 0/0
        ([0, 0, 2, 3], {"accuracy": 0.6, "iou": 0, "dice": 0, "precision": 0, "recall": 0}),
    ],
)
def test_where_nothing_is_annotated_only_accuracy_is_a_number(
    counts: list[int], expected: dict[str, float | None]
) -> None:
    assert score(np.array(counts)) == expected
    assert EMPTY_RULE.startswith("Where nothing is annotated")
    assert "precision is 0" in EMPTY_RULE


def test_sums_do_not_overflow_32_bits() -> None:
    counts = np.full((3, 1, 4), 2**31, np.int64)
    assert score(counts)["dice"] == pytest.approx(0.5)


# Thresholds


def test_counts_at_a_threshold_are_those_above_it() -> None:
    """0.5 is not above 0.5; four are true, of which 0.005 is above no threshold."""
    probability = np.array([0.005, 0.2, 0.5, 0.504, 0.6, 1.0], np.float32)
    truth = np.array([True, False, True, False, True, True])
    counts = counts_at_thresholds(histogram(probability, truth))
    assert counts.shape == (99, 4)
    assert counts[0].tolist() == [3, 2, 1, 0]  # above 0.01
    assert counts[48].tolist() == [3, 1, 1, 1]  # above 0.49
    assert counts[49].tolist() == [2, 1, 2, 1]  # above 0.50
    assert counts[98].tolist() == [1, 0, 3, 2]  # above 0.99


def test_counts_at_thresholds_are_those_of_counting_at_each() -> None:
    """Also where a probability is a threshold to the bit."""
    rng = np.random.default_rng(0)
    probability = rng.random((2, 30, 20), np.float32)
    probability[0, :, 0] = THRESHOLDS[rng.integers(99, size=30)]
    truth = rng.random((2, 30, 20)) < probability
    counts = counts_at_thresholds(histogram(probability, truth))
    for number, of_threshold in enumerate(counts, start=1):
        predicted = torch.from_numpy(probability > number / 100)[None]
        expected = count_pixels(predicted, torch.from_numpy(truth)[None]).sum(0)
        assert of_threshold.tolist() == expected.tolist()


def test_the_best_threshold_has_the_highest_dice() -> None:
    """Annotated 0.3, 0.35 and 0.8, other 0.1 and 0.32: from 0.10 to 0.29 Dice is 6/7."""
    probability = np.array([0.3, 0.35, 0.8, 0.1, 0.32], np.float32)
    truth = np.array([True, True, True, False, False])
    counts = counts_at_thresholds(histogram(probability, truth))
    assert best_threshold(counts) == (0.29, pytest.approx(6 / 7))


@pytest.mark.parametrize(("low", "high", "expected"), [(0.2, 0.7, 0.5), (0.6, 0.9, 0.6)])
def test_of_thresholds_as_good_the_one_nearest_to_a_half_is_taken(
    low: float, high: float, expected: float
) -> None:
    probability, truth = np.array([low, high], np.float32), np.array([False, True])
    assert best_threshold(counts_at_thresholds(histogram(probability, truth))) == (expected, 1.0)


def test_each_class_has_the_threshold_that_is_best_for_it() -> None:
    """The first is parted by 0.12 to 0.29, the second by 0.6 to 0.79; the third is annotated
    nowhere, and has that of all, of which 0.3 and 0.8 are right, and 0.12 and 0.6 are not."""
    probability = np.array([[0.3, 0.12], [0.8, 0.6], [0.1, 0.1]], np.float32)
    truth = np.array([[True, False], [True, False], [False, False]])
    each = zip(probability, truth, strict=True)
    counts = np.stack([counts_at_thresholds(histogram(*pair)) for pair in each])
    assert best_threshold(counts.sum(axis=0)) == (0.29, pytest.approx(4 / 5))
    assert best_thresholds(counts) == [0.29, 0.6, 0.29]
    assert best_thresholds(counts[2:]) is None


# The bootstrap


def test_one_case_has_no_interval() -> None:
    assert bootstrap_over_cases([0.1, 0.5, 0.9], ["a", "a", "a"], 100, 0) is None


def test_two_cases_give_the_interval_of_four_equal_draws() -> None:
    """Two cases of one field, 0 and 1: the means 0, 1/2, 1/2, 1 are drawn alike."""
    assert bootstrap_over_cases([0.0, 1.0], ["a", "b"], 2000, 0) == (0.0, 1.0)


def test_a_case_is_drawn_with_all_its_fields() -> None:
    """Against all 5^5 draws of 5 cases; every field counts alike, so a large case counts more."""
    fields = {"a": [1.0] * 9, "b": [0.6] * 3, "c": [0.5], "d": [0.4], "e": [0.0]}
    means = [
        np.mean([value for case in draw for value in fields[case]])
        for draw in product(fields, repeat=5)
    ]
    values = [value for case in fields.values() for value in case]
    cases = [case for case, values_of in fields.items() for _ in values_of]
    interval = bootstrap_over_cases(values, cases, 20_000, 0)
    assert interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)


def test_the_interval_holds_the_mean_and_is_wider_over_cases_than_over_fields() -> None:
    """Fields of one case are alike: taking them for independent promises too much."""
    rng = np.random.default_rng(0)
    of_case = rng.uniform(0.3, 0.9, 8)
    values = (of_case[:, None] + rng.normal(0, 0.02, (8, 10))).ravel().tolist()
    cases = [f"case {index // 10}" for index in range(80)]
    low, high = bootstrap_over_cases(values, cases, 2000, 0)
    assert low < np.mean(values) < high
    # the normal interval of a mean of 8 cases
    expected = 2 * 1.96 * of_case.std() / np.sqrt(8)
    assert high - low == pytest.approx(expected, rel=0.15)
    alone = bootstrap_over_cases(values, [str(index) for index in range(80)], 2000, 0)
    assert high - low > 2 * (alone[1] - alone[0])


def test_the_interval_is_the_same_each_time_and_follows_the_seed() -> None:
    values, cases = np.random.default_rng(0).random(9).tolist(), list("aaabbbccc")
    first, again, other = (bootstrap_over_cases(values, cases, 50, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_pooled_counts_are_summed_over_the_cases_drawn_before_they_are_divided() -> None:
    """Against all 4^4 draws of 4 cases, whose fields differ in number and size."""
    counts = {"a": [[8, 1, 0, 3], [5, 5, 1, 1]], "b": [[1, 6, 2, 9]], "c": [[0, 0, 4, 2]]}
    counts["d"] = [[3, 0, 0, 30]] * 3
    dices, precisions = [], []
    for draw in product(counts, repeat=4):
        hit, false_alarm, miss, _ = np.sum([row for case in draw for row in counts[case]], axis=0)
        dices.append(2 * hit / (2 * hit + false_alarm + miss))
        precisions.append(hit / (hit + false_alarm) if hit + false_alarm else 0)
    amounts = np.array([row for case in counts for row in counts[case]])
    cases = [case for case, rows in counts.items() for _ in rows]
    intervals = bootstrap_pooled(amounts, cases, scores, 20_000, 0)
    assert set(intervals) == set(METRICS)
    assert intervals["dice"] == pytest.approx(np.percentile(dices, [2.5, 97.5]), abs=0.01)
    assert intervals["precision"] == pytest.approx(np.percentile(precisions, [2.5, 97.5]), abs=0.01)
    assert bootstrap_pooled(amounts[:2], ["a", "a"], scores, 100, 0) == dict.fromkeys(METRICS)
