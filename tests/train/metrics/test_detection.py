"""Nuclei as points: peaks of drawn maps, and matchings by hand or by another algorithm."""

import cv2
import numpy as np
import pytest

from tests.matching import num_pairs
from train.metrics import detection
from train.metrics.detection import (
    Detections,
    average_precision,
    detect,
    far_from_earlier,
    find_nuclei,
    find_peaks,
    hits,
)


def drawn(points: list[tuple[int, int]], radius_px: int = 10) -> np.ndarray:
    """A map that is 0.9 within discs and 0.05 elsewhere."""
    probability_HW = np.full((120, 160), 0.05, np.float32)
    for point in points:
        cv2.circle(probability_HW, point, radius_px, 0.9, cv2.FILLED)
    return probability_HW


def test_each_disc_is_found_once_in_its_middle_also_where_discs_touch() -> None:
    points = [(30, 30), (48, 30), (100, 80), (158, 60)]
    nuclei = find_nuclei(drawn(points), radius_px=10, least_score=0.3)
    assert len(nuclei.centres_N2) == 4
    distance = np.linalg.norm(nuclei.centres_N2[:, None] - np.array(points)[None], axis=-1)
    assert distance.min(axis=0).max() <= 3
    assert list(nuclei.scores) == sorted(nuclei.scores, reverse=True)


def test_a_lone_disc_has_the_share_of_the_gaussian_that_it_covers() -> None:
    """Of a Gaussian of R / 2 a disc of R holds 1 - e^-2: 0.05 + 0.85 * 0.865 = 0.785."""
    (score,) = find_nuclei(drawn([(80, 60)]), radius_px=10, least_score=0.3).scores
    assert score == pytest.approx(0.785, abs=0.02)


def test_a_flat_map_is_nothing_below_its_level_and_one_plateau_above() -> None:
    flat = np.full((61, 61), 0.4, np.float32)
    assert len(find_nuclei(flat, 10, least_score=0.5).centres_N2) == 0
    assert find_nuclei(flat, 10, least_score=0.3).centres_N2.tolist() == [[30, 30]]


def map_of(kind: str) -> np.ndarray:
    """Smooth maps of every kind: with many peaks, with equal ones, with plateaus, and flat."""
    rng = np.random.default_rng(0)
    noise_HW = rng.random((300, 400), np.float32)
    smooth_HW = cv2.GaussianBlur(noise_HW, (0, 0), 3)
    if kind == "noise":
        return noise_HW
    if kind == "steps":  # of equal height, next to one another
        return np.round(smooth_HW * 40) / np.float32(40)
    if kind == "plateaus":
        return np.minimum(smooth_HW, np.float32(0.5))
    if kind == "flat":
        return np.full_like(noise_HW, 0.5)
    return drawn([(int(x), int(y)) for x, y in rng.uniform(0, 160, (40, 2))])


