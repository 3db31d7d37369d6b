"""The map of a variant: exact beside full-resolution formulas, and points where the picture is.

Expected maps are worked out in float64 at every pixel, by SciPy's splines, or by albumentations'
own operation.
"""

import math
import os
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage

from data_prep.augment import inverse
from data_prep.augment.inverse import Maps
from data_prep.augment.variants import Variant, warp_of
from data_prep.augment.warp import Border, Bordered, Lattice, Warp
from data_prep.config import MARGIN_PX, TRANSFORMS

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

PARAMETERS: dict[str, dict[str, float]] = {
    "horizontal_flip": {},
    "vertical_flip": {},
    "rotation": {"angle_deg": 35.0},
    "elastic": {"rms_px": 3.0, "sigma_px": 10.0},
    "gaussian": {"rms_px": 8.0, "sigma_px": 50.0},
    "barrel": {"k": 0.35},
    "pincushion": {"k": -0.35},
    "scale": {"factor": 0.7},
}
HEIGHT, WIDTH = 1024, 1360


def warp(
    name: str, height: int = HEIGHT, width: int = WIDTH, border: Border = "mirror", **given: float
) -> Warp:
    return warp_of(Variant(1, name, 3, given or PARAMETERS[name]), height, width, border)


def every_pixel(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(float)
    return np.stack([x, y], axis=-1)


def as_places(pairs: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): x + iy."""
    return pairs[..., 0] + 1j * pairs[..., 1]


def as_pairs(places: np.ndarray) -> np.ndarray:
    """And back."""
    return np.stack([places.real, places.imag], axis=-1)


def move_points(of: Warp, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) moved: (M, 2), and which is where."""
    ((moved, which),) = inverse.move_points(as_places(points), [of])
    return as_pairs(moved), which


def at(of: Warp, pairs: np.ndarray) -> np.ndarray:
    """(N, 2) -> (N, 2): the sources of places."""
    return as_pairs(Maps([of]).at(as_places(pairs), np.zeros(len(pairs), int))[0])


def sources(of: Warp) -> np.ndarray:
    """HW2: the map at every pixel of the field."""
    places = every_pixel(of.lattice.height_px, of.lattice.width_px)
    return at(of, places.reshape(-1, 2)).reshape(places.shape)


def full_resolution(name: str, drawn: dict[str, float], height: int, width: int) -> np.ndarray:
    """HW2: the formula at every pixel."""
    places = every_pixel(height, width)
    middle = np.array([width - 1, height - 1]) / 2
    if name == "horizontal_flip":
        return np.stack([width - 1 - places[..., 0], places[..., 1]], axis=-1)
    if name == "vertical_flip":
        return np.stack([places[..., 0], height - 1 - places[..., 1]], axis=-1)
    if name == "rotation":  # content turns against the clock, y pointing down
        x, y = np.moveaxis(places - middle, -1, 0)
        z = (x - 1j * y) * np.exp(-1j * math.radians(drawn["angle_deg"]))
        return np.stack([z.real, -z.imag], axis=-1) + middle
    if name == "scale":
        return middle + (places - middle) / drawn["factor"]
    size = np.array([width, height])
    offset = (places - middle) / size
    r2 = (offset**2).sum(axis=-1, keepdims=True)
    return middle + size * offset * (1 + drawn["k"] * r2 + drawn["k"] * r2**2)


FORMULAS = [name for name in TRANSFORMS if name not in ("elastic", "gaussian")]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (333, 257)])
def test_a_map_is_the_formula_at_full_resolution(name: str, size: tuple[int, int]) -> None:
    """Linear maps to float32's precision, lenses at their strongest to 0.05 px."""
    error_px = sources(warp(name, *size)) - full_resolution(name, PARAMETERS[name], *size)
    allowed_px = 0.05 if name in ("barrel", "pincushion") else 0.002
    assert np.linalg.norm(error_px, axis=-1).max() < allowed_px


