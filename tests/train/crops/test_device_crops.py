"""Crops finished on the device: those of the loader, but for how places are rounded."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_prep.dataset.pack import DecodedSample
from train.config import CropConfig
from train.crops.device_crops import apply_density_maps, cut_window, finish, parts
from train.crops.random_crop import NUM_DRAWS, Plan, cut_crop, plan_crop

STILL = {"flip": False, "rotation_deg": 0, "scale": 1}
UNSTAINED = {"stain": 0, "stain_shift": 0, "brightness": 0}


def smooth(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of slopes below 10 grey levels a pixel, and a mask of large regions."""
    y, x = np.mgrid[:height, :width] / 9
    waves = np.stack([np.sin(x + y), np.cos(x - y / 2), np.sin(y) * np.cos(x)], axis=-1)
    mask_HW = np.where(np.sin(x / 3) * np.sin(y / 2) > 0, np.uint8(255), np.uint8(3))
    return np.round(140 + 90 * waves).astype(np.uint8), mask_HW


def device_crop(
    image: np.ndarray, mask: np.ndarray, seed: int, **settings: object
) -> tuple[np.ndarray, np.ndarray]:
    config = CropConfig(**settings)
    into = [torch.empty(1, *shape, dtype=dtype) for shape, dtype in parts(config)]
    sample = DecodedSample(image, mask)
    cut_window(sample, config, plan(image, config, seed), [part[0].numpy() for part in into])
    crops = finish(*into, config.size_px, is_binary(mask))
    assert all(crop.dtype == torch.uint8 for crop in crops)
    image_HWC, mask_HW = (crop[0].numpy() for crop in crops)
    return image_HWC, mask_HW


def is_binary(mask: np.ndarray) -> bool:
    return set(np.unique(mask)) <= {0, 255}


def plan(image: np.ndarray, config: CropConfig, seed: int) -> Plan:
    draws = np.random.default_rng(seed).random(NUM_DRAWS).tolist()
    return plan_crop(image.shape[:2], config, draws)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("height", "width"), [(300, 400), (70, 90)])
@pytest.mark.parametrize("labels", [(3, 255), (0, 255)])
def test_it_is_the_loaders_crop(
    labels: tuple[int, int], height: int, width: int, seed: int
) -> None:
    """The same draws; OpenCV rounds places to 1/32 px, the rest is within a rounding of colour."""
    image_HWC, mask_HW = smooth(height, width)
    mask_HW[mask_HW == 3] = labels[0]
    settings = {"size_px": 96, "scale": 1.5}
    config = CropConfig(**settings)
    theirs = np.empty((96, 96, 3), np.uint8), np.empty((96, 96), np.uint8)
    sample = DecodedSample(image_HWC, mask_HW)
    cut_crop(sample, is_binary(mask_HW), config, plan(image_HWC, config, seed), theirs)
    image, mask = device_crop(image_HWC, mask_HW, seed, **settings)
    assert np.abs(image.astype(int) - theirs[0]).max() <= 2
    assert np.mean(mask != theirs[1]) < 0.01
    assert set(np.unique(mask)) == set(labels)


def test_places_are_those_of_the_map_to_a_hundredth_of_a_pixel() -> None:
    """Beside SciPy's interpolation, of noise, where a place that is off shows most."""
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (200, 260, 3), dtype=np.uint8)
    config = CropConfig(size_px=64, **UNSTAINED)
    for seed in range(6):
        to_image = plan(image_HWC, config, seed).to_image
        x, y = np.meshgrid(np.arange(64), np.arange(64))
        at = np.einsum("ij,jhw->ihw", to_image, np.stack([x, y, np.ones_like(x)]))
        expected = ndimage.map_coordinates(
            image_HWC[..., 1].astype(float), at[::-1], order=1, mode="mirror"
        )
        image, _ = device_crop(image_HWC, image_HWC[..., 0], seed, size_px=64, **UNSTAINED)
        # rounded by half a level, and 0.01 px of a slope of up to 255
        assert np.abs(image[..., 1] - expected).max() < 0.5 + 2.55


@pytest.mark.parametrize("seed", range(6))
def test_binary_labels_are_those_of_the_larger_part_of_a_pixel(seed: int) -> None:
    """Beside SciPy's interpolation of noise, cut at one half."""
    mask_HW = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (120, 150))
    image_HWC = np.repeat(mask_HW[..., None], 3, axis=-1)
    config = CropConfig(size_px=64, **UNSTAINED)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    to_image = plan(image_HWC, config, seed).to_image
    at = np.einsum("ij,jhw->ihw", to_image, np.stack([x, y, np.ones_like(x)]))
    share = ndimage.map_coordinates(mask_HW / 255, at[::-1], order=1, mode="mirror")
    _, mask = device_crop(image_HWC, mask_HW, seed, size_px=64, **UNSTAINED)
    is_clear = np.abs(share - 0.5) > 0.01
    assert np.array_equal(mask[is_clear], np.where(share > 0.5, 255, 0)[is_clear])


def test_a_crop_with_everything_off_is_a_window_copied() -> None:
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    mask_HW = rng.choice(np.array([0, 1, 2, 255], np.uint8), (40, 52))
    for seed in range(20):
        image, mask = device_crop(image_HWC, mask_HW, seed, size_px=32, **STILL, **UNSTAINED)
        (top, left), *_ = np.argwhere(
            [
                [np.array_equal(image_HWC[y : y + 32, x : x + 32], image) for x in range(21)]
                for y in range(9)
            ]
        )
        assert np.array_equal(mask, mask_HW[top : top + 32, left : left + 32])


def test_a_crop_larger_than_the_image_mirrors_it() -> None:
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image, _ = device_crop(image_HWC, image_HWC[..., 0], 0, size_px=32, **STILL, **UNSTAINED)
    assert np.array_equal(image, np.pad(image_HWC, ((0, 12), (0, 8), (0, 0)), mode="reflect"))


def test_each_crop_of_a_batch_has_its_own_density_map() -> None:
    """By hand: ln 2 more density halves the light v + 1; and red from blue, blue from red."""
    keep = np.hstack([np.eye(3), np.zeros((3, 1))])
    halved = np.hstack([np.eye(3), np.full((3, 1), np.log(2))])
    maps_B34 = torch.tensor(np.stack([keep, halved, keep[[2, 1, 0]]]), dtype=torch.float32)
    pixel = torch.tensor([255.0, 99.0, 1.0]).view(1, 3, 1, 1).expand(3, 3, 1, 1)
    mapped = apply_density_maps(pixel, maps_B34)
    assert mapped.shape == (3, 1, 1, 3)
    assert mapped[:, 0, 0].tolist() == [[255, 99, 1], [127, 49, 0], [1, 99, 255]]
