"""Read QuPath's annotations: one GeoJSON per image, with points and polygons in px from its corner.

A file is a FeatureCollection, a list of features or one feature, as QuPath's export and its scripts
write them (QuPathTypeAdapters.java of qupath-core). Objects may hold objects:

    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [10.5, 20.5]},
     "properties": {"objectType": "detection", "classification": {"name": "tumor"}}}

The class is the classification's name, or its names as QuPath shows them, "Tumor: Positive".
Objects without a class (tiles, cores, regions to work in) are skipped. A cell counts as its
nucleus.
"""

import json
from collections.abc import Iterator
from typing import Any

from data_prep.annotations.shapes import Shape, ShapeReader, Shapes, point, polygon
from data_prep.raw import BadInputError, Field

PREDICTED = "nuclei"
"""The word that train.predict puts after the image's name: NAME_nuclei.geojson."""
GEOMETRIES = ("Point", "MultiPoint", "Polygon", "MultiPolygon")
Position = tuple[float, float]
"""x and y in px from the image's corner."""


class QuPathReader(ShapeReader):
    """Reads GeoJSON, of the image NAME.tif as NAME.geojson or NAME_nuclei.geojson."""

    suffixes = (".geojson", ".json")
    words = (PREDICTED, "annotations", "annotation", "detections", "cells")
    has_areas = True

    def parse(self, field: Field) -> Shapes:
        """Read every point and polygon that has a class."""
        return Shapes(parse_geojson(field.annotation.read_bytes()))


def parse_geojson(content: bytes) -> list[Shape]:
    """Read the points and polygons of a file. Raises BadInputError with the bad feature."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
    features = features_of(parsed)
    try:
        shapes = [shape for where, feature in features for shape in shapes_of(where, feature)]
    except RecursionError:
        raise BadInputError("invalid GeoJSON: objects within objects without end") from None
    if not shapes:
        raise BadInputError(
            "annotates nothing: no feature has a class (properties.classification.name)"
        )
    return shapes


def features_of(parsed: Any) -> list[tuple[str, Any]]:
    """List the features of a file, each with its position in the file."""
    if isinstance(parsed, dict) and parsed.get("type") == "Feature":
        return [("feature", parsed)]
    listed = parsed.get("features") if isinstance(parsed, dict) else parsed
    if not isinstance(listed, list):
        raise BadInputError(
            "invalid GeoJSON: expected a FeatureCollection, a list of features or a Feature"
        )
    return [(f"features[{number}]", feature) for number, feature in enumerate(listed)]


def shapes_of(where: str, feature: Any) -> Iterator[Shape]:
    """Yield the shapes of a feature and of the objects within it."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        raise BadInputError(f"{where}: expected a Feature with properties")
    if name := class_name(where, properties.get("classification")):
        if not name.isprintable():
            raise BadInputError(f"{where}: class {name!a}: a name holds unprintable characters")
        # a cell has two geometries
        key = "nucleusGeometry" if feature.get("nucleusGeometry") else "geometry"
        yield from shapes_of_geometry(where, name, feature.get(key))
    children = properties.get("childObjects")
    for number, child in enumerate(children if isinstance(children, list) else []):
        yield from shapes_of(f"{where}.childObjects[{number}]", child)


def class_name(where: str, classification: Any) -> str:
    """Name a class as QuPath shows it; '' if there is none."""
    if not classification:  # null, or {} for 'unclassified'
        return ""
    if isinstance(classification, str):
        return classification
    if isinstance(classification, dict):
        names = classification.get("names") or [classification.get("name")]
        if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
            # before QuPath 0.4, a derived class named its parent
            parent = class_name(where, classification.get("parentClass"))
            return ": ".join([parent, *names] if parent else names)
    raise BadInputError(f'{where}: classification: expected {{"name": ..}}')


def shapes_of_geometry(where: str, name: str, geometry: Any) -> list[Shape]:
    """Make the points or polygons of a geometry. Raises BadInputError for another kind."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in GEOMETRIES:
        raise BadInputError(
            f"{where}: geometry {kind!r} of class '{name}' is neither points nor an area;"
            f" known: {', '.join(GEOMETRIES)}"
        )
    coordinates = geometry.get("coordinates")
    several = entries(where, coordinates) if kind.startswith("Multi") else [coordinates]
    if kind.endswith("Point"):
        return [point(where, name, *position(where, entry)) for entry in several]
    return [polygon(where, name, rings(where, entry)) for entry in several]


def rings(where: str, coordinates: Any) -> list[list[Position]]:
    """Check a polygon's outline and holes."""
    return [
        [position(where, entry) for entry in entries(where, ring)]
        for ring in entries(where, coordinates)
    ]


def entries(where: str, coordinates: Any) -> list[Any]:
    """Check that coordinates are a list, not empty."""
    if not isinstance(coordinates, list) or not coordinates:
        raise BadInputError(f"{where}: coordinates: expected a list, found {coordinates!r:.40}")
    return coordinates


def position(where: str, entry: Any) -> Position:
    """Check one [x, y]; ignore what follows, such as z."""
    if not isinstance(entry, list) or len(entry) < 2:
        raise BadInputError(f"{where}: coordinates: expected [x, y], found {entry!r:.40}")
    for value in entry[:2]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInputError(f"{where}: coordinates: expected a number, found {value!r:.40}")
    try:
        return float(entry[0]), float(entry[1])
    except OverflowError:
        raise BadInputError(f"{where}: a coordinate is not a position in any image") from None
