"""GeoJSON in every form that QuPath writes, and every mistake in it."""

import json
from typing import Any

import numpy as np
import pytest

from data_prep.annotations.qupath import parse_geojson
from data_prep.raw import BadInputError

SQUARE = [[10, 20], [14, 20], [14, 22], [10, 22], [10, 20]]
HOLE = [[11, 20.5], [12, 20.5], [12, 21.5], [11, 20.5]]
AREA = {"type": "Polygon", "coordinates": [SQUARE]}
POINT = {"type": "Point", "coordinates": [10.5, 20.25]}


def feature(geometry: Any, classification: Any = None, **properties: Any) -> dict[str, Any]:
    """As QuPath 0.4 and later write it."""
    properties = {"objectType": "annotation", **properties}
    if classification is not None:
        properties["classification"] = classification
    return {
        "type": "Feature",
        "id": "2bd6ad25-7d5c-4ad2-a8f5-26b3a9b6a4a6",
        "geometry": geometry,
        "properties": properties,
    }


def tumor(geometry: Any, **properties: Any) -> dict[str, Any]:
    return feature(geometry, {"name": "tumor", "color": [200, 0, 0]}, **properties)


def parse(content: Any) -> list[tuple[str, list[list[list[float]]]]]:
    """(class, rings) of each shape."""
    shapes = parse_geojson(json.dumps(content).encode()).shapes
    return [(shape.name, [ring.tolist() for ring in shape.rings]) for shape in shapes]


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [tumor(POINT)]},
        [tumor(POINT)],  # GsonTools.toJson(getAnnotationObjects())
        tumor(POINT),  # of a single object
    ],
    ids=["collection", "list", "feature"],
)
def test_a_file_is_a_collection_a_list_or_a_feature(content: Any) -> None:
    assert parse(content) == [("tumor", [[[10.5, 20.25]]])]


def test_geometries_are_points_and_polygons_each_by_itself() -> None:
    geometries = [
        {"type": "MultiPoint", "coordinates": [[1, 2], [3.5, 4, 0]]},
        {"type": "Polygon", "coordinates": [SQUARE, HOLE], "isEllipse": True},
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE, HOLE]]},
    ]
    assert parse([tumor(geometry) for geometry in geometries]) == [
        ("tumor", [[[1, 2]]]),
        ("tumor", [[[3.5, 4]]]),
        ("tumor", [SQUARE, HOLE]),
        ("tumor", [SQUARE]),
        ("tumor", [SQUARE, HOLE]),
    ]


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [200, 0, 0]}, "Tumor: Positive"),
        ({"name": "Stroma", "colorRGB": -6895466}, "Stroma"),  # QuPath 0.2 and 0.3
        ({"name": "Positive", "parentClass": {"name": "Tumor"}}, "Tumor: Positive"),
        ("Immune cells", "Immune cells"),
    ],
)
def test_a_class_is_called_as_qupath_shows_it(classification: Any, name: str) -> None:
    assert parse([feature(POINT, classification)]) == [(name, [[[10.5, 20.25]]])]


@pytest.mark.parametrize(
    "unclassified",
    [
        feature(AREA),
        feature(AREA, {}),  # QuPath's 'no class'
        feature(AREA, objectType="tile"),
        feature(None, objectType="root"),
        feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, name="a measure"),
    ],
)
def test_what_has_no_class_is_passed_over(unclassified: dict[str, Any]) -> None:
    assert parse([unclassified, tumor(POINT)]) == [("tumor", [[[10.5, 20.25]]])]


def test_of_a_cell_the_nucleus_counts() -> None:
    cell = tumor({"type": "Polygon", "coordinates": [[[0, 0], [30, 0], [30, 30], [0, 0]]]})
    cell["properties"]["objectType"] = "cell"
    assert parse([cell | {"nucleusGeometry": AREA}]) == [("tumor", [SQUARE])]
    assert len(parse([cell | {"nucleusGeometry": None}])) == 1


