"""BreCaHAD's annotations: a JSON of points a field.

The JSON is one flat object: a list of {"x", "y"} a class, x over the width and y over the height,
both from 0 to 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.command_line import UsageError
from data_prep.annotations.reader import Annotation, Reader
from data_prep.images.tiles import Tile, points_in
from data_prep.raw import BadInputError, Field, Points

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


class BreCaHADReader(Reader[Points]):
    """Reads the JSON; every class is one of CLASSES, and every asked one has a list."""

    suffixes = (".json",)
    lists_classes = True

    def check_classes(self, classes: Sequence[str]) -> list[str]:
        """The classes under their usual spelling. Raises UsageError for one that does not exist."""
        names = [SPELLINGS.get(name, name) for name in classes]
        for name in names:
            if name not in CLASSES:
                raise UsageError(f"classes: unknown '{name}'; known: {', '.join(CLASSES)}")
        if len(set(names)) < len(names):
            raise UsageError(f"classes=[{','.join(classes)}]: a class is named twice")
        return names

    def parse(self, field: Field) -> Points:
        """The points of every class."""
        return parse_points(field.annotation.read_bytes())

    def classes_in(self, parsed: Points, classes: Sequence[str]) -> list[str]:
        """The classes that have a list."""
        return list(parsed)

    def place(self, parsed: Points, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """The points as they are, or those of a tile. Raises BadInputError for a missing list."""
        check_listed(parsed, values)
        return Annotation(parsed if tile.is_whole else points_in(parsed, tile))


def parse_points(content: bytes) -> Points:
    """Points of every class in an annotation file. Raises BadInputError with the reason."""
    try:
        # json accepts NaN and Infinity; they are refused below with the point's name
        raw = json.loads(content, object_pairs_hook=refuse_repeated)
    except BadInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadInputError(f"invalid JSON: expected one object, found {type(raw).__name__}")
    points: Points = {}
    for key, entries in raw.items():
        name = SPELLINGS.get(key, key)
        if name not in CLASSES:
            known = ", ".join([*CLASSES, *SPELLINGS])
            raise BadInputError(f"unknown class '{key}'; known: {known}")
        if name in points:
            raise BadInputError(f"class '{name}' stands twice (as '{key}' too)")
        points[name] = parse_class(key, entries)
    if not any(map(len, points.values())):
        raise BadInputError("annotates nothing: every class list is empty")
    return points


def refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; json itself would silently keep the last of two lists of one class."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise BadInputError(f"'{key}' stands twice")
    return dict(pairs)


def parse_class(key: str, entries: object) -> npt.NDArray[np.float64]:
    """The points of one class, (N, 2)."""
    if not isinstance(entries, list):
        raise BadInputError(f"class '{key}': expected a list of points")
    points = [parse_point(f"{key}[{index}]", entry) for index, entry in enumerate(entries)]
    return np.array(points, np.float64).reshape(-1, 2)


def parse_point(where: str, entry: object) -> tuple[float, float]:
    """One {"x", "y"} with both coordinates from 0 to 1."""
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys():
        raise BadInputError(f'{where}: expected {{"x": .., "y": ..}}')
    for axis in ("x", "y"):
        value = entry[axis]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInputError(f"{where}.{axis}: expected a number, found {value!r}")
        if not 0 <= value <= 1:  # NaN too
            raise BadInputError(f"{where}.{axis} = {value}: outside [0, 1]")
    return float(entry["x"]), float(entry["y"])


def check_listed(points: Points, classes: Iterable[str]) -> None:
    """Raises BadInputError where an asked class has no list."""
    for name in classes:
        if name not in points:
            raise BadInputError(f"has no list for class '{name}' (an empty one is [])")


def encode_points(points: Points) -> bytes:
    """Write points as `parse_points` reads them."""
    listed = {
        name: [{"x": x, "y": y} for x, y in points_N2.tolist()]
        for name, points_N2 in points.items()
    }
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return f"{text}\n".encode()
