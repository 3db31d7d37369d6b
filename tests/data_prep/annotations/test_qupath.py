"""GeoJSON in every form that QuPath writes, and every mistake in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.annotations import json_text, qupath
from data_prep.annotations.findings import Findings
from data_prep.annotations.qupath import QuPathReader, parse_geojson
from data_prep.annotations.reader import Rules
from data_prep.images.tiles import whole
from data_prep.raw import BadInputError, Field

SQUARE = [[10, 20], [14, 20], [14, 22], [10, 22], [10, 20]]
SQUARES = [[[x, y + i] for x, y in SQUARE] for i in range(3)]
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
        {"type": "MultiPolygon", "coordinates": [[SQUARES[1]], [SQUARES[2], HOLE]]},
    ]
    assert parse([tumor(geometry) for geometry in geometries]) == [
        ("tumor", [[[1, 2]]]),
        ("tumor", [[[3.5, 4]]]),
        ("tumor", [SQUARE, HOLE]),
        ("tumor", [SQUARES[1]]),
        ("tumor", [SQUARES[2], HOLE]),
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
        (b"[]", r"annotates nothing: its list of features is empty.*; empty=accept takes"),
        (b"[5]", r"features\[0\]: expected a Feature with properties"),
        ([feature(AREA)], r"features\[0\]: has no class .* \(and no other object can be used\)"),
        ([feature(POINT, 7)], r"features\[0\]: classification: expected"),
        (b'[{"properties": {"name": 1, "name": 2}}]', "'name' occurs twice"),
        (b'{"features": [], "features": []}', "'features' occurs twice"),
        (b"[1" + b"0" * 5000 + b"]", "invalid JSON"),
        (
            [feature(POINT, {"name": "\ud800"})],
            r"features\[0\]: class '\\ud800': a name holds unprintable",
        ),
        ([feature(POINT, {"names": []})], r"features\[0\]: classification: expected"),
        ([tumor(None)], r"features\[0\]: geometry None of class 'tumor'"),
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
            [tumor(None, childObjects=[7, tumor({"type": "Point"})])],
            r"features\[0\]: geometry None",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_refused_with_its_place(content: Any, reason: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(BadInputError, match=reason):
        parse_geojson(raw)


READER = QuPathReader(Rules(empty="accept"))


def findings(content: Any, rules: Rules | None = None) -> Findings:
    parsed = parse_geojson(json.dumps(content).encode(), rules or Rules())
    return QuPathReader().findings(parsed, whole(100, 100))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (tumor({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}), "geometry is LineString"),
        (tumor({"type": "GeometryCollection", "geometries": [AREA]}), "geometry is Geometry"),
        (tumor(None), "geometry is missing"),
        (tumor({}), "geometry is missing"),
        (tumor({"type": "Polygon", "coordinates": []}), "coordinates are missing"),
        (tumor({"type": "Polygon", "coordinates": [[]]}), "coordinates are missing"),
        (tumor({"type": "Polygon", "coordinates": [SQUARE[:2]]}), "encloses no area"),
        (tumor({"type": "Point", "coordinates": [float("nan"), 1]}), "a coordinate is not a posit"),
        (tumor({"type": "Point", "coordinates": [1e999, 1]}), "a coordinate is not a position"),
        (tumor({"type": "Point", "coordinates": [10**400, 1]}), "a coordinate is not a position"),
        (tumor({"type": "Point", "coordinates": ["1", 1]}), "coordinates that are not points"),
        (tumor({**POINT, "plane": {"z": "first"}}), "plane is not of whole numbers"),
        (feature(AREA), "without a class"),
        (feature(POINT, 7), "classification without a name"),
        (feature(POINT, "a\x1b[2J"), "class with unprintable characters"),
        (feature(POINT, "\ud800"), "class with unprintable characters"),
        ({"type": "Feature", "geometry": AREA, "properties": None}, "without properties"),
        ({"type": "Feature", "geometry": AREA}, "without properties"),
        (None, "without properties"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_one_object_that_cannot_be_used_is_passed_over_and_counted(other: Any, reason: str) -> None:
    content = [tumor(AREA), other, tumor(POINT), other]
    assert parse(content) == [("tumor", [SQUARE]), ("tumor", [[[10.5, 20.25]]])]
    found = findings(content)
    ((said, number),) = found.passed_over.items()
    assert said.startswith(reason)
    assert (number, found.classes) == (2, {"tumor": 2})


def test_of_several_polygons_the_bad_one_is_passed_over() -> None:
    content = [tumor({"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE[:2]]]})]
    assert parse(content) == [("tumor", [SQUARE])]
    assert findings(content).passed_over == {"encloses no area": 1}


def test_a_hole_without_area_costs_only_the_hole() -> None:
    flat = [[11, 21], [12, 21], [11, 21]]
    content = [tumor({"type": "Polygon", "coordinates": [SQUARE, flat, HOLE, []]})]
    assert parse(content) == [("tumor", [SQUARE, HOLE])]
    assert findings(content).passed_over == {"hole without area": 2}


def test_an_object_flat_and_as_a_child_counts_once() -> None:
    found = findings([feature(AREA, childObjects=[tumor(POINT)]), tumor(POINT)])
    assert found == Findings({"tumor": 1}, {"without a class": 1}, duplicates=1)


def test_types_of_objects_can_be_chosen() -> None:
    """As QuPath 0.2, 0.3 and 0.4 write them; what names no type is an annotation, as in QuPath."""
    at = [tumor({"type": "Point", "coordinates": [x, 1]}) for x in range(8)]
    at[0]["properties"]["objectType"] = "detection"
    at[1]["properties"]["objectType"] = "cell"
    at[2]["properties"]["objectType"] = "tile"
    at[4]["properties"] = {"object_type": "cell", "classification": {"name": "tumor"}}
    del at[5]["properties"]["objectType"]
    at[5]["id"] = "PathDetectionObject"
    del at[6]["properties"]["objectType"]
    at[7]["properties"]["objectType"] = "root"

    def taken(*types: str) -> list[float]:
        shapes = parse_geojson(json.dumps(at).encode(), Rules(types)).shapes
        return [shape.rings[0][0, 0] for shape in shapes]

    assert taken("annotation", "detection", "cell") == [0, 1, 3, 4, 5, 6]
    assert taken("detection", "cell") == [0, 1, 4, 5]
    assert taken("annotation") == [3, 6]
    assert taken("tile") == [2]
    left_out = "of type annotation, which object_types= leaves out"
    assert findings(at, Rules(("detection", "cell", "tile"))).passed_over == {left_out: 2}


def test_nothing_here_can_be_said() -> None:
    """By no feature, or none of the types asked for; not by objects that cannot be used."""
    for content in ([], {"type": "FeatureCollection", "features": []}):
        assert findings(content, Rules(empty="accept")) == Findings()
    cells_only = Rules(("cell",), empty="accept")
    assert findings([tumor(AREA)], cells_only).classes == {}
    with pytest.raises(BadInputError, match="has no class"):
        findings([feature(AREA)], Rules(empty="accept"))


@pytest.mark.parametrize(
    ("axis", "named"), [("z", "several planes z"), ("t", "several times t"), ("c", "several chan")]
)
def test_objects_on_several_planes_are_refused(axis: str, named: str) -> None:
    """The default plane, which is not written, is one too; a plane that is unusable is none."""
    one, other = (
        tumor({"type": "Point", "coordinates": [at, 1], "plane": {"c": 0, "z": 0, axis: at}})
        for at in (0, 1)
    )
    with pytest.raises(BadInputError, match=rf"features\[1\]: objects are on {named}"):
        parse([one, other])
    assert len(parse([other, {**tumor(None)}, feature(POINT)])) == 1


def test_an_object_on_all_channels_is_on_any() -> None:
    """QuPath's -1 is all channels."""
    first = tumor({"type": "Point", "coordinates": [1, 1], "plane": {"c": 0, "z": 0, "t": 0}})
    assert len(parse([tumor(POINT), first])) == 2


