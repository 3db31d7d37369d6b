"""Cut a random crop of a training image: turned, mirrored, scaled and stained in one pass.

Geometry is one affine map from the crop to the image: pixels are interpolated once, and only those
of the crop are computed. Colour is one affine map of optical density, after

    Ruifrok & Johnston 2001 (stain vectors), Tellez et al. 2018, doi:10.1109/TMI.2018.2820199
    (changing the amount of each stain by a factor and a shift).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.dataset.pack import SamplePixels
from data_prep.images.masks import BINARY_LABEL
from train.crops.config import CropConfig

# Optical density of hematoxylin, eosin and a residual (their cross product) in R, G, B; rows are
# unit vectors.
HEMATOXYLIN = np.array([0.650, 0.704, 0.286])
EOSIN = np.array([0.072, 0.990, 0.105])
STAINS = np.stack([HEMATOXYLIN, EOSIN, np.cross(HEMATOXYLIN, EOSIN)])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # by uint8; +1 keeps 0 finite
LOG_WHITE = math.log(256)
NUM_UNIFORMS = 6 + 7  # random numbers, 0 to below 1, for random_affine and random_density_map

Array = npt.NDArray[np.uint8]
Place = tuple[float, float]
"""x and y of a pixel."""


@dataclass(frozen=True)
class CropPlan:
    """What is random in a crop."""

    to_image: npt.NDArray[np.float64]
    """(2, 3): the map from pixels (x, y) of the crop to pixels of the image."""
    density_map: npt.NDArray[np.float32]
    """(3, 4): an affine map of optical density (R, G, B)."""


def plan_crop(
    shape_HW: tuple[int, int],
    config: CropConfig,
    uniforms: Sequence[float],
    around: Place | None = None,
) -> CropPlan:
    """Compute a crop of an image of this size from NUM_UNIFORMS random numbers.

    `around`: the pixel of the image that lies in its central half; None for a crop of any place.
    """
    to_image = random_affine(shape_HW, config, uniforms[:6], around)
    return CropPlan(to_image, random_density_map(config, uniforms[6:]))


def cut_crop(
    sample: SamplePixels, is_binary: bool, config: CropConfig, plan: CropPlan
) -> tuple[Array, Array]:
    """Cut a crop's image (H, W, 3) and its mask (H, W), uint8, with sides of `config.size_px`.

    Beyond its edges the image is mirrored. Binary labels are interpolated with the colours and cut
    at one half, which saves a sixth of the time; other labels are those of the nearest pixels.
    """
    (rows, columns), to_window = window_of(plan.to_image, config.size_px, sample.shape_hw)
    window_HW4 = sample.window(rows, columns)
    moved_HW4 = warp(window_HW4, to_window, config.size_px)
    image_HWC = cv2.cvtColor(moved_HW4, cv2.COLOR_RGBA2RGB)
    if is_binary:
        labels = cv2.extractChannel(moved_HW4, 3)
        _, mask_HW = cv2.threshold(labels, BINARY_LABEL // 2, BINARY_LABEL, cv2.THRESH_BINARY)
    else:
        labels = cv2.extractChannel(window_HW4, 3)
        mask_HW = warp(labels, to_window, config.size_px, cv2.INTER_NEAREST)
    if config.stain or config.stain_shift or config.brightness:
        image_HWC = apply_density_map(image_HWC, plan.density_map)
    return image_HWC, mask_HW


def random_affine(
    shape_HW: tuple[int, int],
    config: CropConfig,
    uniforms: Sequence[float],
    around: Place | None = None,
) -> npt.NDArray[np.float64]:
    """Compute the map (2, 3) from pixels (x, y) of the crop to the image, from six uniforms."""
    turn, enlarge, flip_x, flip_y, *corners = uniforms
    size = config.size_px
    angle = math.radians((2 * turn - 1) * config.rotation_deg)
    zoom = math.exp((2 * enlarge - 1) * math.log(config.scale))
    along_x, along_y = (-1 if config.flip and uniform < 0.5 else 1 for uniform in (flip_x, flip_y))
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    linear = (cos * along_x, -sin * along_y), (sin * along_x, cos * along_y)
    if around:
        x, y = place_in_crop(linear, around, shape_HW, size, corners)
        return np.array(
            [
                (of_x, of_y, in_image - of_x * x - of_y * y)
                for (of_x, of_y), in_image in zip(linear, around, strict=True)
            ]
        )
    middle = (size - 1) / 2
    rows = []
    for (of_x, of_y), extent, uniform in zip(linear, shape_HW[::-1], corners, strict=True):
        # whole pixels: then a crop without rotation and scaling is not interpolated
        corner = int(uniform * max(1, extent - size + 1))
        rows.append((of_x, of_y, corner + middle - (of_x + of_y) * middle))
    return np.array(rows)


def place_in_crop(
    linear: Sequence[tuple[float, float]],
    around: Place,
    shape_HW: tuple[int, int],
    size_px: int,
    uniforms: Sequence[float],
) -> Place:
    """Return the place (x, y) in a crop at which a pixel of the image comes to lie.

    It is any pixel of the crop's central half, so that the place says nothing. Where the crop's
    middle would then be outside the image, it is nearer to that middle: see window_of.
    """
    middle, first = (size_px - 1) / 2, -(-size_px // 4)
    x, y = (first + int(uniform * (size_px - 2 * first)) - middle for uniform in uniforms)
    nearer = 1.0
    for (of_x, of_y), extent, in_image in zip(linear, shape_HW[::-1], around, strict=True):
        away = of_x * x + of_y * y
        if away > in_image:
            nearer = min(nearer, in_image / away)
        elif in_image - away > extent - 1:
            nearer = min(nearer, (in_image - (extent - 1)) / away)
    return middle + nearer * x, middle + nearer * y


def window_of(
    to_image: npt.NDArray[np.float64], size_px: int, shape_HW: tuple[int, int]
) -> tuple[tuple[slice, slice], npt.NDArray[np.float64]]:
    """Return the window (rows, columns) of the image that a crop needs, and the map (2, 3) into it.

    Mirroring the window gives the same pixels as mirroring the image: along an axis on which the
    window is shorter than the image, the crop's middle is in the image.
    """
    columns, rows = (
        span(coefficients, extent, size_px)
        for coefficients, extent in zip(to_image.tolist(), shape_HW[::-1], strict=True)
    )
    to_window = to_image.copy()
    to_window[:, 2] -= (columns.start, rows.start)
    return (rows, columns), to_window


def span(coefficients: Sequence[float], extent: int, size_px: int) -> slice:
    """Return the pixels that a crop needs along one axis, from that axis' row of the map."""
    if extent < size_px:  # the crop's middle may be outside, and mirroring needs both edges
        return slice(0, extent)
    of_x, of_y, first = coefficients
    across, down = of_x * (size_px - 1), of_y * (size_px - 1)
    low = first + min(across, 0) + min(down, 0)
    high = first + max(across, 0) + max(down, 0)
    return slice(max(math.floor(low) - 1, 0), min(math.ceil(high) + 2, extent))