@pytest.mark.parametrize(
    ("name", "rms", "sigma"),
    [("elastic", 3.0, 10.0), ("gaussian", 8.0, 50.0), ("elastic", 8.0, 20.0), ("elastic", 1, 5)],
)
def test_a_random_displacement_is_smooth_between_the_nodes_of_its_lattice(
    name: str, rms: float, sigma: float
) -> None:
    """Beside the cubic spline through the same nodes: 0.1 px RMS."""
    given = warp(name, rms_px=rms, sigma_px=sigma)
    lattice = given.lattice
    node = (every_pixel() - lattice.origin_px) / lattice.step_px
    error_px = [
        ndimage.map_coordinates(
            given.sources_HW2[..., axis].astype(float), (node[..., 1], node[..., 0]), order=3
        )
        - sources(given)[..., axis]
        for axis in (0, 1)
    ]
    assert np.sqrt(np.mean(np.square(error_px))) < 0.1
    assert lattice.step_px > 1 or sigma <= 5, "every pixel is a node: that is not fast"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pixels_come_from_where_the_map_says(name: str) -> None:
    """SciPy's interpolation at the map's sources, borders included."""
    height, width = 250, 331
    y, x = np.mgrid[:height, :width] * (2 * np.pi / 40)
    picture = np.round(127.5 + 60 * (np.sin(x + 1) + np.cos(y + x / 2))).astype(np.uint8)
    given = warp(name, height, width)
    moved = given.move_pixels(
        Bordered(np.repeat(picture[..., None], 3, axis=-1), "mirror"), cv2.INTER_LINEAR
    )
    at = sources(given)
    expected = ndimage.map_coordinates(
        picture.astype(float), (at[..., 1], at[..., 0]), order=1, mode="mirror"
    )
    assert np.abs(moved[..., 0] - expected).max() <= 1.5  # OpenCV knows 32 places in a pixel
    assert np.array_equal(moved[..., 0], moved[..., 2])


@pytest.mark.parametrize(
    ("name", "operation", "settings"),
    [
        ("rotation", "Rotate", {"limit": (35.0, 35.0), "border_mode": cv2.BORDER_REFLECT_101}),
        ("scale", "Affine", {"scale": (0.7, 0.7), "border_mode": cv2.BORDER_REFLECT_101}),
        ("barrel", "OpticalDistortion", {"distort_limit": (0.35, 0.35), "mode": "camera"}),
        ("pincushion", "OpticalDistortion", {"distort_limit": (-0.35, -0.35), "mode": "camera"}),
        ("horizontal_flip", "HorizontalFlip", {}),
        ("vertical_flip", "VerticalFlip", {}),
    ],
)
def test_a_transform_is_albumentations_own_where_it_has_one(
    name: str, operation: str, settings: dict[str, Any]
) -> None:
    """With the same parameters: within 0.15 px, on ramps whose value tells the place.

    OpenCV's lens, which theirs is, takes the middle of the result at (W - 1) / 2 and that of the
    source at W / 2: half a pixel of a shift, which ours leaves out.
    """
    import albumentations

    ramps = every_pixel(400, 500).astype(np.float32)
    theirs = getattr(albumentations, operation)(p=1.0, **settings)
    moved = theirs(image=np.dstack([ramps, ramps[..., :1]]))["image"][..., :2]
    ours = sources(warp(name, 400, 500)) + (0.5 if operation == "OpticalDistortion" else 0)
    inside = np.all((ours > 1) & (ours < [498, 398]), axis=-1)  # a mirrored ramp tells no place
    assert inside.mean() > 0.4
    assert np.abs(moved - ours)[inside].max() < 0.15


def test_elastic_is_albumentations_own_in_spread_and_smoothness() -> None:
    """Which field comes is a draw; each draws uniform noise and smooths it by sigma.

    alpha times uniform noise from -1 to 1 has an RMS of alpha / sqrt 3, of which a Gaussian leaves
    1 / (2 sqrt(pi) sigma).
    """
    import albumentations

    rms, sigma, lag = 3.0, 10.0, 10
    alpha = rms * np.sqrt(3) * 2 * np.sqrt(np.pi) * sigma
    theirs = albumentations.ElasticTransform(alpha, sigma, noise_distribution="uniform", p=1.0)
    theirs.set_random_seed(0)
    places = every_pixel(300, 400).astype(np.float32)
    ramps = np.dstack([places, places[..., :1]])
    inside = np.s_[20:-20, 20:-20]  # a mirrored ramp tells no place

    def measured(displacements: list[np.ndarray]) -> tuple[float, float]:
        square = np.mean(np.square(displacements))
        product = np.mean([field[:, lag:] * field[:, :-lag] for field in displacements])
        return float(np.sqrt(square)), float(product / square)

    of_theirs = measured(
        [(theirs(image=ramps)["image"][..., :2] - places)[inside] for _ in range(8)]
    )
    given = {"rms_px": rms, "sigma_px": sigma}
    maps = [warp_of(Variant(1, "elastic", n, given), 300, 400, "mirror") for n in range(8)]
    of_ours = measured([(sources(of) - places)[inside] for of in maps])
    assert of_ours == pytest.approx(of_theirs, rel=0.06)


