"""Find the nuclei of an image of any size; write them as QuPath's GeoJSON and BreCaHAD's JSON."""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from data_prep.annotations.brecahad import CLASSES, encode_points
from data_prep.images.arrays import Box
from data_prep.images.class_colours import colour_of
from data_prep.images.tiles import are_inside
from train.metrics.detection import Nuclei, Plane, find_nuclei

WINDOW_PX = 2048
# How far beyond its window a nucleus depends on pixels, in radii: 2 that the Gaussian reaches, 1 to
# the next peak, 1 to a nucleus that suppresses it, and 1 to spare
HALO_RADII = 5


def find_in_windows(
    probability: Callable[[Box], Plane],
    height: int,
    width: int,
    radius_px: float,
    least_score: float,
    count_rows: Callable[[int], None] = lambda number: None,
) -> Nuclei:
    """Find the nuclei that `find_nuclei` finds in the whole image, window by window.

    A window is read with a halo around it, and gives the nuclei that lie in itself. `count_rows` is
    called with the height of each row of windows once it is done.
    """
    halo_px = int(np.ceil(HALO_RADII * radius_px))
    centres, scores = [np.zeros((0, 2))], [np.zeros(0, np.float32)]
    for y in range(0, height, WINDOW_PX):
        for x in range(0, width, WINDOW_PX):
            left, top = max(0, x - halo_px), max(0, y - halo_px)
            right, bottom = (
                min(start + WINDOW_PX + halo_px, end) for start, end in ((x, width), (y, height))
            )
            seen = probability(Box(left, top, right - left, bottom - top))
            if seen.max() <= least_score:  # glass, mostly: a mean cannot be above
                continue
            found = find_nuclei(seen, radius_px, least_score)
            centres_N2 = found.centres_N2 + np.array([left, top])
            own = are_inside(centres_N2 - np.array([x, y]), WINDOW_PX, WINDOW_PX)
            centres.append(centres_N2[own])
            scores.append(found.scores[own])
        count_rows(min(WINDOW_PX, height - y))
    return Nuclei(np.concatenate(centres), np.concatenate(scores))


def in_px_of(nuclei: Nuclei, scale: tuple[float, float]) -> Nuclei:
    """Return nuclei in px of a rescaled image. `scale`: its px for one px, along x and y."""
    return Nuclei((nuclei.centres_N2 + 0.5) * scale - 0.5, nuclei.scores)


def as_geojson(nuclei: Mapping[str, Nuclei]) -> Iterator[bytes]:
    """Encode class -> nuclei as QuPath's FeatureCollection of detections, line by line.

    Coordinates are in px from the image's corner: the middle of the first pixel is (0.5, 0.5).
    data_prep.annotations.qupath reads the file back. Each class has its colour of all pictures.
    """
    yield b'{"type": "FeatureCollection", "features": ['
    before = b"\n"
    for number, (name, found) in enumerate(nuclei.items()):
        for (x, y), score in zip(found.centres_N2.tolist(), found.scores.tolist(), strict=True):
            feature = {
                "type": "Feature",
                "geometry": {
                    "type": "Point",
                    "coordinates": [round(x + 0.5, 2), round(y + 0.5, 2)],
                },
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": name, "color": colour_of(number)},
                    "measurements": {"Probability": round(score, 4)},
                },
            }
            yield before + json.dumps(feature).encode()
            before = b",\n"
    yield b"\n]}\n"


def as_brecahad(nuclei: Mapping[str, Nuclei], height: int, width: int) -> bytes:
    """Encode class -> nuclei as BreCaHAD's JSON, a list for each class.

    Where all classes are BreCaHAD's, those without a nucleus have an empty list.
    """
    names = CLASSES if set(nuclei) <= set(CLASSES) else [*nuclei]
    points = dict.fromkeys(names, np.zeros((0, 2)))
    points |= {name: found.centres_N2 for name, found in nuclei.items()}
    return encode_points(points, height, width)
