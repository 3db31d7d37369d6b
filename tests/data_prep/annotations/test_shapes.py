"""Polygons: filled as matplotlib's paths have it, their middles, their tiles."""

from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from data_prep.annotations import outlines
from data_prep.annotations.findings import Findings
from data_prep.annotations.outlines import fill
from data_prep.annotations.shapes import Shape, ShapeReader, Shapes, point, polygon
from data_prep.images.arrays import Box
from data_prep.images.tiles import Tile, whole
from data_prep.raw import BadInputError
from tests.points import as_lists

HEIGHT, WIDTH = 90, 120
Ring = list[tuple[float, float]]


class Given(ShapeReader):
    """A reader whose shapes are given."""

    def parse(self, field: object) -> Shapes:
        raise NotImplementedError


def drawn(shapes: list[Shape], tile: Tile, values: dict[str, int]) -> np.ndarray:
    areas_HW = Given().annotation_in(Shapes(shapes), tile, values).areas_HW
    return np.zeros((tile.box.height, tile.box.width)) if areas_HW is None else areas_HW


def blob(rng: np.random.Generator, x: float, y: float, radius: float) -> Ring:
    """A wavy outline, not convex, with corners anywhere between pixels."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = radius * (1 + 0.3 * rng.uniform(-1, 1, 24))
    return list(zip(x + reach * np.cos(angle), y + reach * np.sin(angle), strict=True))


def middle(shape: Shape) -> np.ndarray:
    return Shapes([shape]).middles[0]


def is_in(ring: Ring, height: int = HEIGHT, width: int = WIDTH, fine: int = 1) -> np.ndarray:
    """By matplotlib: the pixels (or parts of 1 / fine px) whose middle is within an outline."""
    y, x = (np.mgrid[: height * fine, : width * fine] + 0.5) / fine
    middles = np.column_stack([x.ravel(), y.ravel()])
    return Outline(np.array([*ring, ring[0]])).contains_points(middles).reshape(x.shape)


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_is_the_pixels_whose_middle_it_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ring = blob(rng, rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), 25)  # also across the border
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    fill(mask_HW, [[np.array(ring)]], 7)
    assert np.array_equal(mask_HW, np.where(is_in(ring), 7, 0))


def test_pixels_on_whole_coordinates_are_counted_once() -> None:
    """A QuPath rectangle from (10, 20) to (14, 22) is 4 x 2 pixels; its neighbour's begin there."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    fill(mask_HW, [[np.array([[10, 20], [14, 20], [14, 22], [10, 22], [10, 20]], float)]], 1)
    expected = np.zeros_like(mask_HW)
    expected[20:22, 10:14] = 1
    assert np.array_equal(mask_HW, expected)


def test_holes_are_left_out_and_an_island_in_one_is_not() -> None:
    rng = np.random.default_rng(1)
    outer, hole, island = (blob(rng, 60, 45, radius) for radius in (35, 18, 6))
    shapes = [polygon("a", "tumor", [outer, hole]), polygon("b", "tumor", [island])]
    expected = (is_in(outer) & ~is_in(hole)) | is_in(island)
    assert np.array_equal(drawn(shapes, whole(HEIGHT, WIDTH), {"tumor": 255}) > 0, expected)


def test_holes_outside_the_outline_and_holes_that_overlap_add_nothing() -> None:
    """A hole is never foreground: 10 x 10 px without 4 x 4 and 4 x 4 that share 2 x 2."""

    def square(low: float, high: float) -> Ring:
        return [(low, low), (high, low), (high, high), (low, high)]

    rings = [square(20, 30), square(22, 26), square(24, 28), square(40, 45), square(29, 33)]
    found = drawn([polygon("a", "t", rings)], whole(HEIGHT, WIDTH), {"t": 1})
    assert found.sum() == 100 - (16 + 16 - 4) - 1
    assert not found[30:].any()