def warp(
    window: Array,
    to_window: npt.NDArray[np.float64],
    size_px: int,
    interpolation: int = cv2.INTER_LINEAR,
) -> Array:
    """Cut a crop from a window, HW or HWC uint8."""
    return cv2.warpAffine(
        window,
        to_window,
        (size_px, size_px),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def random_density_map(config: CropConfig, uniforms: Iterable[float]) -> npt.NDArray[np.float32]:
    """Compute an affine map (3, 4) of optical density (R, G, B) that changes each stain's amount.

    The seven uniforms give a factor and a shift for each stain, and the brightness.
    """
    *of_stains, light = (2 * uniform - 1 for uniform in uniforms)
    factor = [1 + config.stain * uniform for uniform in of_stains[:3]]
    shift = [config.stain_shift * uniform for uniform in of_stains[3:]]
    darker = -math.log1p(config.brightness * light)
    density_map = np.empty((3, 4), np.float32)
    density_map[:, :3] = ((UNMIX * factor) @ STAINS).T  # transposed: densities are columns here
    density_map[:, 3] = shift @ STAINS + darker
    return density_map


def apply_density_map(image_HWC: Array, density_map: npt.NDArray[np.float32]) -> Array:
    """Map the optical density of every pixel; uint8 in and out."""
    to_log_light = -density_map
    to_log_light[:, 3] += LOG_WHITE
    light = cv2.exp(cv2.transform(cv2.LUT(image_HWC, DENSITY), to_log_light))
    # Take off the +1 of DENSITY, round and clip. This call of OpenCV takes a third of the time of
    # others, but it takes the absolute value: a light below 1 becomes at most 1, instead of 0.
    return cv2.convertScaleAbs(light, alpha=1, beta=-1)
