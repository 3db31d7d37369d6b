"""Read QuPath's annotations: one GeoJSON per image, with points and polygons in px from its corner.

A file is a FeatureCollection, a list of features or one feature, as QuPath's export and its scripts
write them (QuPathTypeAdapters.java of qupath-core). Objects may hold objects:

    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [10.5, 20.5]},
     "properties": {"objectType": "detection", "classification": {"name": "tumor"}}}

The class is the classification's name, or its names as QuPath shows them, "Tumor: Positive".
A cell counts as its nucleus. Objects that cannot be used are passed over and counted: those without
a class (tiles, cores, regions to work in), lines, outlines without area. All objects that count
must be on one plane, since a picture is one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from data_prep.annotations.findings import UnusableError
from data_prep.annotations.json_text import parse_json, read_content, without_collecting
from data_prep.annotations.outlines import Ring
from data_prep.annotations.reader import RULES, Rules
from data_prep.annotations.shapes import Collector, Shape, ShapeReader, Shapes, point, polygon
from data_prep.config import ALL_OBJECT_TYPES
from data_prep.raw import BadInputError, Field

PREDICTED = "nuclei"
"""The word that train.predict puts after the image's name: NAME_nuclei.geojson."""
MOST_OBJECTS = 5_000_000  # of a file: some minutes
GEOMETRIES = ("Point", "MultiPoint", "Polygon", "MultiPolygon")
ROOT = "root"  # the image itself, above all objects of a hierarchy
TYPES_BEFORE_0_3 = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": ROOT,
}
"""The id that QuPath gave all objects of a type."""
TYPE_KEYS = ("objectType", "object_type", "type")
PLANE = {"c": -1, "z": 0, "t": 0}
"""The plane of a geometry that names none."""
KEYS = (
    *("features", "geometry", "nucleusGeometry", "coordinates", "plane", "properties"),
    *("childObjects", "children", "classification", "name", "names", "parentClass", *TYPE_KEYS),
)
"""What is read of a file, and must not be there twice in one object."""
Position = tuple[float, float]
"""x and y in px from the image's corner."""


class QuPathReader(ShapeReader):
    """Reads GeoJSON, of the image NAME.tif as NAME.geojson or NAME_nuclei.geojson."""

    suffixes = (".geojson", ".json")
    words = (PREDICTED, "annotations", "annotation", "detections", "cells")
    has_areas = True

    def parse(self, field: Field) -> Shapes:
        """Read every point and polygon that has a class."""
        return parse_geojson(read_content(field.annotation), self.rules)


@without_collecting()
def parse_geojson(content: bytes, rules: Rules = RULES) -> Shapes:
    """Read the points and polygons of a file. Raises BadInputError where it cannot be trusted."""
    found = Collector()
    planes: dict[tuple[str, int], str] = {}
    for where, feature in objects_of(features_of(parse_json(content, KEYS))):
        with found.passing_over():
            properties = properties_of(where, feature)
            kind = object_type(feature, properties)
            if kind not in rules.object_types:
                if kind != ROOT:
                    found.passed_over[f"of type {kind}, which object_types= leaves out"] += 1
                continue
            name = class_name(where, properties.get("classification"))
            # a cell has two geometries
            key = "nucleusGeometry" if feature.get("nucleusGeometry") else "geometry"
            geometry = feature.get(key)
            makers = shapes_of(where, name, geometry, found.passed_over)
            plane = plane_of(where, geometry)
            num_before = len(found.shapes)
            for make in makers:
                with found.passing_over():
                    found.shapes.append(make())
            if len(found.shapes) > num_before:
                planes |= {(axis, at): where for axis, at in plane.items()}
    check_one_plane(planes)
    return found.collected(rules, "its list of features is empty, or of other types than count")


def check_one_plane(planes: dict[tuple[str, int], str]) -> None:
    """Raise BadInputError if objects are on several planes; `planes`: (axis, number) -> where."""
    for axis, name in (("z", "planes z"), ("t", "times t"), ("c", "channels c")):
        on_axis = {
            at: where
            for (its_axis, at), where in planes.items()
            if its_axis == axis and at != PLANE["c"]  # all channels
        }
        if len(on_axis) > 1:
            (one, _), (other, where) = sorted(on_axis.items())[:2]
            raise BadInputError(
                f"{where}: objects are on several {name} ({one} and {other}), but a picture is one"
                " plane: export the objects of that plane alone"
            )


def features_of(parsed: Any) -> Iterator[tuple[str, Any]]:
    """Return the features of a file, each with its position in the file."""
    if isinstance(parsed, dict) and parsed.get("type") == "Feature":
        return iter([("feature", parsed)])
    listed = parsed.get("features") if isinstance(parsed, dict) else parsed
    if not isinstance(listed, list):
        raise BadInputError(
            "invalid GeoJSON: expected a FeatureCollection, a list of features or a Feature"
        )
    return numbered("features", listed)


