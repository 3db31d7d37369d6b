"""Variants of a field: image, mask and points move together, and points are where the image is."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from data_prep.augment.moving import Annotated, apply, check_size
from data_prep.augment.variants import Variant, plan_variants
from data_prep.config import MARGIN_PX, TRANSFORMS, AugmentConfig
from data_prep.images.arrays import PointsPx
from data_prep.images.masks import paint_mask
from data_prep.raw import BadInputError
from tests.data_prep.augment.test_transforms import STRONG
from tests.points import as_lists, as_points

HEIGHT, WIDTH = 300, 400


def moved(
    field: Annotated, name: str, border: Any = "mirror", seed: int = 3, **given: float
) -> Annotated:
    variant = Variant(1, name, seed, given or STRONG.get(name, {}))
    (result,) = apply(field, [variant], border)
    return result


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def discs(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    points = {"tumor": np.random.default_rng(0).integers(0, (width, height), (25, 2)).astype(float)}
    return paint_mask(points, {"tumor": 255}, 12, height, width)


@pytest.mark.parametrize(
    ("name", "height", "width"),
    # the corners of the large field show what lies 150 px outside, further than MARGIN_PX
    [*((name, HEIGHT, WIDTH) for name in TRANSFORMS), ("barrel", 1024, 1360)],
)
def test_a_point_is_where_the_picture_shows_what_it_marks(
    name: str, height: int, width: int
) -> None:
    """Every spot has its point and every point its spot, mirrored ones too."""
    y, x = np.mgrid[12 : height - 12 : 40, 12 : width - 12 : 40]
    jitter = np.random.default_rng(0).integers(0, 16, (x.size, 2))
    pixels_N2 = np.column_stack([x.ravel(), y.ravel()]) + jitter
    spots = np.zeros((height, width), np.float32)
    spots[pixels_N2[:, 1], pixels_N2[:, 0]] = 1
    spots = ndimage.gaussian_filter(spots, 1.5)
    image = np.repeat(np.round(255 * spots / spots.max()).astype(np.uint8)[..., None], 3, axis=-1)
    result = moved(Annotated(image, {"tumor": pixels_N2.astype(float)}), name)

    shown = result.image_HWC[..., 0].astype(float)
    labels, number = ndimage.label(shown > 40)
    near = ndimage.grey_dilation(labels, 5)  # the spots' faint rims as well
    centroids = ndimage.center_of_mass(np.where(shown > 10, shown, 0), near, range(1, number + 1))
    spots_N2, points_N2 = np.array(centroids)[:, ::-1], result.points["tumor"]
    between = np.linalg.norm(points_N2[:, None] - spots_N2, axis=-1)
    # those whose spot is cut by the border have no centroid
    for nearest, position in ((between.min(axis=0), spots_N2), (between.min(axis=1), points_N2)):
        inner = np.all((position > 16) & (position < (width - 17, height - 17)), axis=1)
        assert inner.sum() > 30
        assert np.median(nearest[inner]) < 0.2
        assert np.mean(nearest[inner] < 0.5) > 0.9  # a stretched spot's centroid is not its point
        assert nearest[inner].max() < 2.5


def test_a_flip_takes_a_pixel_to_its_mirror_image_and_keeps_classes_apart() -> None:
    """Pixel 100 of 400 comes to pixel 299. Middles of areas are moved each for itself."""
    points = as_points({"tumor": [(100, 150), (399, 299)], "lumen": [], "mitosis": [(360, 297)]})
    middles = as_points({"tumor": [(100.25, 150)], "lumen": [(40, 150)], "mitosis": []})
    result = moved(Annotated(picture(), points, None, middles), "horizontal_flip")
    assert as_lists(result.points) == {
        "tumor": [(299, 150), (0, 299)],
        "lumen": [],
        "mitosis": [(39, 297)],
    }
    assert result.middles is not None
    assert as_lists(result.middles) == {
        "tumor": [(298.75, 150)],
        "lumen": [(359, 150)],
        "mitosis": [],
    }
    assert np.array_equal(result.image_HWC, picture()[:, ::-1])


@pytest.mark.parametrize("points", [{}, {"tumor": np.zeros((0, 2))}])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_field_without_points_keeps_having_none(name: str, points: PointsPx) -> None:
    result = moved(Annotated(picture(), points, None, points), name)
    assert result.middles is not None
    assert as_lists(result.points) == as_lists(result.middles) == as_lists(points)


def test_the_original_is_as_it_was() -> None:
    field = Annotated(picture(), as_points({"tumor": [(101, 299)]}), discs())
    assert moved(field, "original") is field


def test_points_come_from_just_outside_and_not_from_far() -> None:
    """Enlarged by 1.2 about pixel 199.5, pixel 2 comes to -37.5; by 4 pixel 100 to -198.5."""
    points = as_points({"tumor": [(2, 150)]})
    result = moved(Annotated(picture(), points), "scale", "white", factor=1.2)
    assert result.points["tumor"][:, 0] == pytest.approx([-37.5], abs=0.001)
    points = as_points({"tumor": [(100, 150)]})
    result = moved(Annotated(picture(), points), "scale", "white", factor=4.0)
    assert as_lists(result.points) == {"tumor": []}
    assert MARGIN_PX < 198


@pytest.mark.parametrize(("name", "factor"), [("scale", 0.25), ("scale", 0.75), ("rotation", 1)])
def test_a_disc_at_every_mirror_image(name: str, factor: float) -> None:
    """Discs drawn at the moved points lie where the image shows those of the field."""
    points = {"tumor": np.random.default_rng(0).integers(0, (WIDTH, HEIGHT), (25, 2)).astype(float)}
    white = np.repeat(discs()[..., None], 3, axis=-1)
    given = {"factor": factor} if name == "scale" else STRONG[name]
    result = moved(Annotated(white, points), name, **given)
    drawn = paint_mask(result.points, {"tumor": 255}, round(12 * factor), HEIGHT, WIDTH) > 0
    shown = result.image_HWC[..., 0] > 127
    assert 2 * np.sum(drawn & shown) / (drawn.sum() + shown.sum()) > (0.8 if factor < 0.5 else 0.95)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_image_and_mask_move_together(name: str) -> None:
    """The mask drawn as an image: where that is white the moved mask is set, where black not."""
    mask = discs()
    result = moved(Annotated(np.repeat(mask[..., None], 3, axis=-1), {}, mask), name)
    image, moved_mask = result.image_HWC[..., 0], result.mask_HW
    assert moved_mask is not None
    assert np.all(moved_mask[image == 255] == 255)
    assert np.all(moved_mask[image == 0] == 0)
    assert np.mean((image > 0) & (image < 255)) < 0.2  # on edges, either side is right
    assert np.mean(moved_mask != mask) > 0.02, "it did not move at all"
    assert np.array_equal(mask, discs()), "the field itself was changed"


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(97, 61), (1, 1), (1, 2000), (24, 24)])
def test_sizes_types_and_labels_are_kept(name: str, shape: tuple[int, int]) -> None:
    mask = np.where(discs(*shape), np.indices(shape)[0] % 2 + 6, 0).astype(np.uint8)
    result = moved(Annotated(picture(*shape), {"tumor": np.zeros((6, 2))}, mask), name)
    assert result.mask_HW is not None
    assert (result.image_HWC.shape, result.image_HWC.dtype) == ((*shape, 3), np.uint8)
    assert (result.mask_HW.shape, result.mask_HW.dtype) == (shape, np.uint8)
    assert result.image_HWC.flags.c_contiguous
    assert set(np.unique(result.mask_HW)) <= {0, 6, 7}
    assert len(result.points["tumor"]) <= 6 * 10 * 10


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_variant_depends_on_its_own_seed_only(name: str) -> None:
    field = Annotated(picture(), as_points({"tumor": [(160, 120)]}))
    first = moved(field, name)
    np.random.seed(123)  # a global state, which must not count
    second, other = moved(field, name), moved(field, name, seed=4)
    assert np.array_equal(first.image_HWC, second.image_HWC)
    assert as_lists(first.points) == as_lists(second.points)
    assert np.array_equal(first.image_HWC, other.image_HWC) == ("sigma_px" not in STRONG[name])


def test_no_two_variants_are_the_same_picture() -> None:
    variants = plan_variants("Case_1-01", 24, AugmentConfig(), 0)
    pictures = {of.image_HWC.tobytes() for of in apply(Annotated(picture(), {}), variants, "white")}
    assert len(pictures) == 24


def test_a_field_that_is_too_large_for_a_variant_is_refused() -> None:
    """OpenCV counts in 16 bit: beyond, other pixels would be fetched and nothing said."""
    check_size(30_000, 30_000, Variant(1, "vertical_flip", 1, {}))
    check_size(20_000, 20_000, Variant(2, "rotation", 1, {"angle_deg": 45.0}))
    with pytest.raises(
        BadInputError, match=r"20000 x 9000 px .* variant 3 \(scale\).*tile_px=1024"
    ):
        check_size(9_000, 20_000, Variant(3, "scale", 1, {"factor": 0.4}))