def test_objects_within_objects_are_found() -> None:
    """QuPath's hierarchy: a region to work in holds cells."""
    region = feature(AREA, childObjects=[tumor(POINT), feature(AREA, childObjects=[tumor(AREA)])])
    assert parse([region]) == [("tumor", [[[10.5, 20.25]]]), ("tumor", [SQUARE])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "invalid JSON"),
        (b'{"type": "FeatureCollection", "feat', "invalid JSON"),
        (b"\xff\xfe\x00", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"7", "expected a FeatureCollection, a list of features or a Feature"),
        (b'{"tumor": [{"x": 0.5, "y": 0.5}]}', "expected a FeatureCollection"),
        (b"[]", "annotates nothing: no feature has a class"),
        (b"[5]", r"features\[0\]: expected a Feature with properties"),
        ([feature(AREA)], "annotates nothing: no feature has a class"),
        ([tumor(POINT), feature(POINT, 7)], r"features\[1\]: classification: expected"),
        (
            [feature(POINT, {"name": "\ud800"})],
            r"features\[0\]: class '\\ud800': a name holds unprintable",
        ),
        ([feature(POINT, {"names": []})], r"features\[0\]: classification: expected"),
        ([tumor(POINT), tumor(None)], r"features\[1\]: geometry None of class 'tumor'"),
        (
            [tumor({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})],
            r"features\[0\]: geometry 'LineString' of class 'tumor' is neither .* known: Point",
        ),
        ([tumor({"type": "Point"})], r"features\[0\]: coordinates: expected \[x, y\], found None"),
        ([tumor({"type": "Point", "coordinates": [1]})], r"expected \[x, y\], found \[1\]"),
        ([tumor({"type": "Point", "coordinates": ["1", 2]})], "expected a number, found '1'"),
        ([tumor({"type": "Point", "coordinates": [True, 2]})], "expected a number, found True"),
        (
            [tumor({"type": "Point", "coordinates": [float("nan"), 2]})],
            "not a position in any image",
        ),
        ([tumor({"type": "Point", "coordinates": [-1e300, 2]})], "not a position in any image"),
        ([tumor({"type": "Point", "coordinates": [10**400, 2]})], "not a position in any image"),
        ([tumor({"type": "Polygon", "coordinates": []})], r"coordinates: expected a list, found"),
        ([tumor({"type": "Polygon", "coordinates": SQUARE})], "expected .* found"),
        ([tumor({"type": "Polygon", "coordinates": [SQUARE[:2]]})], "encloses no area"),
        (
            [feature(AREA, childObjects=[tumor(POINT), tumor({"type": "Point"})])],
            r"features\[0\]\.childObjects\[1\]: coordinates",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_refused_with_its_place(content: Any, reason: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(BadInputError, match=reason):
        parse_geojson(raw)


def test_whatever_part_of_a_file_is_something_else_the_reason_is_said() -> None:
    """Each value in turn replaced by others: what is not refused is still points and polygons."""
    rng = np.random.default_rng(0)
    cell = tumor(AREA, childObjects=[tumor(POINT)]) | {"nucleusGeometry": AREA}
    whole = {"type": "FeatureCollection", "features": [cell, tumor(POINT)]}
    num_refused = 0
    for path in paths(whole):
        for other in (None, 7, -1.5, "text", [], {}, [[1]], {"name": 3}, True, 1e308):
            content = json.loads(json.dumps(whole))
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = other
            try:
                parse_geojson(json.dumps(content).encode())
            except BadInputError:
                num_refused += 1
    assert num_refused > 100
    text = json.dumps(whole).encode()
    for _ in range(300):  # and bytes
        damaged = bytearray(text)
        damaged[rng.integers(len(text))] = rng.integers(256)
        try:
            parse_geojson(bytes(damaged))
        except BadInputError:
            num_refused += 1


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to each part of a JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in inner:
        found.append((*above, key))
        if isinstance(entry, dict | list):
            found += paths(entry, (*above, key))
    return found
