"""Find nuclei as peaks of a probability map, and match them one to one with annotated points.

The annotation is one point per nucleus. A network that was trained on discs of radius R shows a
nucleus as a plateau of that size. Smoothed by a Gaussian of R / 2, it has one peak near its middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import PointsN2
from train.metrics.scores import THRESHOLDS, Counts, Score

MOST_CANDIDATES = 0.005
"""Fraction of a map's pixels. Up to it, candidates are checked one by one; with more candidates, it
is faster to dilate the whole map."""

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """Predicted nuclei, the highest score first."""

    centres_N2: PointsN2
    scores: Plane
    """(N,) float32: the smoothed probability at each centre, 0 to 1."""


@dataclass(frozen=True)
class Detections:
    """The nuclei of one class that were predicted in a field, the highest score first."""

    scores: Plane
    """(N,) float32, see Nuclei."""
    is_hit: npt.NDArray[np.bool_]
    """(N,): whether each nucleus has an annotated point of its own, see `hits`."""
    num_annotated: int

    def counts(self, thresholds: npt.ArrayLike) -> Counts:
        """Count nuclei at each threshold (T,): (T, 4) int64, see Counts; true negatives are 0."""
        is_predicted = self.scores > np.asarray(thresholds, np.float32)[:, None]
        hit = (is_predicted & self.is_hit).sum(axis=1)
        false_alarm = (is_predicted & ~self.is_hit).sum(axis=1)
        return np.stack([hit, false_alarm, self.num_annotated - hit, np.zeros_like(hit)], axis=-1)


def detect(
    probability_HW: Plane,
    annotated_N2: PointsN2,
    radius_px: float,
    match_radius_px: float,
    is_valid_HW: npt.NDArray[np.bool_],
) -> Detections:
    """Find nuclei in the probability map of a class, and match them with its annotated points.

    A nucleus whose centre is no valid pixel, and which has no annotated point, is left out: it is
    no false alarm.
    """
    nuclei = find_nuclei(probability_HW, radius_px, float(THRESHOLDS[0]))
    is_hit = hits(nuclei.centres_N2, annotated_N2, match_radius_px)
    x, y = np.floor(nuclei.centres_N2 + 0.5).astype(int).T
    counts = is_hit | is_valid_HW[y, x]
    return Detections(nuclei.scores[counts], is_hit[counts], len(annotated_N2))


def find_nuclei(probability_HW: Plane, radius_px: float, least_score: float) -> Nuclei:
    """Find peaks in the probability map of a class, 0 to 1, that are at least `radius_px` apart.

    The peak of a plateau is in its middle.
    """
    smooth_HW = cv2.GaussianBlur(
        probability_HW, (0, 0), radius_px / 2, borderType=cv2.BORDER_REFLECT_101
    )
    is_peak_HW = find_peaks(smooth_HW, max(1, round(radius_px)), least_score)
    _, _, _, middles = cv2.connectedComponentsWithStats(is_peak_HW.astype(np.uint8))
    centres_N2 = middles[1:]  # the first is the background
    x, y = np.round(centres_N2).astype(int).T
    scores = smooth_HW[y, x]
    order = np.lexsort((centres_N2[:, 0], centres_N2[:, 1], -scores))
    kept = order[far_from_earlier(centres_N2[order], radius_px)]
    return Nuclei(centres_N2[kept], scores[kept])


def find_peaks(smooth_HW: Plane, reach: int, least: float) -> npt.NDArray[np.bool_]:
    """Return (H, W): which pixels are above `least`, and not below any pixel of the disc around."""
    side = 2 * reach + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # OpenCV dilates by a square in 2 x side steps, by a disc in side x side. So the square within
    # the disc comes first; it leaves few candidates.
    half = next(half for half in range(reach, -1, -1) if disc[reach - half, reach - half])
    square = np.ones((2 * half + 1, 2 * half + 1), np.uint8)
    is_peak_HW = (smooth_HW >= cv2.dilate(smooth_HW, square)) & (smooth_HW > least)
    y, x = np.nonzero(is_peak_HW)
    if len(y) > MOST_CANDIDATES * smooth_HW.size:  # a plateau
        return is_peak_HW & (smooth_HW >= cv2.dilate(smooth_HW, disc))
    border = (reach,) * 4
    padded_HW = cv2.copyMakeBorder(smooth_HW, *border, cv2.BORDER_CONSTANT, value=-np.inf)
    value, is_peak = smooth_HW[y, x], np.ones(len(y), bool)
    for row, width in enumerate(disc.sum(axis=1).tolist()):
        windows = np.lib.stride_tricks.sliding_window_view(padded_HW, width, axis=1)
        is_peak &= windows[y + row, x + (side - width) // 2].max(axis=1) <= value
    is_peak_HW[y, x] = is_peak
    return is_peak_HW


def far_from_earlier(points_N2: PointsN2, least_px: float) -> npt.NDArray[np.intp]:
    """Return the numbers of points that are farther than `least_px` from all points kept before."""
    from scipy.spatial import cKDTree  # here: scipy takes most of a second of a run's start

    is_kept = np.ones(len(points_N2), bool)
    # a little more, since the tree rounds differently
    pairs = cKDTree(points_N2).query_pairs(1.001 * least_px, output_type="ndarray")
    distance2 = np.square(points_N2[pairs[:, 0]] - points_N2[pairs[:, 1]]).sum(axis=1)
    near = pairs[distance2 <= least_px**2]
    for earlier, later in near[np.argsort(near[:, 0])].tolist():  # earlier < later
        if is_kept[earlier]:
            is_kept[later] = False
    return np.flatnonzero(is_kept)


def hits(predicted_N2: PointsN2, annotated_N2: PointsN2, radius_px: float) -> npt.NDArray[np.bool_]:
    """Return (N,): which predicted points, the highest score first, have an annotated one of their
    own.

    At every threshold, as many predicted points as possible are matched, each with an annotated
    point of its own. Sets of points that can be matched are a matroid (Edmonds & Fulkerson 1965).
    So the heaviest matching, in which points of higher score weigh more, takes each point
    that can be matched together with those of higher score that it has taken.
    """
    from scipy.optimize import linear_sum_assignment  # here: as above
    from scipy.spatial.distance import cdist

    is_hit = np.zeros(len(predicted_N2), bool)
    if len(predicted_N2) and len(annotated_N2):
        is_near = cdist(predicted_N2, annotated_N2) <= radius_px
        weight = np.arange(len(predicted_N2), 0, -1)[:, None]
        pairs = np.stack(linear_sum_assignment(is_near * weight, maximize=True), axis=1)
        is_hit[[i for i, j in pairs if is_near[i, j]]] = True
    return is_hit


def average_precision(detections: Sequence[Detections]) -> Score:
    """Compute the area under the precision-recall curve of several fields and classes together.

    It is the sum, over scores from the highest, of precision times gain in recall, without
    interpolation. That is scikit-learn's average_precision_score, but with the recall over all
    annotated points, found or not. None if nothing is annotated.
    """
    scores = np.concatenate([each.scores for each in detections])
    num_annotated = sum(each.num_annotated for each in detections)
    if not num_annotated:
        return None
    if not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    num_hits = np.cumsum(np.concatenate([each.is_hit for each in detections])[order])
    is_step = np.append(np.diff(scores[order]) != 0, True)  # equal scores make one step
    precision = (num_hits / np.arange(1, len(scores) + 1))[is_step]
    gain = np.diff(num_hits[is_step] / num_annotated, prepend=0)
    return float(np.sum(gain * precision))
