"""Variants: what each transform does to a picture, measured, and what a plan of them holds.

Expected pixels come from numpy, SciPy or a hand-solved equation, not from OpenCV's own warps.
"""

import math
import os
import subprocess
import sys
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import ndimage, optimize

from data_prep.augment.variants import (
    AT_A_TIME,
    Annotated,
    Variant,
    apply,
    move_points,
    plan_variants,
    warp_of,
)
from data_prep.augment.warp import Lattice, displacement_step_px, random_displacement
from data_prep.config import (
    FLIPS,
    TRANSFORMS,
    AugmentConfig,
    DisplacementConfig,
    LensConfig,
    PrepConfig,
    RotationConfig,
    ScaleConfig,
)
from data_prep.images.arrays import PointsPx
from data_prep.images.masks import draw_mask
from tests.points import as_lists, as_points

WARPS = [name for name in TRANSFORMS if name not in FLIPS]
# Parameters that a default plan may draw, at the ends of their ranges
STRONG: dict[str, dict[str, float]] = {
    "horizontal_flip": {},
    "vertical_flip": {},
    "rotation": {"angle_deg": 35.0},
    "elastic": {"rms_px": 3.0, "sigma_px": 10.0},
    "gaussian": {"rms_px": 8.0, "sigma_px": 50.0},
    "barrel": {"k": 0.4},
    "pincushion": {"k": -0.3},
    "scale": {"factor": 0.7},
}


def variant(name: str, seed: int = 1, **parameters: float) -> Variant:
    return Variant(1, name, seed, parameters or STRONG[name])


def apply_variant(
    image_HWC: np.ndarray, mask_HW: np.ndarray, moved_by: Variant
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask moved by one map."""
    (moved,) = apply(Annotated(image_HWC, {}, mask_HW), [moved_by], "mirror")
    assert moved.mask_HW is not None
    return moved.image_HWC, moved.mask_HW


def smooth_picture(height: int = 121, width: int = 161) -> np.ndarray:
    """RGB waves of 40 px: linear interpolation keeps them to about a grey level."""
    y, x = np.mgrid[:height, :width] * (2 * np.pi / 40)
    waves = np.stack([np.sin(x + 1), np.cos(y + x / 2), np.sin(x) * np.cos(y)], axis=-1)
    return np.round(127.5 + 100 * waves).astype(np.uint8)


def cells(height: int = 120, width: int = 160, value: int = 255) -> np.ndarray:
    """A mask of discs, as masks.py draws them."""
    y, x = np.mgrid[:height, :width]
    centres = np.random.default_rng(0).uniform(0, 1, (14, 2)) * (height, width)
    inside = [(y - cy) ** 2 + (x - cx) ** 2 <= 100 for cy, cx in centres]
    return np.where(np.any(inside, axis=0), value, 0).astype(np.uint8)


def spot(x: float, y: float, height: int, width: int) -> np.ndarray:
    """A blurred white dot on black; its centroid is its place to a tenth of a pixel."""
    yy, xx = np.mgrid[:height, :width]
    bell = 255 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 18)
    return np.repeat(np.round(bell).astype(np.uint8)[..., None], 3, axis=-1)


def centroid(image_HWC: np.ndarray) -> tuple[float, float]:
    y, x = ndimage.center_of_mass(image_HWC[..., 0].astype(float))
    return x, y


def move_image(image_HWC: np.ndarray, moved_by: Variant) -> np.ndarray:
    return apply_variant(image_HWC, np.zeros(image_HWC.shape[:2], np.uint8), moved_by)[0]


def reference(image_HWC: np.ndarray, matrix_yx: np.ndarray) -> np.ndarray:
    """SciPy's linear warp about the centre, mirrored at the borders."""
    centre = (np.array(image_HWC.shape[:2]) - 1) / 2
    channels = [
        ndimage.affine_transform(
            image_HWC[..., channel].astype(float),
            matrix_yx,
            centre - matrix_yx @ centre,
            order=1,
            mode="mirror",
        )
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


class TestEveryTransform:
    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_image_and_mask_move_together(self, name: str) -> None:
        """The mask drawn as an image: where that is white the moved mask is set, where black not.

        Between, on a disc's edge, the image is interpolated and the mask is on either side of it.
        """
        mask = cells()
        image, moved = apply_variant(np.repeat(mask[..., None], 3, axis=-1), mask, variant(name))
        assert np.all(moved[image[..., 0] == 255] == 255)
        assert np.all(moved[image[..., 0] == 0] == 0)
        assert np.mean((image[..., 0] > 0) & (image[..., 0] < 255)) < 0.2
        assert np.mean(moved != mask) > 0.02, "it did not move at all"

    @pytest.mark.parametrize("name", TRANSFORMS)
    @pytest.mark.parametrize("value", [255, 1, 7])
    def test_a_mask_holds_only_the_values_it_held(self, name: str, value: int) -> None:
        mask = cells(value=value)
        mask[:40][mask[:40] > 0] += 3 if value < 255 else 0  # two labels side by side
        _, moved = apply_variant(smooth_picture(120, 160), mask, variant(name))
        assert set(np.unique(moved)) == set(np.unique(mask))

    @pytest.mark.parametrize("name", ["original", *TRANSFORMS])
    @pytest.mark.parametrize("shape", [(120, 160), (97, 61), (64, 64)])
    def test_sizes_and_types_are_kept(self, name: str, shape: tuple[int, int]) -> None:
        given = Variant(0, name, 0, STRONG.get(name, {}))
        image, mask = apply_variant(smooth_picture(*shape), cells(*shape), given)
        assert (image.shape, image.dtype) == ((*shape, 3), np.uint8)
        assert (mask.shape, mask.dtype) == (shape, np.uint8)
        assert image.flags.c_contiguous
        assert mask.flags.c_contiguous

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_a_white_slide_stays_white_to_the_corners(self, name: str) -> None:
        white = np.full((120, 160, 3), 255, np.uint8)
        assert move_image(white, variant(name)).min() == 255

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_the_same_variant_gives_the_same_pixels_whatever_was_drawn_before(
        self, name: str
    ) -> None:
        first = apply_variant(smooth_picture(120, 160), cells(), variant(name, seed=5))
        np.random.seed(123)  # a global state, which must not count
        apply_variant(smooth_picture(120, 160), cells(), variant("elastic", seed=9))
        second = apply_variant(smooth_picture(120, 160), cells(), variant(name, seed=5))
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))

    @pytest.mark.parametrize("name", ["elastic", "gaussian"])
    def test_another_seed_displaces_otherwise(self, name: str) -> None:
        one, other = (move_image(smooth_picture(), variant(name, seed)) for seed in (5, 6))
        assert np.mean(one != other) > 0.5

    def test_the_input_is_left_as_it_was(self) -> None:
        image, mask = smooth_picture(120, 160), cells()
        for name in TRANSFORMS:
            apply_variant(image, mask, variant(name))
        assert np.array_equal(image, smooth_picture(120, 160))
        assert np.array_equal(mask, cells())


