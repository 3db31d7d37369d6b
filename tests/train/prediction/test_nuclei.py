"""Nuclei of large images: found as in the whole, and the files that say where they are."""

import json
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.annotations import brecahad
from data_prep.images.arrays import Box
from train.metrics.detection import Nuclei, find_nuclei
from train.prediction import nuclei
from train.prediction.nuclei import as_brecahad, as_geojson, find_in_windows

RADIUS_PX = 6


@pytest.fixture
def windows_of_100_px(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuclei, "WINDOW_PX", 100)


def crowded() -> np.ndarray:
    """A thousand discs that touch and overlap, of many heights, with some noise."""
    rng = np.random.default_rng(0)
    probability_HW = np.zeros((510, 730), np.float32)
    for _ in range(1000):
        x, y, height = rng.integers(0, 730), rng.integers(0, 510), rng.uniform(0.4, 1)
        cv2.circle(probability_HW, (int(x), int(y)), RADIUS_PX, float(height), cv2.FILLED)
    return np.clip(probability_HW + rng.normal(0, 0.02, (510, 730)).astype(np.float32), 0, 1)


@pytest.mark.usefixtures("windows_of_100_px")
@pytest.mark.parametrize("noisy", [True, False])
def test_windows_find_what_the_whole_has(noisy: bool) -> None:
    """Each once, at the same place: also on seams, where many lie."""
    probability_HW = crowded() if noisy else np.round(crowded(), 1)

    def read(box: Box) -> np.ndarray:
        return probability_HW[box.y : box.y + box.height, box.x : box.x + box.width].copy()

    whole = find_nuclei(probability_HW, RADIUS_PX, 0.4)
    found = find_in_windows(read, 510, 730, RADIUS_PX, 0.4)
    assert len(whole.centres_N2) > 300
    order, expected = (np.lexsort(each.centres_N2.T) for each in (found, whole))
    assert found.centres_N2[order].tolist() == whole.centres_N2[expected].tolist()
    assert found.scores[order] == pytest.approx(whole.scores[expected], abs=1e-5)
    to_seam = np.abs((found.centres_N2 + 50) % 100 - 50).min(axis=1)
    assert (to_seam < 2).sum() > 10


@pytest.mark.usefixtures("windows_of_100_px")
def test_a_window_reads_no_more_than_its_halo() -> None:
    seen = []

    def read(box: Box) -> np.ndarray:
        seen.append((box.height, box.width))
        return np.zeros((box.height, box.width), np.float32)

    assert len(find_in_windows(read, 1000, 300, RADIUS_PX, 0.5).centres_N2) == 0
    assert len(seen) == 30
    assert max(seen) == (160, 160)


def two() -> Nuclei:
    return Nuclei(np.array([[10.0, 20.0], [99.0, 0.0]]), np.array([0.875, 0.5], np.float32))


def test_geojson_is_what_qupath_reads() -> None:
    """Coordinates from the corner of the image, where the middle of the first pixel is 0.5."""
    nothing = Nuclei(np.zeros((0, 2)), np.zeros(0, np.float32))
    content = b"".join(as_geojson({"tumor": two(), "mitosis": nothing}))
    read = json.loads(content)
    assert read["type"] == "FeatureCollection"
    assert read["features"][0] == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [10.5, 20.5]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": "tumor", "color": [240, 228, 66]},
            "measurements": {"Probability": 0.875},
        },
    }
    assert len(read["features"]) == 2
    assert content.count(b"\n") == 4  # a line each, so that a correction is a line in a diff
    assert json.loads(b"".join(as_geojson({"mitosis": nothing})))["features"] == []


def test_the_colours_are_those_of_the_pictures() -> None:
    written = features({"lymphocyte": two(), "tumor": two()})
    colours = [feature["properties"]["classification"]["color"] for feature in written]
    assert colours == [[240, 228, 66]] * 2 + [[86, 180, 233]] * 2


def test_classes_of_ones_own_are_written_too() -> None:
    found = {"lymphocyte": two(), "plasma cell": two()}
    names = [feature["properties"]["classification"]["name"] for feature in features(found)]
    assert names == ["lymphocyte"] * 2 + ["plasma cell"] * 2
    assert list(json.loads(as_brecahad(found, height=50, width=100))) == [*found]


def features(found: dict[str, Nuclei]) -> list[dict[str, Any]]:
    return json.loads(b"".join(as_geojson(found)))["features"]


def test_brecahads_form_is_read_back_at_the_same_pixels() -> None:
    content = as_brecahad({"tumor": two()}, height=50, width=100)
    points = brecahad.decode_points(content, 50, 100)
    assert set(points) == set(brecahad.parse(content).fractions) == set(brecahad.CLASSES)
    assert points["tumor"].tolist() == [[10, 20], [99, 0]]
    assert not any(len(points[name]) for name in points if name != "tumor")
