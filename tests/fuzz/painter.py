"""Read annotations with small parsers of our own, and paint them by their definition.

A pixel is in a disc if its middle is no farther than the radius from the middle of the pixel that
the point lies in; in an area, if its middle is inside by the even-odd rule.
"""

import csv
import io
import json
import math
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.pictures import Pixels

CLASS = "tumor"
TYPES = ("annotation", "detection", "cell")
ALL_TYPES = (*TYPES, "tile", "tma_core", "root")  # another is taken for an annotation
FARTHEST_PX = 1e9
Ring = list[tuple[float, float]]
CLASSES = ("mitosis", "non_mitosis", "apoptosis", "tumor", "non_tumor", "lumen", "non_lumen")


class Painted(NamedTuple):
    """A mask, HW uint8 of 0 and 255, and how many objects of its class could not be painted."""

    mask_HW: Pixels
    num_lost: int


class Unclear(Exception):  # noqa: N818  (a verdict)
    """A file that no reader should take for an annotation."""


def painted(
    discs: list[tuple[float, float]], areas: list[list[Ring]], size: tuple[int, int], radius_px: int
) -> Pixels:
    """Paint points (in px from the corner) and polygons; return HW uint8, 0 and 255."""
    height, width = size
    y_HW, x_HW = np.mgrid[:height, :width]
    is_in_HW = np.zeros(size, bool)
    for rings in areas:
        is_in_HW |= inside(rings, x_HW + 0.5, y_HW + 0.5)
    for x, y in discs:
        column, row = min(math.floor(x), width - 1), min(math.floor(y), height - 1)
        is_in_HW |= (x_HW - column) ** 2 + (y_HW - row) ** 2 <= radius_px**2
    return is_in_HW.astype(np.uint8) * 255