class TestGeometry:
    @pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
    def test_flips_are_exact(self, name: str, axis: int) -> None:
        image, mask = apply_variant(smooth_picture(120, 160), cells(), variant(name))
        assert np.array_equal(image, np.flip(smooth_picture(120, 160), axis))
        assert np.array_equal(mask, np.flip(cells(), axis))

    @pytest.mark.parametrize(("angle", "turns"), [(90.0, 1), (180.0, 2), (-90.0, 3)])
    @pytest.mark.parametrize("side", [120, 121])
    def test_quarter_turns_of_a_square_are_exact(self, angle: float, turns: int, side: int) -> None:
        """Positive angles turn against the clock, as numpy's rot90."""
        given = smooth_picture(side, side), cells(side, side)
        image, mask = apply_variant(*given, variant("rotation", angle_deg=angle))
        assert np.abs(image.astype(int) - np.rot90(given[0], turns)).max() <= 1
        assert np.mean(mask != np.rot90(given[1], turns)) < 0.002

    @pytest.mark.parametrize("angle", [-120.0, -7.5, 33.0])
    def test_a_rotation_is_scipys_borders_included(self, angle: float) -> None:
        moved = move_image(smooth_picture(), variant("rotation", angle_deg=angle))
        sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        expected = reference(smooth_picture(), np.array([[cosine, sine], [-sine, cosine]]))
        assert np.abs(moved - expected).mean() < 1
        assert np.abs(moved - expected).max() < 6

    @pytest.mark.parametrize("factor", [0.7, 0.9, 1.4])
    def test_scaling_is_scipys_borders_included(self, factor: float) -> None:
        moved = move_image(smooth_picture(), variant("scale", factor=factor))
        expected = reference(smooth_picture(), np.eye(2) / factor)
        assert np.abs(moved - expected).mean() < 1
        assert np.abs(moved - expected).max() < 6

    @pytest.mark.parametrize("factor", [0.7, 1.4])
    def test_a_factor_is_how_much_farther_apart_things_lie(self, factor: float) -> None:
        places = [(60.0, 50.0), (100.0, 75.0)]
        moved = [
            centroid(move_image(spot(*place, 120, 160), variant("scale", factor=factor)))
            for place in places
        ]
        assert math.dist(*moved) == pytest.approx(factor * math.dist(*places), rel=0.01)

    @pytest.mark.parametrize("k", [0.4, 0.1, -0.1, -0.3])
    @pytest.mark.parametrize(("dx", "dy"), [(50, 0), (0, 35), (-40, 25)])
    def test_a_lens_moves_a_point_to_where_the_polynomial_says(
        self, k: float, dx: int, dy: int
    ) -> None:
        """Content at distance R comes to r with r (1 + k r^2 + k r^4) = R, in field sides.

        k > 0 (barrel) pulls it inwards, k < 0 (pincushion) pushes it out.
        """
        width, height = 161, 121
        centre = (width - 1) / 2, (height - 1) / 2
        name = "barrel" if k > 0 else "pincushion"
        image = spot(centre[0] + dx, centre[1] + dy, height, width)
        x, y = centroid(move_image(image, variant(name, k=k)))
        distance = math.hypot(dx / width, dy / height)
        share = optimize.brentq(
            lambda s: s * (1 + k * (s * distance) ** 2 + k * (s * distance) ** 4) - 1, 0.1, 2
        )
        assert (share < 1) == (k > 0)
        assert (x - centre[0], y - centre[1]) == pytest.approx((share * dx, share * dy), abs=0.75)
        assert abs(1 - share) * max(abs(dx), abs(dy)) > 0.2  # enough to be seen