def test_many_outlines_are_filled_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups, also those that cross, and rows that are long."""
    monkeypatch.setattr(outlines, "CORNERS_AT_ONCE", 70)
    rng = np.random.default_rng(8)
    rings = [blob(rng, *rng.uniform(-5, 100, 2), rng.uniform(3, 45)) for _ in range(30)]
    eight = [(10.0, 10.0), (110.0, 80.2), (110.0, 10.0), (10.0, 80.0)]
    together_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    fill(together_HW, [[np.array(ring)] for ring in (*rings, eight)], 3)
    assert np.array_equal(together_HW == 3, np.any([is_in(ring) for ring in rings], 0) | lobes())


def lobes() -> np.ndarray:
    """The two triangles of that figure of eight."""
    x = 10 + 100 / (1 + 70.2 / 70)
    y = 10 + 70.2 * (x - 10) / 100
    left = [(10.0, 10.0), (x, y), (10.0, 80.0)]
    return is_in(left) | is_in([(110.0, 80.2), (x, y), (110.0, 10.0)])


def test_an_outline_that_would_take_minutes_to_fill_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlines, "MOST_CROSSINGS", 100)
    zigzag = [(float(x), float(x % 2 * 60)) for x in range(5)]  # four edges across 60 rows
    with pytest.raises(BadInputError, match="cross more than 100 rows: too many to fill"):
        drawn([polygon("a", "t", [zigzag])], whole(HEIGHT, WIDTH), {"t": 1})


@pytest.mark.parametrize("order", [["tumor", "lumen"], ["lumen", "tumor"]])
def test_later_classes_lie_on_top_whatever_their_order_in_the_file(order: list[str]) -> None:
    rng = np.random.default_rng(2)
    rings = {name: blob(rng, x, 45, 25) for name, x in (("tumor", 50.0), ("lumen", 70.0))}
    shapes = [polygon(name, name, [ring]) for name, ring in rings.items()]
    shapes.append(polygon("x", "not asked for", [blob(rng, 60, 45, 30)]))
    below, above = (is_in(rings[name]) for name in order)
    found = drawn(shapes, whole(HEIGHT, WIDTH), dict(zip(order, (1, 2), strict=True)))
    assert (below & above).any()
    assert np.array_equal(found, np.where(above, 2, np.where(below, 1, 0)))


def test_a_tile_is_a_part_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    shapes = [polygon(str(n), "tumor", [blob(rng, *rng.uniform(20, 70, 2), 12)]) for n in range(6)]
    shapes.append(polygon("all around", "tumor", [[(0, 0), (120, 0), (120, 90), (0, 90)], BORDER]))
    all_HW = drawn(shapes, whole(HEIGHT, WIDTH), {"tumor": 1})
    assert 0 < all_HW.mean() < 1
    for box in (Box(0, 0, 50, 40), Box(31, 17, 64, 33), Box(100, 80, 20, 10)):
        part = drawn(shapes, Tile(box, HEIGHT, WIDTH), {"tumor": 1})
        expected = all_HW[box.y : box.y + box.height, box.x : box.x + box.width]
        assert np.array_equal(part, expected)


BORDER = [(10.5, 5.0), (110.0, 10.0), (105.0, 80.0), (15.0, 85.0)]


def test_middles_are_centres_of_gravity() -> None:
    rng = np.random.default_rng(4)
    outer, hole = blob(rng, 60, 45, 35), blob(rng, 70, 40, 12)
    inside = is_in(outer, fine=8) & ~is_in(hole, fine=8)
    y, x = np.nonzero(inside)
    expected = (x.mean() + 0.5) / 8, (y.mean() + 0.5) / 8
    for rings in ([outer, hole], [outer[::-1], hole], [[*outer, outer[0]], hole[::-1]]):
        assert middle(polygon("a", "tumor", rings)) == pytest.approx(expected, abs=0.02)
    assert middle(point("a", "tumor", 3.25, 4.5)).tolist() == [3.25, 4.5]


def test_the_middle_of_an_outline_that_crosses_itself_is_within_its_bounds() -> None:
    """The lobes of this figure of eight nearly cancel: its centre of gravity is at x = 690."""
    eight = [(10.0, 10.0), (30.0, 30.2), (30.0, 10.0), (10.0, 30.0)]
    assert middle(polygon("a", "tumor", [eight])) == pytest.approx((20, 20.1))


def test_an_area_is_a_nucleus_at_its_middle_in_one_tile() -> None:
    shape = polygon("a", "tumor", [[(48, 10), (56, 10), (56, 20), (48, 20)]])  # middle (52, 15)
    left, right = (Tile(Box(x, 0, 50, 90), HEIGHT, WIDTH) for x in (0, 50))
    found = [Given().annotation_in(Shapes([shape]), tile, {"tumor": 1}) for tile in (left, right)]
    assert [(each.areas_HW == 1).sum() for each in found] == [20, 60]
    assert as_lists(found[0].nuclei) == {"tumor": []}
    assert as_lists(found[1].nuclei) == {"tumor": [(2, 15)]}
    assert as_lists(found[1].points) == {"tumor": []}, "no disc is drawn on an area"


def test_a_point_is_the_pixel_that_it_lies_in() -> None:
    """The far edge belongs to the last pixel."""
    corners = [(29.0, 58.0), (29.99, 0.0), (100.0, 90.0)]
    shapes = [point("a", "tumor", x, y) for x, y in corners]
    found = Given().annotation_in(Shapes(shapes), whole(90, 100), {"tumor": 1}).points
    assert as_lists(found) == {"tumor": [(29, 58), (29, 0), (99, 89)]}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (
            point("line 3", "a", 120.5, 10),
            r"line 3: x = 120.5 is outside .* \(0 to 120 px\)",
        ),
        (point("line 3", "a", 10, -1), r"line 3: y = -1 is outside the image \(0 to 90 px\)"),
        (point("line 3", "a", 10, -0.5), r"line 3: y = -0.5 is outside the image \(0 to 90 px\)"),
    ],
)
def test_what_is_outside_the_image_is_refused_with_the_range(shape: Shape, reason: str) -> None:
    good = point("line 2", "a", 120, 90)
    with pytest.raises(BadInputError, match=reason):
        drawn([good, shape], whole(HEIGHT, WIDTH), {"a": 1})


@pytest.mark.parametrize("ring", [None, "text", [1, 2, 3], [[1, 2], [3]], [[1, "b"]], [[1, None]]])
def test_what_is_no_outline_is_refused(ring: Any) -> None:
    with pytest.raises(BadInputError, match="here: "):
        polygon("here", "a", [ring])


@pytest.mark.parametrize("ring", [[], [(1, 1)], [(1, 1), (5, 5)], [(1, 1), (5, 5), (9, 9), (1, 1)]])
def test_what_encloses_nothing_is_refused(ring: Ring) -> None:
    with pytest.raises(BadInputError, match="here: encloses no area"):
        polygon("here", "a", [ring])


def test_an_outline_over_the_border_is_cut_there() -> None:
    """Pixels are as if it went on; its middle is that of the part inside."""
    rng = np.random.default_rng(6)
    reader, size = Given(), whole(HEIGHT, WIDTH)
    for x, y in ((0, 0), (WIDTH, 40), (60, HEIGHT + 8), (-12, 50)):
        outer, hole = blob(rng, x, y, 25), blob(rng, x, y, 8)
        shapes = Shapes([polygon("a", "t", [outer, hole]), point("b", "t", 60, 45)])
        expected = is_in(outer) & ~is_in(hole)
        found = reader.annotation_in(shapes, size, {"t": 1})
        assert np.array_equal(np.asarray(found.areas_HW) > 0, expected)
        assert found.middles is not None
        assert np.allclose(found.middles["t"], np.argwhere(expected)[:, ::-1].mean(axis=0), atol=1)
        assert reader.findings(shapes, size) == Findings(classes={"t": 2}, clipped=1)


def test_a_nucleus_counts_though_its_middle_was_outside() -> None:
    shape = polygon("a", "t", [[(-10, 40), (5, 40), (5, 46), (-10, 46)]])
    found = Given().annotation_in(Shapes([shape]), whole(HEIGHT, WIDTH), {"t": 1})
    assert as_lists(found.nuclei) == {"t": [(2, 43)]}


@pytest.mark.parametrize(
    ("ring", "reason"),
    [
        (
            [(1, 91), (9, 91), (9, 95)],
            r"b: y = 91 to 95 is outside the image \(0 to 90 px\) \(as is 1 of 2 objects\); do the"
            " annotations belong to another image",
        ),
        (  # its bounds reach into the image, but it does not
            [(-10, -10), (5, -10), (-10, 5)],
            r"b: is outside the image \(120 x 90 px\)",
        ),
    ],
)
def test_an_outline_wholly_outside_refuses_the_file(ring: Ring, reason: str) -> None:
    shapes = [polygon("a", "t", [[(1, 1), (9, 1), (9, 9)]]), polygon("b", "t", [ring])]
    with pytest.raises(BadInputError, match=reason):
        drawn(shapes, whole(HEIGHT, WIDTH), {"t": 1})


def test_a_point_less_than_half_a_pixel_out_is_in() -> None:
    shapes = Shapes([point("a", "t", -0.4, 0), point("a", "t", 120.4, 90.4)])
    found = Given().annotation_in(shapes, whole(HEIGHT, WIDTH), {"t": 1})
    assert as_lists(found.points) == {"t": [(0, 0), (119, 89)]}
    assert Given().findings(shapes, whole(HEIGHT, WIDTH)).clipped == 0


def test_what_is_there_twice_counts_once() -> None:
    ring = [(1.0, 1.0), (9.0, 1.0), (9.0, 9.0)]
    again = [point("b", "t", 3, 4), polygon("d", "t", [[*ring, ring[0]]])]
    shapes = [point("a", "t", 3, 4), again[0], point("c", "other", 3, 4), polygon("d", "t", [ring])]
    turned = polygon("e", "t", [[ring[1], ring[0], ring[2]]])  # begins elsewhere, other way round
    parsed = Shapes([*shapes, again[1], turned])
    assert Given().findings(parsed, whole(HEIGHT, WIDTH)) == Findings(
        classes={"t": 2, "other": 1}, duplicates=3
    )
    found = Given().annotation_in(parsed, whole(HEIGHT, WIDTH), {"t": 1, "other": 2})
    assert as_lists(found.nuclei) == {"t": [(3, 4), (6, 3)], "other": [(3, 4)]}


def test_areas_that_hold_others_of_their_class_are_counted() -> None:
    """By matplotlib; a middle in a hole is not held, nor one of another class, nor one's own, nor
    that of an object with larger bounds."""
    rng = np.random.default_rng(7)
    rings = [blob(rng, *rng.uniform(10, 80, 2), rng.choice([3, 20])) for _ in range(40)]
    shapes = [polygon(str(n), "ab"[n % 2], [ring]) for n, ring in enumerate(rings)]
    expected = dict.fromkeys("ab", 0)
    for shape in shapes:
        others = [
            other
            for other in shapes
            if other is not shape and other.name == shape.name and size(other) <= size(shape)
        ]
        outline = Outline([*shape.rings[0].tolist(), shape.rings[0][0].tolist()])
        middles = np.array([middle(each) for each in others]).reshape(-1, 2)
        expected[shape.name] += outline.contains_points(middles).any()
    assert all(0 < number < 20 for number in expected.values())
    assert Shapes(shapes).holding == (expected, 0)
    outer, hole = ([(r, r), (90 - r, r), (90 - r, 90 - r), (r, 90 - r)] for r in (0, 20))
    ringed = [polygon("a", "t", [outer, hole]), point("b", "t", 45, 45)]
    assert Shapes(ringed).holding == ({}, 0)
    assert Shapes([*ringed, point("c", "t", 10, 45)]).holding == ({"t": 1}, 0)


def size(shape: Shape) -> float:
    return float(np.prod(np.ptp(shape.rings[0], axis=0)))


def test_areas_that_are_not_tested_for_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each middle is beside two edges of the square, so only one of three squares is tested."""
    monkeypatch.setattr(outlines, "MOST_TESTS", 8)
    squares = [[(x, 0.0), (x + 20, 0.0), (x + 20, 20.0), (x, 20.0)] for x in (0.0, 30.0, 60.0)]
    shapes = [polygon(str(n), "t", [ring]) for n, ring in enumerate(squares)]
    shapes += [point("p", "t", x + 5 + n, 5) for x in (0, 30, 60) for n in range(3)]
    assert Given().findings(Shapes(shapes), whole(HEIGHT, WIDTH)) == Findings(
        classes={"t": 12}, holding={"t": 1}, untested=2
    )


@pytest.mark.parametrize("turn", [0.1, 1.3, 2.9])
def test_a_line_there_and_back_encloses_no_area_though_rounding_leaves_some(turn: float) -> None:
    line = [(r * np.cos(turn) + 50, r * np.sin(turn) + 40) for r in (0.1, 7.7, 3.3)]
    with pytest.raises(BadInputError, match="encloses no area"):
        polygon("a", "t", [line])