def test_whatever_part_of_a_file_is_something_else_the_reason_is_said() -> None:
    """Each value in turn replaced by others: what is not refused is still points and polygons."""
    rng = np.random.default_rng(0)
    cell = tumor(AREA, childObjects=[tumor(POINT)]) | {"nucleusGeometry": AREA}
    plane = {"c": -1, "z": 0, "t": 0}
    multi = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [SQUARE]], "plane": plane}
    other = feature(multi, {"name": "Positive", "parentClass": {"name": "Tumor"}})
    parts = {"type": "FeatureCollection", "features": [cell, tumor(POINT), other]}
    num_refused = num_passed_over = 0

    def read(content: bytes) -> None:
        nonlocal num_refused, num_passed_over
        try:
            parsed = parse_geojson(content, READER.rules)
            READER.annotation_in(parsed, whole(100, 100), {"tumor": 1})
            num_passed_over += bool(READER.findings(parsed, whole(100, 100)).passed_over)
        except BadInputError:
            num_refused += 1

    values = [None, 7, -1.5, "text", [], {}, [[1]], {"name": 3}, True, 1e308, float("nan")]
    values += [10**400, "\x00\ud800", [[[[]]]]]
    for path in paths(parts):
        for number in rng.permutation(len(values))[:5].tolist():
            value = values[number]
            content = json.loads(json.dumps(parts))
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            read(json.dumps(content).encode())
    assert num_refused > 3
    assert num_passed_over > 100
    text = json.dumps(parts).encode()
    for _ in range(300):  # and bytes
        damaged = bytearray(text)
        damaged[rng.integers(len(text))] = rng.integers(256)
        read(bytes(damaged))


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to each part of a JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in inner:
        found.append((*above, key))
        if isinstance(entry, dict | list):
            found += paths(entry, (*above, key))
    return found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b\x08\x00", "is compressed; unpack it"),
        ('["Tum\u00f6r"]'.encode("latin-1"), "is not UTF-8; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        parse_geojson(content)


def test_files_beyond_any_slide_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qupath, "MOST_OBJECTS", 3)
    with pytest.raises(BadInputError, match=r"features\[3\]: more than 3 objects; split the file"):
        parse([tumor(POINT)] * 4)
    monkeypatch.setattr(json_text, "MOST_BYTES", 10)
    path = tmp_path / "a.geojson"
    path.write_bytes(b"[" + b" " * 9 + b"]")
    with pytest.raises(BadInputError, match="has 11 bytes, at most 10; split it"):
        QuPathReader().parse(Field("a", "a", path, path))
