"""Nuclei as points: peaks of drawn maps, and matchings worked out by hand or by trying all."""

from itertools import permutations

import cv2
import numpy as np
import pytest

from train.detection import find_nuclei, match


def drawn(points: list[tuple[int, int]], radius_px: int = 10) -> np.ndarray:
    """A map that is 0.9 within discs and 0.05 elsewhere."""
    probability_HW = np.full((120, 160), 0.05, np.float32)
    for point in points:
        cv2.circle(probability_HW, point, radius_px, 0.9, cv2.FILLED)
    return probability_HW


def test_each_disc_is_found_once_in_its_middle_also_where_discs_touch() -> None:
    points = [(30, 30), (48, 30), (100, 80), (158, 60)]
    nuclei = find_nuclei(drawn(points), radius_px=10, least_score=0.3)
    assert len(nuclei.places) == 4
    distance = np.linalg.norm(nuclei.places[:, None] - np.array(points)[None], axis=-1)
    assert distance.min(axis=0).max() <= 3
    assert list(nuclei.scores) == sorted(nuclei.scores, reverse=True)


def test_a_lone_disc_has_the_share_of_the_gaussian_that_it_covers() -> None:
    """Of a Gaussian of R / 2 a disc of R holds 1 - e^-2: 0.05 + 0.85 * 0.865 = 0.785."""
    (score,) = find_nuclei(drawn([(80, 60)]), radius_px=10, least_score=0.3).scores
    assert score == pytest.approx(0.785, abs=0.02)


def test_a_flat_map_is_nothing_below_its_level_and_one_plateau_above() -> None:
    flat = np.full((61, 61), 0.4, np.float32)
    assert len(find_nuclei(flat, 10, least_score=0.5).places) == 0
    assert find_nuclei(flat, 10, least_score=0.3).places.tolist() == [[30, 30]]


def test_above_keeps_the_sure_ones() -> None:
    nuclei = find_nuclei(drawn([(30, 30), (100, 80)]), 10, 0.1)
    assert len(nuclei.above(0.99).places) == 0
    assert len(nuclei.above(0.5).places) == 2


def test_matching_is_one_to_one_within_the_radius() -> None:
    found = np.array([[0.0, 0], [3, 0], [50, 50]])
    annotated = np.array([[1.0, 0], [100, 100]])
    assert match(found, annotated, radius_px=5).tolist() == [[0, 0]]
    assert match(found[:0], annotated, 5).shape == (0, 2)
    assert match(found, annotated[:0], 5).shape == (0, 2)


def test_more_pairs_come_before_nearer_ones() -> None:
    """The nearest pair, 1-1, would leave 0 and 2 alone: 0-1 and 1-2 are two pairs."""
    found, annotated = np.array([[0.0, 0], [8, 0]]), np.array([[7.0, 0], [16, 0]])
    assert sorted(match(found, annotated, 10).tolist()) == [[0, 0], [1, 1]]


@pytest.mark.parametrize("seed", range(8))
def test_no_other_matching_has_more_pairs_or_as_many_nearer(seed: int) -> None:
    """Against every assignment of five found to five annotated points."""
    rng = np.random.default_rng(seed)
    found, annotated = rng.uniform(0, 30, (2, 5, 2))
    distance = np.linalg.norm(found[:, None] - annotated[None], axis=-1)

    def worth(pairs: list[tuple[int, int]]) -> tuple[int, float]:
        near = [distance[pair] for pair in pairs if distance[pair] <= 9]
        return len(near), -sum(near)

    best = max(worth(list(enumerate(order))) for order in permutations(range(5)))
    pairs = [tuple(pair) for pair in match(found, annotated, 9).tolist()]
    assert worth(pairs) == pytest.approx(best)
    assert len(pairs) == best[0]