def inside(rings: list[Ring], x_HW: Pixels, y_HW: Pixels) -> Pixels:
    """Return HW bool: which places are inside, by the even-odd rule."""
    is_in = np.zeros(x_HW.shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if y0 != y1:
                crosses = (np.minimum(y0, y1) <= y_HW) & (y_HW < np.maximum(y0, y1))
                is_in ^= crosses & (x_HW >= x0 + (y_HW - y0) * (x1 - x0) / (y1 - y0))
    return is_in


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of which no key occurs twice."""
    if len(dict(pairs)) < len(pairs):
        raise Unclear("a key occurs twice")
    return dict(pairs)


def brecahad(content: bytes, size: tuple[int, int], radius_px: int) -> Painted:
    """Paint BreCaHAD's JSON. Raises Unclear, ValueError or RecursionError."""
    listed = json.loads(content, object_pairs_hook=once)
    if not isinstance(listed, dict) or CLASS not in listed or not isinstance(listed[CLASS], list):
        raise Unclear("no list of the class")
    discs, num_lost = [], 0
    for entry in listed[CLASS]:
        if not isinstance(entry, dict) or not all(is_number(entry.get(key)) for key in "xy"):
            num_lost += 1
            continue
        if not all(0 <= entry[key] <= 1 for key in "xy"):
            raise Unclear(f"a point outside: {entry!r:.60}")
        discs.append((entry["x"] * size[1], entry["y"] * size[0]))
    return Painted(painted(discs, [], size, radius_px), num_lost)


def geojson(
    content: bytes, size: tuple[int, int], radius_px: int, types: tuple[str, ...] = TYPES
) -> Painted:
    """Paint QuPath's GeoJSON, objects of some types. Raises as brecahad()."""
    parsed = json.loads(content)
    if isinstance(parsed, dict):
        parsed = parsed.get("features", [parsed])
    if not isinstance(parsed, list):
        raise Unclear("no features")
    discs: list[tuple[float, float]] = []
    areas: list[list[Ring]] = []
    num_lost = 0
    while parsed:
        feature = parsed.pop()
        properties = feature.get("properties") if isinstance(feature, dict) else None
        if not isinstance(properties, dict):
            continue
        children = properties.get("childObjects", properties.get("children"))
        parsed += children if isinstance(children, list) else []
        kind = properties.get("objectType")
        if (kind if kind in ALL_TYPES else "annotation") in types and class_of(
            properties.get("classification")
        ) == CLASS:
            key = "nucleusGeometry" if feature.get("nucleusGeometry") else "geometry"
            num_lost += not take(feature.get(key), discs, areas)
    is_inside = [0 <= x <= size[1] and 0 <= y <= size[0] for x, y in discs]
    if not all(is_inside):
        raise Unclear("a point outside")
    return Painted(painted(discs, areas, size, radius_px), num_lost)


def class_of(given: Any) -> str:
    """Return the name of a classification, as QuPath shows it."""
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        return ""
    names = given.get("names") or [given.get("name")]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ""
    parent = class_of(given.get("parentClass"))
    return ": ".join([*([parent] if parent else []), *names])


def take(geometry: Any, discs: list[tuple[float, float]], areas: list[list[Ring]]) -> bool:
    """Add the points or areas of a geometry; return whether it has some."""
    before = len(discs) + len(areas)
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    given = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if kind in ("Point", "Polygon"):
        given = [given]
    if not isinstance(given, list):
        return False
    if kind in ("Point", "MultiPoint"):
        discs += [(p[0], p[1]) for p in given if is_position(p)]
    if kind in ("Polygon", "MultiPolygon"):
        for polygon in given:
            if isinstance(polygon, list) and all(
                isinstance(ring, list) and all(map(is_position, ring)) for ring in polygon
            ):
                areas.append([[(p[0], p[1]) for p in ring] for ring in polygon])
    return len(discs) + len(areas) > before


def is_position(given: Any) -> bool:
    """Whether a JSON value begins with x and y, as an image may have them."""
    if not isinstance(given, list) or len(given) < 2:
        return False
    return all(is_number(value) and abs(value) < FARTHEST_PX for value in given[:2])


def table(content: bytes, name: str, size: tuple[int, int], radius_px: int) -> Painted:
    """Paint the points that a table lists for an image. Raises as brecahad()."""
    text = decoded(content)
    lines = [line for line in text.splitlines() if line.strip(" ,;\t")]
    separator = next((sign for sign in ",;\t" if lines and sign in lines[0]), ",")
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    ]
    rows = [row for row in rows if any(row)]  # as spreadsheets write empty ones
    header = [cell.lower() for cell in rows[0]] if rows else []
    columns = [header.index(column) for column in ("file", "x", "y", "class")]
    discs, num_lost = [], 0
    for row in rows[1:]:
        if len(row) < len(header) or any(row[len(header) :]):  # blank ones too many do no harm
            raise Unclear(f"row {row}")
        file, x, y, kind = (row[column] for column in columns)
        file = file.rpartition(".")[0].strip() if "." in file else file  # blanks are no name's end
        if file.rpartition(".")[0] != name and file != name:
            if file.rpartition(".")[0] == "Case_2-01" or file == "Case_2-01":
                continue
            raise Unclear(f"no image {file!r}")
        if kind == CLASS:
            try:
                discs.append((number(x, separator), number(y, separator)))
            except ValueError:
                num_lost += 1
    if not all(0 <= x <= size[1] and 0 <= y <= size[0] for x, y in discs):
        raise Unclear("a point outside")
    return Painted(painted(discs, [], size, radius_px), num_lost)


def decoded(content: bytes) -> str:
    """Decode a table, as spreadsheets write it. Raises UnicodeDecodeError."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def number(text: str, separator: str) -> float:
    """Read a number, with a decimal comma where a comma separates nothing. Raises ValueError."""
    if separator != "," and "." not in text:
        text = text.replace(",", ".")
    if not text.isascii() or "_" in text or not abs(float(text)) < FARTHEST_PX:
        raise ValueError(text)
    return float(text)
