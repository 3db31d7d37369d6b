"""Read BreCaHAD's annotations, and read and write the points of every prepared sample.

Both are one JSON per field: an object with a list of {"x", "y"} for each class, x over the width
and y over the height, both from 0 to 1. Only this module knows these fractions; all others have px
(images/arrays.py).
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.command_line import UsageError
from data_prep.annotations.reader import Annotation, AnnotationReader
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


class BreCaHADReader(AnnotationReader[Fractions]):
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

    def parse(self, field: Field) -> Fractions:
        """Read the points of every class."""
        return parse(field.annotation.read_bytes())

    def classes_in(self, parsed: Fractions, classes: Sequence[str]) -> list[str]:
        """Return the classes that have a list."""
        return list(parsed)

    def annotation_in(self, parsed: Fractions, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Turn points into the pixels that they lie in. Raises BadInputError for a missing list."""
        for name in values:
            if name not in parsed:
                raise BadInputError(f"has no list for class '{name}' (an empty one is [])")
        return Annotation(points_in(to_px(parsed, tile), tile))


def parse(content: bytes) -> Fractions:
    """Read BreCaHAD's own file: known classes, some point. Raises BadInputError with the reason."""
    listed = parse_lists(content)
    fractions: Fractions = {}
    for key, points_N2 in listed.items():
        name = SPELLINGS.get(key, key)
        if name not in CLASSES:
            known = ", ".join([*CLASSES, *SPELLINGS])
            raise BadInputError(f"unknown class '{key}'; known: {known}")
        if name in fractions:
            raise BadInputError(f"class '{name}' occurs twice (as '{key}' too)")
        fractions[name] = points_N2
    if not any(map(len, fractions.values())):
        raise BadInputError("annotates nothing: every class list is empty")
    return fractions


def parse_lists(content: bytes) -> Fractions:
    """Read a file with any classes, empty or not. Raises BadInputError with the reason."""
    try:
        # json accepts NaN and Infinity; parse_point refuses them with the point's name
        raw = json.loads(content, object_pairs_hook=refuse_repeated)
    except BadInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadInputError(f"invalid JSON: expected one object, found {type(raw).__name__}")
    return {key: parse_class(key, entries) for key, entries in raw.items()}


def refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object; json itself would silently keep the last of two lists of one class."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise BadInputError(f"'{key}' occurs twice")
    return dict(pairs)


def parse_class(key: str, entries: object) -> npt.NDArray[np.float64]:
    """Check the points of one class; return their fractions, (N, 2)."""
    if not isinstance(entries, list):
        raise BadInputError(f"class '{key}': expected a list of points")
    points = [parse_point(f"{key}[{index}]", entry) for index, entry in enumerate(entries)]
    return np.array(points, np.float64).reshape(-1, 2)


def parse_point(where: str, entry: object) -> tuple[float, float]:
    """Check one {"x", "y"} with both coordinates from 0 to 1."""
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys():
        raise BadInputError(f'{where}: expected {{"x": .., "y": ..}}')
    for axis in ("x", "y"):
        value = entry[axis]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInputError(f"{where}.{axis}: expected a number, found {value!r}")
        if not 0 <= value <= 1:  # NaN too
            raise BadInputError(f"{where}.{axis} = {value}: outside [0, 1]")
    return float(entry["x"]), float(entry["y"])


def to_px(fractions: Fractions, tile: Tile) -> PointsPx:
    """Return the pixels of the tile's image that the points lie in."""
    size = tile.width_px, tile.height_px
    return {name: pixels_of(points_N2 * size, tile) for name, points_N2 in fractions.items()}


def decode_points(content: bytes, height_px: int, width_px: int) -> PointsPx:
    """Read what `encode_points` wrote: the pixels that its points lie in.

    Raises BadInputError with the reason.
    """
    return to_px(parse_lists(content), whole(height_px, width_px))


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