def numbered(where: str, listed: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a list, each with its position in the file."""
    return ((f"{where}[{number}]", each) for number, each in enumerate(listed))


def objects_of(features: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield every feature, each before the objects within it. Raises BadInputError if there are
    more than any slide has."""
    rest, num_objects = [features], 0
    while rest:
        where, feature = next(rest[-1], ("", None))
        if not where:
            rest.pop()
            continue
        num_objects += 1
        if num_objects > MOST_OBJECTS:
            raise BadInputError(f"{where}: more than {MOST_OBJECTS:,} objects; split the file")
        yield where, feature
        properties = feature.get("properties") if isinstance(feature, dict) else None
        if isinstance(properties, dict):
            key = "childObjects" if "childObjects" in properties else "children"
            if isinstance(children := properties.get(key), list):
                rest.append(numbered(f"{where}.{key}", children))


def properties_of(where: str, feature: Any) -> dict[str, Any]:
    """Return a feature's properties. Raises UnusableError."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        raise UnusableError(where, "without properties", "expected a Feature with properties")
    return properties


def object_type(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """Return an object's type; like QuPath, take one that is not named for an annotation."""
    named = next((properties[key] for key in TYPE_KEYS if key in properties), None)
    if named is None and isinstance(feature.get("id"), str):
        named = TYPES_BEFORE_0_3.get(feature["id"])
    return named if named in (*ALL_OBJECT_TYPES, ROOT) else "annotation"


def class_name(where: str, classification: Any) -> str:
    """Name a class as QuPath shows it. Raises UnusableError if there is none."""
    names: list[str] = []
    parent = classification
    while parent:  # before QuPath 0.4, a derived class named its parent
        names[:0] = own_names(where, parent)
        parent = parent.get("parentClass") if isinstance(parent, dict) else None
    if not names:  # null, or {} for 'unclassified'
        detail = "has no class (properties.classification.name)"
        raise UnusableError(where, "without a class", detail)
    return ": ".join(names)


def own_names(where: str, classification: Any) -> list[str]:
    """Return the names of a class without its parent's. Raises UnusableError."""
    if isinstance(classification, str):
        return [classification]
    if isinstance(classification, dict):
        names = classification.get("names") or [classification.get("name")]
        if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
            return names
    detail = 'classification: expected {"name": ..}'
    raise UnusableError(where, "classification without a name", detail)


def plane_of(where: str, geometry: Any) -> dict[str, int]:
    """Return the plane of a geometry. Raises UnusableError."""
    plane = geometry.get("plane") or {}
    if not isinstance(plane, dict) or any(type(plane.get(axis, 0)) is not int for axis in PLANE):
        raise UnusableError(where, "plane is not of whole numbers", f"plane {plane!r:.40}")
    return {axis: plane.get(axis, at) for axis, at in PLANE.items()}


def shapes_of(
    where: str, name: str, geometry: Any, passed_over: Counter[str]
) -> list[Callable[[], Shape]]:
    """Return what makes each point or polygon of a geometry; making one may raise UnusableError.

    Counts holes without area in `passed_over`. Raises UnusableError for another kind of geometry.
    """
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in GEOMETRIES:
        called = kind if isinstance(kind, str) and kind.isidentifier() else None
        detail = (
            f"geometry {called!r} of class {name!r} is neither points nor an area;"
            f" known: {', '.join(GEOMETRIES)}"
        )
        raise UnusableError(where, f"geometry is {called or 'missing'}"[:40], detail)
    coordinates = geometry.get("coordinates")
    several = entries(where, coordinates) if kind.startswith("Multi") else [coordinates]

    def make_point(entry: Any) -> Shape:
        return point(where, name, *position(where, entry))

    def make_polygon(entry: Any) -> Shape:
        shape = polygon(where, name, rings(where, entry))
        if num_flat := len(entry) - len(shape.rings):
            passed_over["hole without area"] += num_flat
        return shape

    make = make_point if kind.endswith("Point") else make_polygon
    return [partial(make, entry) for entry in several]


def rings(where: str, coordinates: Any) -> list[Ring]:
    """Check a polygon's outline and holes. Raises UnusableError."""
    outline, *holes = entries(where, coordinates)
    listed = [entries(where, outline)] + [entries(where, hole) for hole in holes if hole != []]
    return [corners(where, ring) for ring in listed]


def corners(where: str, ring: list[Any]) -> Ring:
    """Return the corners of a ring, (N, 2). Raises UnusableError."""
    if set(map(type, ring)) == {list} and {*map(len, ring)} == {2}:  # fast, for most rings
        numbers = [*chain.from_iterable(ring)]
        if set(map(type, numbers)) <= {int, float}:
            with suppress(OverflowError):
                return np.array(numbers, np.float64).reshape(-1, 2)
    return np.array([position(where, entry) for entry in ring], np.float64)


def entries(where: str, coordinates: Any) -> list[Any]:
    """Check that coordinates are a list, not empty. Raises UnusableError."""
    if not isinstance(coordinates, list) or not coordinates:
        detail = f"coordinates: expected a list, found {coordinates!r:.40}"
        raise UnusableError(where, "coordinates are missing", detail)
    return coordinates


def position(where: str, entry: Any) -> Position:
    """Check one [x, y]; ignore what follows, such as z. Raises UnusableError."""
    if not isinstance(entry, list) or len(entry) < 2:
        detail = f"coordinates: expected [x, y], found {entry!r:.40}"
        raise UnusableError(where, "coordinates that are not points [x, y]", detail)
    for value in entry[:2]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            detail = f"coordinates: expected a number, found {value!r:.40}"
            raise UnusableError(where, "coordinates that are not points [x, y]", detail)
    try:
        return float(entry[0]), float(entry[1])
    except OverflowError:
        raise UnusableError(where, "a coordinate is not a position in any image") from None