class TestPoints:
    def spots(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """White dots, 3 px wide, at points, which keep 20 px of each other."""
        picture = np.zeros((height, width), np.float32)
        for x, y in points.astype(int):
            picture[y, x] = 1
        blurred = ndimage.gaussian_filter(picture, 1.5)
        return np.round(255 * blurred / blurred.max()).astype(np.uint8)

    def scattered(self, height: int, width: int, margin: int = 12) -> np.ndarray:
        """Points on a jittered grid, at least 24 px apart."""
        rng = np.random.default_rng(0)
        y, x = np.mgrid[margin : height - margin : 40, margin : width - margin : 40]
        points = np.stack([x.ravel(), y.ravel()], axis=1) + rng.integers(0, 16, (x.size, 2))
        return points[(points < [width - margin, height - margin]).all(axis=1)].astype(float)

    def blobs(self, picture: np.ndarray) -> np.ndarray:
        """(N, 2): the centroids (x, y) of the bright spots of a picture."""
        labels, number = ndimage.label(picture > 40)
        weights = np.where(picture > 10, picture, 0).astype(float)
        near = ndimage.grey_dilation(labels, 5)  # the spots' faint rims as well
        centres = ndimage.center_of_mass(weights, near, range(1, number + 1))
        return np.array(centres)[:, ::-1]

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_a_point_is_where_the_picture_shows_what_it_marks(self, name: str) -> None:
        """Every spot has its point and every point its spot, mirrored ones too."""
        height, width = 300, 400
        points = self.scattered(height, width)
        given = warp(name, height, width)
        picture = given.move_pixels(
            Bordered(self.spots(points, height, width), "mirror"), cv2.INTER_LINEAR
        )
        moved, _ = move_points(given, points)
        size = np.array([width, height])
        # those whose spot is cut by the border have no centroid
        moved = moved[np.all((moved > 8) & (moved < size - 9), axis=1)]
        seen = self.blobs(picture)
        seen = seen[np.all((seen > 12) & (seen < size - 13), axis=1)]
        to_nearest = np.linalg.norm(moved[:, None] - seen[None], axis=-1)
        assert len(seen) > 30
        inner = np.all((moved > 16) & (moved < size - 17), axis=1)
        for nearest in (to_nearest.min(axis=0), to_nearest[inner].min(axis=1)):
            # the centroid of a stretched spot is not quite its point
            assert np.mean(nearest < 0.5) > 0.9
            assert nearest.max() < 2.5

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_the_map_leads_from_a_moved_point_back_to_it(self, name: str) -> None:
        """To 0.1 px; by SciPy's interpolation of the map at full resolution."""
        points = np.random.default_rng(1).uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (300, 2))
        given = warp(name)
        moved, which = move_points(given, points)
        inside = np.all((moved >= 0) & (moved <= [WIDTH - 1, HEIGHT - 1]), axis=1)
        moved, wanted = moved[inside], points[which[inside]]
        at = full_map(name)
        found = np.stack(
            [ndimage.map_coordinates(at[..., axis], moved[:, ::-1].T, order=1) for axis in (0, 1)],
            axis=1,
        )
        last = np.array([WIDTH - 1, HEIGHT - 1])
        mirrored = last - np.abs(last - np.mod(found, 2 * last))  # reflect where it leads outside
        assert np.abs(mirrored - wanted).max() < 0.1
        # no point is lost that the picture shows
        shown = np.unique(which[inside])
        assert len(shown) > 150
        if name in ("horizontal_flip", "vertical_flip", "scale"):
            assert len(shown) == 300

    def test_a_point_is_never_lost_in_a_map_that_folds_over(self) -> None:
        given = warp("elastic", 200, 260, border="white", rms_px=12.0, sigma_px=10.0)
        shown_HW2 = sources(given)
        points = np.random.default_rng(2).uniform([30, 30], [229, 169], (200, 2)).round()
        moved, which = move_points(given, points)
        back = at(given, moved)
        assert np.abs(back - points[which]).max() < 0.1
        shown = {
            index
            for index, point in enumerate(points)
            if np.linalg.norm(shown_HW2 - point, axis=-1).min() < 0.3
        }
        assert len(shown) > 30
        assert shown <= set(which.tolist())

    def test_points_are_where_each_map_by_itself_shows_them(self) -> None:
        """Of maps of all kinds, two of which fold over, at once."""
        folding = [warp("elastic", 200, 260, rms_px=rms, sigma_px=8.0) for rms in (12.0, 20.0)]
        warps = [folding[0], *(warp(name, 200, 260) for name in TRANSFORMS), folding[1]]
        points = as_places(np.random.default_rng(3).uniform(0, [259, 199], (150, 2)).round())
        together = inverse.move_points(points, warps)
        assert len(together) == len(warps)
        for given, (places, which) in zip(warps, together, strict=True):
            ((expected, expected_which),) = inverse.move_points(points, [given])
            assert np.array_equal(places, expected)
            assert np.array_equal(which, expected_which)

    def test_no_maps_move_nothing(self) -> None:
        assert inverse.move_points(np.zeros(3, complex), []) == []

    def test_a_point_that_is_moved_just_outside_comes_too(self) -> None:
        given = warp("scale", 200, 200, border="white", factor=1.05)
        moved, _ = move_points(given, np.array([[2.0, 100.0]]))
        assert moved == pytest.approx(np.array([[-2.875, 100.025]]), abs=0.02)

    def test_points_far_outside_do_not(self) -> None:
        given = warp("scale", 200, 200, border="white", factor=4.0)
        moved, which = move_points(given, np.array([[100.0, 100.0], [10.0, 100.0]]))
        assert which.tolist() == [0]
        assert np.all(moved > -MARGIN_PX)

    @pytest.mark.parametrize("name", TRANSFORMS)
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2000), (24, 24)])
    def test_a_small_field_has_few_images_of_a_point(
        self, name: str, height: int, width: int
    ) -> None:
        """A margin of 64 px around 24 px shows a corner 4 x 4 times; bent or shrunk, some more."""
        given = warp(name, height, width)
        moved, _ = move_points(given, np.zeros((6, 2)))
        assert len(moved) <= 6 * 10 * 10
        pixels = np.zeros((height, width, 3), np.uint8)
        assert given.move_pixels(Bordered(pixels, "mirror"), cv2.INTER_LINEAR).shape == pixels.shape

    def test_no_points_stay_none(self) -> None:
        moved, which = move_points(warp("elastic"), np.zeros((0, 2)))
        assert moved.shape == (0, 2)
        assert which.shape == (0,)


