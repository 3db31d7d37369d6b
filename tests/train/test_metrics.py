"""Metrics worked out by hand, the rule for empty masks, and what the bootstrap promises."""

from itertools import product

import numpy as np
import pytest
import torch

from train.metrics import EMPTY_RULE, METRICS, bootstrap_over_cases, count_pixels, score


def test_counts_of_a_picture_one_can_count() -> None:
    """Class 0: 1 hit, 2 false alarms, 1 miss, 2 neither; class 1: all hits. Two images."""
    truth = torch.tensor([[[[1, 1, 0]], [[1, 1, 1]]], [[[0, 0, 0]], [[1, 1, 1]]]]).bool()
    predicted = torch.tensor([[[[1, 0, 1]], [[1, 1, 1]]], [[[1, 0, 0]], [[1, 1, 1]]]]).bool()
    counts = count_pixels(predicted, truth)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 2, 1, 2], [6, 0, 0, 0]]


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


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # neither has any foreground: as good as can be
        ([0, 0, 0, 5], {"accuracy": 1, "iou": 1, "dice": 1, "precision": 1, "recall": 1}),
        # predicted where nothing is: recall is 0/0
        ([0, 2, 0, 3], {"accuracy": 0.6, "iou": 0, "dice": 0, "precision": 0, "recall": 0}),
        # nothing predicted where something is: precision is 0/0
        ([0, 0, 2, 3], {"accuracy": 0.6, "iou": 0, "dice": 0, "precision": 0, "recall": 0}),
    ],
)
def test_the_rule_for_empty_masks(counts: list[int], expected: dict[str, float]) -> None:
    assert score(np.array(counts)) == pytest.approx(expected)
    assert "are 1 where neither" in EMPTY_RULE
    assert "otherwise is 0" in EMPTY_RULE


def test_sums_do_not_overflow_32_bits() -> None:
    counts = np.full((3, 1, 4), 2**31, np.int64)
    assert score(counts)["dice"] == pytest.approx(0.5)


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