@pytest.mark.parametrize(
    ("kind", "reach", "most"),
    [
        ("noise", 1, 0.0),
        ("noise", 7, 1.0),
        ("steps", 2, 1.0),
        ("steps", 20, 0.005),
        ("plateaus", 7, 0.0),
        ("plateaus", 1, 0.005),
        ("flat", 2, 0.0),
        ("flat", 7, 1.0),
        ("discs", 20, 1.0),
        ("discs", 2, 0.005),
    ],
)
def test_peaks_are_the_pixels_that_dilation_by_the_disc_leaves_as_they_are(
    most: float, reach: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether candidates are looked at one by one or not."""
    monkeypatch.setattr(detection, "MOST_CANDIDATES", most)
    smooth_HW = map_of(kind)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    expected_HW = (smooth_HW == cv2.dilate(smooth_HW, disc)) & (smooth_HW > 0.45)
    assert expected_HW.any()
    assert np.array_equal(find_peaks(smooth_HW, reach, 0.45), expected_HW)


@pytest.mark.parametrize("least_px", [0.5, 5, 60])
def test_a_place_is_kept_where_no_earlier_kept_one_is_near(least_px: float) -> None:
    """On a lattice, where many are exactly that far; against comparing each with all before."""
    places = np.random.default_rng(0).integers(0, 100, (400, 2)) / 2
    kept: list[int] = []
    for number, place in enumerate(places):
        if all(np.square(places[other] - place).sum() > least_px**2 for other in kept):
            kept.append(number)
    assert len(kept) < 400
    assert far_from_earlier(places, least_px).tolist() == kept
    assert far_from_earlier(places[:0], least_px).shape == (0,)


def test_the_surer_of_two_at_one_point_is_the_hit() -> None:
    found = np.array([[4.0, 0], [0, 0], [50, 0]])
    assert hits(found, np.array([[1.0, 0], [90, 0]]), 5).tolist() == [True, False, False]
    assert hits(found, found[:0], 5).tolist() == [False, False, False]
    assert hits(found[:0], found, 5).shape == (0,)


def test_a_surer_one_gives_way_where_it_has_another_point() -> None:
    """The first is nearest to the only point of the second, and can do with its own second best."""
    found, annotated = np.array([[0.0, 0], [9, 0]]), np.array([[1.0, 0], [-8, 0]])
    assert hits(found, annotated, 9).tolist() == [True, True]


@pytest.mark.parametrize("seed", range(3))
def test_above_every_score_there_are_as_many_hits_as_pairs_can_be(seed: int) -> None:
    """So a curve over thresholds is one matching at each of them."""
    rng = np.random.default_rng(seed)
    found, annotated = rng.uniform(0, 40, (30, 2)), rng.uniform(0, 40, (20, 2))
    is_hit = hits(found, annotated, 6)
    assert 5 < is_hit.sum() < 20
    for number in range(31):
        assert is_hit[:number].sum() == num_pairs(found[:number], annotated, 6)


def test_counts_of_nuclei_at_thresholds() -> None:
    """A score counts above a threshold, not at it."""
    scores = np.array([0.9, 0.8, 0.5, 0.3], np.float32)
    detections = Detections(scores, np.array([True, False, True, True]), num_annotated=5)
    expected = [[3, 1, 2, 0], [1, 1, 4, 0], [0, 0, 5, 0]]
    assert detections.counts([0.2, 0.5, 0.95]).tolist() == expected


def listed(scores: list[float], is_hit: list[bool], num_annotated: int) -> Detections:
    return Detections(np.array(scores, np.float32), np.array(is_hit, bool), num_annotated)


def test_average_precision_worked_out_by_hand() -> None:
    """Hits first, third and fifth of the two fields together, and one of four points missed."""
    one = listed([0.9, 0.7], [True, True], 2)
    other = listed([0.8, 0.6, 0.5], [False, False, True], 2)
    expected = (1 / 1 + 2 / 3 + 3 / 5) / 4
    assert average_precision([one, other]) == pytest.approx(expected)
    assert average_precision([other, one]) == pytest.approx(expected)


def test_equal_scores_are_one_step_of_the_curve() -> None:
    """Two at 0.9, one of them a hit: precision 1/2, whichever stands first."""
    for is_hit in ([True, False], [False, True]):
        assert average_precision([listed([0.9, 0.9], is_hit, 1)]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scores", "num_annotated", "expected"), [([], 0, None), ([0.9], 0, None), ([], 3, 0.0)]
)
def test_average_precision_where_there_is_nothing(
    scores: list[float], num_annotated: int, expected: float | None
) -> None:
    assert average_precision([listed(scores, [False] * len(scores), num_annotated)]) == expected


def test_a_nucleus_in_an_ignored_pixel_is_a_hit_or_nothing() -> None:
    """Three are found, one is annotated: of the others, the one that is ignored is no false alarm
    at any threshold."""
    probability_HW = drawn([(40, 40), (110, 70), (40, 100)])
    valid_HW = np.ones(probability_HW.shape, bool)
    valid_HW[30:50, 30:50] = valid_HW[60:80, 100:120] = False
    annotated = np.array([[40.0, 40]])
    found = detect(probability_HW, annotated, 10, 8, valid_HW)
    assert found.counts([0.2, 0.5]).tolist() == [[1, 1, 0, 0]] * 2
    everywhere = detect(probability_HW, annotated, 10, 8, np.ones_like(valid_HW))
    assert everywhere.counts([0.5]).tolist() == [[1, 2, 0, 0]]


def test_nuclei_are_held_against_the_points_within_the_radius_of_matching() -> None:
    """Found in their middles: an annotation 6 px off is met within 8 px, not within 4."""
    probability_HW = drawn([(40, 40), (110, 70)])
    annotated = np.array([[46.0, 40], [110, 70], [20, 100]])
    valid_HW = np.ones(probability_HW.shape, bool)
    near = detect(probability_HW, annotated, 10, 8, valid_HW)
    assert near.counts([0.5]).tolist() == [[2, 0, 1, 0]]
    nearer = detect(probability_HW, annotated, 10, 4, valid_HW)
    assert nearer.counts([0.5]).tolist() == [[1, 1, 2, 0]]
