"""Random crops: what moves, moves image and mask together; what does not, leaves every bit."""

from collections import Counter
from itertools import product

import cv2
import numpy as np
import pytest
from scipy import ndimage

from data_prep.dataset.pack import DecodedSample
from train.crops.config import CropConfig
from train.crops.random_crop import (
    NUM_UNIFORMS,
    apply_density_map,
    cut_crop,
    plan_crop,
    random_affine,
    random_density_map,
)

STILL = {"flip": False, "rotation_deg": 0, "scale": 1}
UNSTAINED = {"stain": 0, "stain_shift": 0, "brightness": 0}
RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])  # hematoxylin, eosin


def draw(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image in which no two windows are alike, and a mask of four labels."""
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_HWC, rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


def crop(image: np.ndarray, mask: np.ndarray, seed: int, **settings: object) -> tuple:
    config = CropConfig(**settings)
    sample, is_binary = DecodedSample(image, mask), set(np.unique(mask)) <= {0, 255}
    plan = plan_crop(sample.shape_hw, config, uniforms(seed))
    return cut_crop(sample, is_binary, config, plan)


def uniforms(seed: int) -> list[float]:
    return np.random.default_rng(seed).random(NUM_UNIFORMS).tolist()


def test_a_crop_with_everything_off_is_a_window_copied() -> None:
    """Of 20 x 18 px there are 5 x 3 windows of 16: each comes up, and nothing else."""
    image_HWC, mask_HW = draw(20, 18)
    found = set()
    for seed in range(150):
        image, mask = crop(image_HWC, mask_HW, seed, size_px=16, **STILL, **UNSTAINED)
        (corner,) = (
            (top, left)
            for top, left in product(range(5), range(3))
            if np.array_equal(image, image_HWC[top : top + 16, left : left + 16])
        )
        assert np.array_equal(mask, mask_HW[corner[0] :, corner[1] :][:16, :16])
        found.add(corner)
    assert found == set(product(range(5), range(3)))


def test_flips_are_exact_and_all_four_come_up() -> None:
    image_HWC, mask_HW = draw(16, 16)
    settings = {"size_px": 16, **STILL, "flip": True, **UNSTAINED}
    found = []
    for seed in range(40):
        image, mask = crop(image_HWC, mask_HW, seed, **settings)
        (steps,) = (
            steps
            for steps in product((1, -1), repeat=2)
            if np.array_equal(image, image_HWC[:: steps[0], :: steps[1]])
        )
        assert np.array_equal(mask, mask_HW[:: steps[0], :: steps[1]])
        found.append(steps)
    assert min(found.count(steps) for steps in product((1, -1), repeat=2)) >= 4


def test_a_crop_larger_than_the_image_mirrors_it() -> None:
    image_HWC, mask_HW = draw(20, 24)
    image, mask = crop(image_HWC, mask_HW, 0, size_px=32, **STILL, **UNSTAINED)
    assert np.array_equal(image, np.pad(image_HWC, ((0, 12), (0, 8), (0, 0)), mode="reflect"))
    assert np.array_equal(mask, np.pad(mask_HW, ((0, 12), (0, 8)), mode="reflect"))


@pytest.mark.parametrize(("height", "width"), [(20, 24), (1, 1), (100, 300), (300, 127)])
@pytest.mark.parametrize("rotation_deg", [0, 180])
def test_a_crop_is_that_of_the_whole_image_however_small(
    height: int, width: int, rotation_deg: int
) -> None:
    """Against OpenCV's warp of all of it."""
    image_HWC, mask_HW = draw(height, width)
    settings = {"size_px": 96, "scale": 1.5, "rotation_deg": rotation_deg, **UNSTAINED}
    for seed in range(40):
        image, mask = crop(image_HWC, mask_HW, seed, **settings)
        to_image = random_affine((height, width), CropConfig(**settings), uniforms(seed)[:6])
        for cut, whole, flag in (
            (image, image_HWC, cv2.INTER_LINEAR),
            (mask, mask_HW, cv2.INTER_NEAREST),
        ):
            flags = flag | cv2.WARP_INVERSE_MAP
            mirror = cv2.BORDER_REFLECT_101
            expected = cv2.warpAffine(whole, to_image, (96, 96), flags=flags, borderMode=mirror)
            # a place that lies between two, to the last bit of its rounding, may go to either
            assert np.mean(cut != expected) < 0.02


@pytest.mark.parametrize("size_px", [16, 18, 19])
def test_around_a_pixel_there_are_as_many_crops_as_pixels_in_their_central_half(
    size_px: int,
) -> None:
    """Those whose whole area is in it; without turning and scaling nothing is interpolated."""
    image_HWC, mask_HW = draw(60, 50)
    config = CropConfig(size_px=size_px, **STILL, **UNSTAINED)
    found = Counter()
    for seed in range(1500):
        plan = plan_crop((60, 50), config, uniforms(seed), (21.0, 33.0))
        image, mask = cut_crop(DecodedSample(image_HWC, mask_HW), False, config, plan)
        left, top = plan.to_image[:, 2].astype(int)
        window = slice(top, top + size_px), slice(left, left + size_px)
        assert np.array_equal(image, image_HWC[window])
        assert np.array_equal(mask, mask_HW[window])
        found[21 - left, 33 - top] += 1
    half = [at for at in range(size_px) if size_px / 4 <= at and at + 1 <= size_px * 3 / 4]
    assert set(found) == set(product(half, half))
    assert min(found.values()) >= 1500 / len(half) ** 2 / 4


@pytest.mark.parametrize("rotation_deg", [0, 180])
@pytest.mark.parametrize("around", [(0, 0), (299, 99), (150, 0), (0, 60), (290, 50), (150, 50)])
def test_around_a_pixel_at_the_border_a_crop_is_that_of_the_whole_image(
    around: tuple[int, int], rotation_deg: int
) -> None:
    """Its middle is in the image, and the pixel in its central half, also when it is mirrored."""
    image_HWC, mask_HW = draw(100, 300)
    settings = {"size_px": 96, "scale": 1.5, "rotation_deg": rotation_deg, **UNSTAINED}
    config = CropConfig(**settings)
    for seed in range(60):
        plan = plan_crop((100, 300), config, uniforms(seed), around)
        linear, offset = plan.to_image[:, :2], plan.to_image[:, 2]
        assert np.all(linear @ (47.5, 47.5) + offset >= -1e-9)
        assert np.all(linear @ (47.5, 47.5) + offset <= (299 + 1e-9, 99 + 1e-9))
        place = np.linalg.inv(linear) @ (around - offset)
        assert np.all(np.abs(place - 47.5) <= 24)
        image, _ = cut_crop(DecodedSample(image_HWC, mask_HW), False, config, plan)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        mirror = cv2.BORDER_REFLECT_101
        whole = cv2.warpAffine(image_HWC, plan.to_image, (96, 96), flags=flags, borderMode=mirror)
        assert np.mean(image != whole) < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_binary_labels_are_those_of_the_larger_part_of_a_pixel(seed: int) -> None:
    """Beside SciPy's interpolation of noise, cut at one half."""
    mask_HW = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (150, 130))
    image_HWC = np.repeat(mask_HW[..., None], 3, axis=-1)
    settings = {"size_px": 64, "scale": 1.5, **UNSTAINED}
    _, mask = crop(image_HWC, mask_HW, seed, **settings)
    to_image = random_affine((150, 130), CropConfig(**settings), uniforms(seed)[:6])
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    at = np.einsum("ij,jhw->ihw", to_image, np.stack([x, y, np.ones_like(x)]))
    share = ndimage.map_coordinates(mask_HW / 255, at[::-1], order=1, mode="mirror")
    is_clear = np.abs(share - 0.5) > 0.05  # OpenCV's places are rounded to 1/32 px
    assert np.array_equal(mask[is_clear], np.where(share > 0.5, 255, 0)[is_clear])


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_move_together_and_labels_stay(seed: int) -> None:
    """An image that is its own mask stays so, but for the pixels along the edges."""
    y, x = np.mgrid[:120, :160]
    mask_HW = np.where((x // 40 + y // 40) % 2 == 0, np.uint8(2), np.uint8(0))
    image_HWC = np.repeat(mask_HW[..., None] * np.uint8(100), 3, axis=-1)
    image, mask = crop(image_HWC, mask_HW, seed, size_px=64, scale=1.5, **UNSTAINED)
    assert set(np.unique(mask)) <= {0, 2}
    assert np.mean((image[..., 0] > 100) != (mask == 2)) < 0.02
    assert 0.1 < np.mean(mask == 2) < 0.9


def test_a_turned_crop_keeps_lengths_and_a_scaled_one_its_range() -> None:
    """Measured on a disc of radius 20: its area is 1257 px, times the square of the scale."""
    y, x = np.mgrid[:200, :200]
    mask_HW = ((x - 100) ** 2 + (y - 100) ** 2 <= 400).astype(np.uint8)
    image_HWC = np.repeat(mask_HW[..., None], 3, axis=-1)
    turned = [crop(image_HWC, mask_HW, s, size_px=200, scale=1)[1].sum() for s in range(30)]
    assert np.allclose(turned, 1257, rtol=0.01)
    scales = [
        np.sqrt(crop(image_HWC, mask_HW, s, size_px=200, rotation_deg=0)[1].sum() / 1257)
        for s in range(60)
    ]
    assert 1 / 1.21 < min(scales) < 0.88
    assert 1.13 < max(scales) < 1.21


def test_a_turn_stays_within_its_range_and_uses_it() -> None:
    """A white right half tells the angle: its edge passes near the middle of the crop."""
    mask_HW = np.zeros((200, 200), np.uint8)
    mask_HW[:, 100:] = 1
    angles = []
    for seed in range(40):
        settings = {"size_px": 200, "flip": False, "scale": 1, "rotation_deg": 30, **UNSTAINED}
        _, mask = crop(np.zeros((200, 200, 3), np.uint8), mask_HW, seed, **settings)
        edges = mask[50:150].argmax(axis=1)
        angles.append(np.degrees(np.arctan(np.polyfit(np.arange(100), edges, 1)[0])))
    assert -30.5 < min(angles) < -22
    assert 22 < max(angles) < 30.5


def test_the_same_seed_gives_the_same_crop_and_another_another() -> None:
    image_HWC, mask_HW = draw(60, 80)
    crops = [crop(image_HWC, mask_HW, seed, size_px=32) for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(crops[0], crops[1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(crops[0], crops[2], strict=True))


# Colour


@pytest.mark.parametrize("setting", UNSTAINED)
def test_each_setting_by_itself_changes_the_colours(setting: str) -> None:
    image_HWC, mask_HW = draw(16, 16)
    settings = {"size_px": 16, **STILL, **UNSTAINED, setting: 0.3}
    image, _ = crop(image_HWC, mask_HW, 0, **settings)
    assert not np.array_equal(image, image_HWC)


def test_no_change_of_stain_keeps_every_grey_level() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=-1)
    unchanged = random_density_map(CropConfig(**UNSTAINED), uniforms(0)[6:])
    assert np.abs(apply_density_map(greys, unchanged).astype(int) - greys).max() <= 1


IDENTITY = np.hstack([np.eye(3), np.zeros((3, 1))])


def darker(density: float) -> np.ndarray:
    """A map that adds a density to every channel."""
    return np.hstack([np.eye(3), np.full((3, 1), density)])


@pytest.mark.parametrize(
    ("density_map", "before", "after"),
    [
        # a density of ln 2 more halves the light v + 1: 256 -> 128, 100 -> 50, 2 -> 1
        (darker(np.log(2)), (255, 99, 1), (127, 49, 0)),
        (darker(np.log(4)), (255, 127, 3), (63, 31, 0)),
        # and less of it doubles the light, as far as white goes
        (darker(-np.log(2)), (63, 0, 200), (127, 1, 255)),
        # twice the density squares the share of light: (128/256)^2, (64/256)^2, 1
        (2 * IDENTITY, (127, 63, 255), (63, 15, 255)),
        # rows are what comes out: red from blue, blue from red
        (IDENTITY[[2, 1, 0]], (10, 20, 30), (30, 20, 10)),
    ],
)
def test_density_maps_worked_out_by_hand(
    density_map: np.ndarray, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    image_HWC = np.array(before, np.uint8)[None, None]
    mapped = apply_density_map(image_HWC, density_map.astype(np.float32))
    assert mapped.tolist() == [[list(after)]]


def test_a_density_map_changes_the_amount_of_each_stain() -> None:
    """In the coordinates of the stains it is a factor and a shift for each, within their range."""
    stains = np.vstack([RUIFROK, np.cross(*RUIFROK)])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    factors, shifts = [], []
    for seed in range(60):
        config = CropConfig(stain=0.3, stain_shift=0.05, brightness=0)
        density_map = random_density_map(config, uniforms(seed)[6:]).astype(float)
        in_stains = stains @ density_map[:, :3].T @ np.linalg.inv(stains)
        assert np.allclose(in_stains, np.diag(np.diag(in_stains)), atol=1e-5)
        factors.append(np.diag(in_stains))
        shifts.append(density_map[:, 3] @ np.linalg.inv(stains))
    for drawn, middle, reach in ((factors, 1, 0.3), (shifts, 0, 0.05)):
        away = np.array(drawn) - middle
        assert np.abs(away).max() <= reach + 1e-5
        assert (away.max(axis=0) > 0.8 * reach).all()
        assert (away.min(axis=0) < -0.8 * reach).all()
        assert np.abs(np.corrcoef(away.T)[np.triu_indices(3, 1)]).max() < 0.5  # each by itself


def test_brightness_is_a_factor_of_light_alike_in_every_channel() -> None:
    config = CropConfig(stain=0, stain_shift=0, brightness=0.2)
    grey = np.full((1, 1, 3), 99, np.uint8)
    seen = [
        apply_density_map(grey, random_density_map(config, uniforms(seed)[6:]))[0, 0]
        for seed in range(60)
    ]
    assert all(len(set(pixel.tolist())) == 1 for pixel in seen)
    # 100 / 256 of the light, times 0.8 to 1.2
    assert 79 <= np.min(seen) < 85
    assert 113 < np.max(seen) <= 119


@pytest.mark.parametrize(
    "settings",
    [
        {"size_px": 15},
        {"per_sample": 0},
        {"scale": 0.9},
        {"stain": 1.0},
        {"stain_shift": -0.1},
        {"brightness": 1.0},
    ],
)
def test_a_crop_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=f"crop.{key}={settings[key]}"):
        CropConfig(**settings)