class TestDisplacement:
    def measure(self, name: str, seed: int, **parameters: float) -> np.ndarray:
        """HW2, px: how far each pixel was fetched from, read off a ramp in x and one in y."""
        y, x = np.mgrid[:240, :250]
        ramps = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
        moved = move_image(ramps, variant(name, seed, **parameters)).astype(float)
        inside = slice(30, -30)  # mirrored coordinates near the border are no displacement
        return (moved - ramps)[inside, inside, :2]

    @pytest.mark.parametrize("name", ["elastic", "gaussian"])
    @pytest.mark.parametrize(("rms", "sigma"), [(3.0, 10.0), (6.0, 14.0)])
    def test_its_root_mean_square_is_the_configured_on_both_axes(
        self, name: str, rms: float, sigma: float
    ) -> None:
        fields = [self.measure(name, seed, rms_px=rms, sigma_px=sigma) for seed in range(6)]
        measured = np.sqrt(np.mean(np.square(fields), axis=(0, 1, 2)))
        assert measured == pytest.approx([rms, rms], rel=0.15)
        x, y = (np.ravel([field[..., axis] for field in fields]) for axis in (0, 1))
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.25, "both axes move alike"

    @pytest.mark.parametrize("name", ["elastic", "gaussian"])
    def test_its_slope_is_that_of_gaussian_smoothed_noise(self, name: str) -> None:
        """Noise smoothed by sigma has an RMS slope of rms / (sigma sqrt 2): 8 / 14.1 px a px.

        Measured over 8 px, where a ramp's whole numbers do not count: the mean square of f(x + 8)
        - f(x) is 2 rms^2 (1 - exp(-8^2 / (4 sigma^2))).
        """
        rms, sigma, step = 8.0, 10.0, 8
        fields = [self.measure(name, seed, rms_px=rms, sigma_px=sigma) for seed in range(6)]
        differences = [(field[:, step:] - field[:, :-step]) for field in fields]
        expected = rms * math.sqrt(2 * (1 - math.exp(-(step**2) / (4 * sigma**2))))
        assert np.sqrt(np.mean(np.square(differences))) == pytest.approx(expected, rel=0.15)

    @pytest.mark.parametrize(("rms", "sigma"), [(8.0, 50.0), (3.0, 10.0), (2.0, 1.0)])
    def test_a_drawn_field_has_the_spread_and_the_smoothness_of_its_sigma(
        self, rms: float, sigma: float
    ) -> None:
        lattice = Lattice(301, 403, displacement_step_px(rms, sigma))
        fields = [
            random_displacement(lattice, rms, sigma, noise, np.random.default_rng(seed))
            - lattice.places()
            for seed in range(25)
            for noise in ("uniform", "normal")
        ]
        assert np.sqrt(np.mean(np.square(fields))) == pytest.approx(rms, rel=0.1)
        lag = max(1, round(sigma / lattice.step_px))
        product = np.mean([field[:, lag:] * field[:, :-lag] for field in fields])
        # autocorrelation of smoothed noise
        expected = math.exp(-((lag * lattice.step_px) ** 2) / (4 * sigma**2))
        assert product / np.mean(np.square(fields)) == pytest.approx(expected, abs=0.08)
        edges = np.concatenate([field[[0, -1]].ravel() for field in fields])
        assert np.sqrt(np.mean(np.square(edges))) == pytest.approx(rms, rel=0.2)