def full_map(name: str) -> np.ndarray:
    return (
        full_resolution(name, PARAMETERS[name], HEIGHT, WIDTH)
        if name in FORMULAS
        else sources(warp(name))
    )


@pytest.mark.parametrize(("border", "value"), [("white", 255), ("black", 0)])
def test_what_comes_in_from_outside_is_one_colour_if_asked_for(border: Border, value: int) -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    given = warp("rotation", 200, 300, border=border, angle_deg=45.0)
    moved = given.move_pixels(Bordered(grey, border), cv2.INTER_LINEAR)
    assert moved[0, 0].tolist() == [value] * 3
    assert moved[100, 150].tolist() == [128] * 3
    points, _ = move_points(given, np.array([[150.0, 100.0], [10.0, 10.0]]))
    assert len(points) == 2, "a border of one colour mirrors no points"


def test_a_border_is_drawn_as_wide_as_the_widest_that_is_no_wider_than_a_side() -> None:
    picture = Bordered(np.zeros((50, 60, 3), np.uint8), "mirror")
    picture.draw([51, 10_000])
    assert (picture.drawn_px, picture.drawn.shape) == (0, (50, 60, 3))
    picture.draw([50, 10_000, 7])
    assert (picture.drawn_px, picture.drawn.shape) == (50, (150, 160, 3))
    picture.draw([20])
    assert picture.reaching(50) == (picture.drawn, 50)
    assert picture.reaching(51) == (picture.pixels, 0)


def test_a_lattice_of_the_places_themselves_moves_nothing() -> None:
    lattice = Lattice(100, 130, 8)
    same = Warp(lattice, lattice.places())
    picture = np.random.default_rng(0).integers(0, 256, (100, 130, 3), np.uint8)
    assert np.array_equal(same.move_pixels(Bordered(picture, "mirror"), cv2.INTER_LINEAR), picture)


@pytest.mark.parametrize(
    ("x", "y", "folds"),
    [
        (lambda x, y: x, lambda x, y: y, False),
        (lambda x, y: -x, lambda x, y: y, False),  # turned over as a whole
        (lambda x, y: x + 60 * np.sin(y / 9), lambda x, y: y, False),  # sheared
        (lambda x, y: x + 60 * np.sin(x / 9), lambda x, y: y, True),
        (lambda x, y: x, lambda x, y: y + 60 * np.sin(y / 9), True),
        (lambda x, y: np.zeros_like(x), lambda x, y: y, True),  # flat
    ],
)
def test_whether_a_map_folds_over(x: Any, y: Any, folds: bool) -> None:
    lattice = Lattice(100, 130, 4)
    given = np.moveaxis(lattice.places(), -1, 0)
    sources = np.stack([x(*given), y(*given)], axis=-1).astype(np.float32)
    assert inverse.folds_over(Warp(lattice, sources)) is folds
