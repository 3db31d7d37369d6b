"""Read BreCaHAD's annotations, and read and write the points of every prepared sample.

Both are one JSON per field: an object with a list of {"x", "y"} for each class, x over the width
and y over the height, both from 0 to 1. Only this module knows these fractions; all others have px
(images/arrays.py).
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.command_line import UsageError
from data_prep.annotations.findings import Findings, UnusableError, shown
from data_prep.annotations.json_text import parse_json, read_content
from data_prep.annotations.reader import RULES, Annotation, AnnotationReader, Rules
from data_prep.images.arrays import PointsPx
from data_prep.images.tiles import Tile, pixels_of, points_in, whole
from data_prep.raw import BadInputError, Field

CLASSES = (
    "mitosis",
    "non_mitosis",
    "apoptosis",
    "tumor",
    "non_tumor",
    "lumen",
    "non_lumen",
)
SPELLINGS = {"tubule": "lumen", "non_tubule": "non_lumen"}  # BreCaHAD's own README uses these
# Added to written points on the edge of two pixels: they might else come back in the pixel before,
# once divided and multiplied by the width
EDGE_PX = 1e-6

Fractions = dict[str, npt.NDArray[np.float64]]
"""Class name -> points, (N, 2): x over the width and y over the height, from 0 to 1."""


@dataclass
class Listed:
    """The points of a file, and what of it was left out."""

    fractions: Fractions = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Reason -> number of points that cannot be used."""
    first: str = ""
    """What is wrong with the first of them."""
    num_duplicates: int = 0
    """Points that are there again."""


class BreCaHADReader(AnnotationReader[Listed]):
    """Reads the JSON; every class is one of CLASSES, and every wanted class has a list."""

    suffixes = (".json",)
    lists_classes = True

    def check_classes(self, classes: Sequence[str]) -> list[str]:
        """Return the classes in their usual spelling. Raises UsageError for an unknown class."""
        names = [SPELLINGS.get(name, name) for name in classes]
        for name in names:
            if name not in CLASSES:
                raise UsageError(f"classes: unknown '{name}'; known: {', '.join(CLASSES)}")
        if len(set(names)) < len(names):
            raise UsageError(f"classes=[{','.join(classes)}]: a class is named twice")
        return names

    def parse(self, field: Field) -> Listed:
        """Read the points of every class."""
        return parse(read_content(field.annotation), self.rules)

    def classes_in(self, parsed: Listed, classes: Sequence[str]) -> list[str]:
        """Return the classes that have a list."""
        return list(parsed.fractions)

    def annotation_in(self, parsed: Listed, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Turn points into the pixels that they lie in. Raises BadInputError for a missing list."""
        for name in values:
            if name not in parsed.fractions:
                raise BadInputError(f"has no list for class '{name}' (an empty one is [])")
        return Annotation(points_in(to_px(parsed.fractions, tile), tile))

    def findings(self, parsed: Listed, tile: Tile) -> Findings:
        """Count the points of each class that has any, and those left out."""
        return Findings(
            classes={name: len(found) for name, found in parsed.fractions.items() if len(found)},
            passed_over=dict(parsed.passed_over),
            duplicates=parsed.num_duplicates,
        )


def parse(content: bytes, rules: Rules = RULES) -> Listed:
    """Read BreCaHAD's own file: known classes, some point. Raises BadInputError with the reason."""
    listed = parse_lists(content)
    fractions: Fractions = {}
    for key, points_N2 in listed.fractions.items():
        name = SPELLINGS.get(key, key)
        if name not in CLASSES:
            known = ", ".join([*CLASSES, *SPELLINGS])
            raise BadInputError(f"unknown class {key!r:.60}; known: {known}")
        if name in fractions:
            raise BadInputError(f"class '{name}' occurs twice (as '{key}' too)")
        fractions[name] = np.array([*dict.fromkeys(map(tuple, points_N2))]).reshape(-1, 2)
        listed.num_duplicates += len(points_N2) - len(fractions[name])
    if not any(map(len, fractions.values())):
        if listed.first:
            raise BadInputError(f"{listed.first} (and no other point can be used)")
        if not fractions:
            raise BadInputError("annotates nothing: has no list for any class")
        rules.check_empty("every class list is empty")
    listed.fractions = fractions
    return listed


def parse_lists(content: bytes) -> Listed:
    """Read a file with any classes, empty or not. Raises BadInputError with the reason."""
    parsed = parse_json(content)
    if not isinstance(parsed, dict):
        raise BadInputError(f"invalid JSON: expected one object, found {type(parsed).__name__}")
    listed = Listed()
    for key, entries in parsed.items():
        listed.fractions[key] = parse_class(key, entries, listed)
    return listed


def parse_class(key: str, entries: object, listed: Listed) -> npt.NDArray[np.float64]:
    """Return the fractions of one class, (N, 2); count in `listed` what cannot be used."""
    if not isinstance(entries, list):
        raise BadInputError(f"class {key!r:.60}: expected a list of points")
    points, name = [], shown(key)[:60]
    for index, entry in enumerate(entries):
        try:
            points.append(parse_point(f"{name}[{index}]", entry))
        except UnusableError as error:
            listed.passed_over[error.reason] += 1
            listed.first = listed.first or str(error)
    return np.array(points, np.float64).reshape(-1, 2)


def parse_point(where: str, entry: object) -> tuple[float, float]:
    """Check one {"x", "y"}.

    Raises UnusableError if it is no position, BadInputError if it is one outside the image.
    """
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys():
        raise UnusableError(where, 'without "x" and "y"', 'expected {"x": .., "y": ..}')
    for axis in ("x", "y"):
        value = entry[axis]
        if isinstance(value, bool) or not isinstance(value, int | float):
            detail = f"expected a number, found {value!r:.40}"
            raise UnusableError(f"{where}.{axis}", "a coordinate is not a number", detail)
        if not 0 <= value <= 1:
            named, problem = f"{where}.{axis} = {value!r:.40}", "outside [0, 1]"
            if isinstance(value, float) and not math.isfinite(value):
                raise UnusableError(named, "a coordinate is not a position in any image", problem)
            raise BadInputError(f"{named}: {problem}")
    return float(entry["x"]), float(entry["y"])


def to_px(fractions: Fractions, tile: Tile) -> PointsPx:
    """Return the pixels of the tile's image that the points lie in."""
    size = tile.width_px, tile.height_px
    return {name: pixels_of(points_N2 * size, tile) for name, points_N2 in fractions.items()}


def decode_points(content: bytes, height_px: int, width_px: int) -> PointsPx:
    """Read what `encode_points` wrote: the pixels that its points lie in.

    Raises BadInputError with the reason.
    """
    listed = parse_lists(content)
    if listed.first:
        raise BadInputError(listed.first)
    return to_px(listed.fractions, whole(height_px, width_px))


def encode_points(points: PointsPx, height_px: int, width_px: int) -> bytes:
    """Write points in an image of this size, of any classes, as BreCaHAD's JSON."""
    size = width_px, height_px
    listed = {}
    for name, points_N2 in points.items():
        from_corner_N2 = points_N2 + 0.5
        from_corner_N2[from_corner_N2 % 1 == 0] += EDGE_PX
        fractions = np.minimum(from_corner_N2 / size, 1).tolist()
        listed[name] = [{"x": x, "y": y} for x, y in fractions]
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return f"{text}\n".encode()