@pytest.mark.parametrize("drawn", [5.0, -5.0])
def test_noise_beyond_what_16_bit_hold_is_the_most_they_do(drawn: float) -> None:
    """4 standard deviations, and not what is left beyond them."""

    class Far:
        def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.full(shape, drawn, dtype)

    lattice, rms, sigma = Lattice(60, 80, 4), 3.0, 10.0
    sources = random_displacement(lattice, rms, sigma, "normal", Far())  # type: ignore[arg-type]
    blurred = 1 / (2 * math.sqrt(math.pi) * sigma / 4)  # of the spread of noise
    expected = math.copysign(4 * rms / blurred, drawn)
    assert sources - lattice.places() == pytest.approx(expected, rel=1e-3)


VARIANTS_DIGEST = """
import hashlib
import numpy as np
from data_prep.augment.variants import Annotated, apply, plan_variants
from data_prep.config import AugmentConfig

rng = np.random.default_rng(0)
image_HWC = rng.integers(0, 256, (200, 300, 3), np.uint8)
points = {"tumor": np.floor(rng.random((50, 2)) * (300, 200))}
variants = plan_variants("a-1", 9, AugmentConfig(), 0)
for variant, of in zip(variants, apply(Annotated(image_HWC, points), variants, "mirror")):
    content = of.image_HWC.tobytes() + of.points["tumor"].tobytes()
    print(variant.transform, hashlib.sha256(content).hexdigest())
"""


def test_variants_are_the_same_on_a_processor_that_can_do_less() -> None:
    """Nodes of one cluster differ: OpenCV and NumPy choose their code by what a processor can."""

    def digests(**without: str) -> str:
        command, env = [sys.executable, "-c", VARIANTS_DIGEST], os.environ | without
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return ended.stdout

    expected = digests()
    assert len(expected.splitlines()) == 9
    assert digests(OPENCV_CPU_DISABLE="AVX2,FMA3,AVX") == expected
    assert digests(NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4") == expected
    assert digests(GLIBC_TUNABLES="glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4") == expected  # sin and cos


class TestPoints:
    POINTS: ClassVar = as_points(
        {"tumor": [(100, 150), (360, 30)], "lumen": [], "mitosis": [(200, 297)]}
    )

    def moved(self, name: str, width: int = 400, height: int = 300) -> dict[str, Any]:
        warp = warp_of(variant(name), height, width, "white")
        (moved,) = move_points(self.POINTS, [warp])
        return as_lists(moved)

    def test_the_original_keeps_its_points_as_they_were_annotated(self) -> None:
        given = Annotated(smooth_picture(), self.POINTS)
        assert [*apply(given, [Variant(0, "original", 0, {})], "mirror")] == [given]

    def test_a_flip_takes_a_pixel_to_its_mirror_image(self) -> None:
        assert self.moved("horizontal_flip") == {
            "tumor": [(299, 150), (39, 30)],
            "lumen": [],
            "mitosis": [(199, 297)],
        }

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_every_class_keeps_its_own_points(self, name: str) -> None:
        whole = self.moved(name)
        assert list(whole) == list(self.POINTS)
        for cls, points in self.POINTS.items():
            warp = warp_of(variant(name), 300, 400, "white")
            (moved,) = move_points({cls: points}, [warp])
            assert as_lists(moved) == {cls: whole[cls]}

    @pytest.mark.parametrize("name", ["elastic", "gaussian", "rotation", "barrel", "scale"])
    def test_discs_at_moved_points_lie_where_the_moved_discs_do(self, name: str) -> None:
        """Mirrored ones too; only their outlines differ, which a warp bends."""
        height, width = 300, 400
        points = {"tumor": np.random.default_rng(0).uniform(0, (width, height), (25, 2)).round()}
        mask = draw_mask(points, {"tumor": 255}, 12, height, width)
        given = Annotated(smooth_picture(height, width), points, mask)
        (moved,) = apply(given, [variant(name)], "mirror")
        redrawn = draw_mask(moved.points, {"tumor": 255}, 12, height, width)
        both = np.count_nonzero((redrawn > 0) & (moved.mask_HW > 0))
        dice = 2 * both / (np.count_nonzero(redrawn) + np.count_nonzero(moved.mask_HW))
        # a factor of 0.7 leaves 0.49 of a disc's area: a Dice of 0.98 / 1.49 = 0.66
        assert dice > (0.6 if name == "scale" else 0.8)


def test_points_and_middles_are_moved_each_for_itself() -> None:
    """A flip of 400 px takes pixel 100 to 299 and pixel 40 to 359."""
    points = as_points({"tumor": [(100, 50)]})
    middles = as_points({"tumor": [(40, 50), (100, 50)]})
    field = Annotated(smooth_picture(300, 400), points, None, middles)
    (moved,) = apply(field, [variant("horizontal_flip")], "white")  # mirrors no points
    assert as_lists(moved.points) == {"tumor": [(299, 50)]}
    assert as_lists(moved.middles) == {"tumor": [(359, 50), (299, 50)]}


@pytest.mark.parametrize(("border", "corner"), [("mirror", 255), ("white", 0), ("black", 0)])
def test_beside_a_border_of_one_colour_a_mask_is_background(border: Any, corner: int) -> None:
    full_HW = np.full((200, 300), 255, np.uint8)
    field = Annotated(np.full((200, 300, 3), 128, np.uint8), {}, full_HW)
    turned = Variant(1, "rotation", 1, {"angle_deg": 45.0})
    (moved,) = apply(field, [turned], border)
    assert moved.mask_HW[0, 0] == corner
    assert moved.mask_HW[100, 150] == 255


def test_variants_are_the_same_one_by_one_and_many_together() -> None:
    field = Annotated(smooth_picture(60, 80), as_points({"tumor": [(20, 30), (56, 6)]}))
    variants = plan_variants("Case_1-01", 2 * AT_A_TIME + 3, AugmentConfig(), 0)
    together = [*apply(field, variants, "mirror")]
    assert len(together) == len(variants)
    for one, moved in zip(variants, together, strict=True):
        (expected,) = apply(field, [one], "mirror")
        assert as_lists(moved.points) == as_lists(expected.points)
        assert np.array_equal(moved.image_HWC, expected.image_HWC)


def test_a_variant_that_reaches_further_than_the_border_that_others_need() -> None:
    """A border as wide as a side is not drawn; a turned field's beside it is not enough."""
    field = Annotated(smooth_picture(64, 64), {})
    turned = Variant(1, "rotation", 1, {"angle_deg": 35.0})
    shrunk = Variant(2, "scale", 1, {"factor": 0.3})
    together = [*apply(field, [turned, shrunk], "mirror")]
    for variant, moved in zip([turned, shrunk], together, strict=True):
        (alone,) = apply(field, [variant], "mirror")
        assert np.array_equal(moved.image_HWC, alone.image_HWC)


@pytest.mark.parametrize("points", [{}, {"tumor": np.zeros((0, 2))}])
def test_a_field_without_points_keeps_having_none(points: PointsPx) -> None:
    field = Annotated(smooth_picture(), points, None, points)
    (moved,) = apply(field, [variant("rotation")], "mirror")
    assert as_lists(moved.points) == as_lists(moved.middles) == as_lists(points)


class TestPlan:
    def plan(self, field: str = "Case_1-01", copies: int = 16, seed: int = 0, **config: Any) -> Any:
        return plan_variants(field, copies, AugmentConfig(**config), seed)

    def test_162_fields_become_2592_samples(self) -> None:
        assert PrepConfig().copies == 16
        plans = [self.plan(f"Case_{case}-01") for case in range(162)]
        assert sum(map(len, plans)) == 2592

    def test_16_variants_are_the_original_two_flips_and_all_others_in_turn(self) -> None:
        plan = self.plan()
        assert [one.index for one in plan] == list(range(16))
        names = [one.transform for one in plan]
        assert names == ["original", *TRANSFORMS, *WARPS, "rotation"]
        assert Counter(names) == {
            "original": 1,
            "horizontal_flip": 1,
            "vertical_flip": 1,
            "rotation": 3,
            **dict.fromkeys(["elastic", "gaussian", "barrel", "pincushion", "scale"], 2),
        }

    @pytest.mark.parametrize("copies", [1, 2, 5, 40])
    def test_as_many_variants_as_asked_for(self, copies: int) -> None:
        plan = self.plan(copies=copies)
        assert len(plan) == copies
        assert plan == self.plan(copies=40)[:copies]  # more copies keep the first ones

    def test_no_two_variants_are_the_same_picture(self) -> None:
        moved = [
            apply_variant(smooth_picture(120, 160), cells(), one)[0].tobytes()
            for one in self.plan(copies=24)
        ]
        assert len(set(moved)) == 24

    def test_a_field_has_draws_of_its_own(self) -> None:
        one, same, other_field, other_seed = (
            self.plan(),
            self.plan(),
            self.plan("Case_1-02"),
            self.plan(seed=1),
        )
        assert one == same
        for other in (other_field, other_seed):
            assert not {v.seed for v in one[1:]} & {v.seed for v in other[1:]}
            angles = [
                [v.parameters["angle_deg"] for v in plan if v.transform == "rotation"]
                for plan in (one, other)
            ]
            assert not set(angles[0]) & set(angles[1])

    def test_only_the_transforms_asked_for_are_used_in_their_order(self) -> None:
        plan = self.plan(copies=6, transforms=["scale", "vertical_flip", "barrel"])
        names = [one.transform for one in plan]
        assert names == ["original", "scale", "vertical_flip", "barrel", "scale", "barrel"]

    def test_draws_fill_the_configured_ranges(self) -> None:
        config = {
            "rotation": RotationConfig(max_deg=30.0),
            "barrel": LensConfig(min_k=0.2, max_k=0.3),
            "pincushion": LensConfig(min_k=0.05, max_k=0.1),
            "scale": ScaleConfig(min=0.5, max=2.0),
            "elastic": DisplacementConfig(rms_px=2.0, sigma_px=7.0),
        }
        drawn: dict[str, list[dict[str, float]]] = {name: [] for name in WARPS}
        for one in self.plan(copies=600, **config)[3:]:
            drawn[one.transform].append(one.parameters)
        for name, key, low, high in (
            ("rotation", "angle_deg", -30.0, 30.0),
            ("barrel", "k", 0.2, 0.3),
            ("pincushion", "k", -0.1, -0.05),
            ("scale", "factor", 0.5, 2.0),
        ):
            values = np.array([parameters[key] for parameters in drawn[name]])
            assert low <= values.min() < low + 0.1 * (high - low), name
            assert high - 0.1 * (high - low) < values.max() <= high, name
        assert all(one == {"rms_px": 2.0, "sigma_px": 7.0} for one in drawn["elastic"])
        assert all(one == {"rms_px": 8.0, "sigma_px": 50.0} for one in drawn["gaussian"])
        factors = np.array([one["factor"] for one in drawn["scale"]])
        assert abs(np.mean(factors < 1) - 0.5) < 0.15  # as often smaller as larger


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationConfig(max_deg=0), "max_deg=0"),
        (lambda: RotationConfig(max_deg=181), "max_deg=181"),
        (lambda: DisplacementConfig(rms_px=0), "rms_px=0"),
        (lambda: DisplacementConfig(rms_px=float("nan")), "rms_px=nan"),
        (lambda: DisplacementConfig(sigma_px=0.5), r"sigma_px=0\.5"),
        (lambda: LensConfig(min_k=0), "min_k=0"),
        (lambda: LensConfig(min_k=0.3, max_k=0.2), "min_k <= max_k"),
        (lambda: LensConfig(max_k=0.9), r"max_k=0\.9"),
        (lambda: ScaleConfig(min=0), r"scale\.min=0"),
        (lambda: ScaleConfig(min=1.2, max=1.1), "min <= max"),
        (lambda: AugmentConfig(transforms=["blur"]), "unknown blur; allowed: horizontal_flip, "),
        (lambda: PrepConfig(copies=4, augment=AugmentConfig(transforms=list(FLIPS))), "copies=4"),
        (lambda: PrepConfig(copies=2, augment=AugmentConfig(transforms=[])), "copies=2"),
        (lambda: PrepConfig(copies=0), "copies=0: must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_flips_alone_make_three_variants() -> None:
    config = PrepConfig(copies=3, augment=AugmentConfig(transforms=list(FLIPS)))
    plan = plan_variants("Case_1-01", 3, config.augment, 0)
    assert [one.transform for one in plan] == ["original", *FLIPS]
