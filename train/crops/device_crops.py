"""Crops that a loader only copies out, and the rank's device turns, scales and stains.

The plans are those of `crops.cut_crop`. The pixels are not quite: a device interpolates in
floating point, OpenCV at 1/32 of a pixel.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset.pack import SamplePixels
from data_prep.images.masks import BINARY_LABEL
from train.config import CropConfig
from train.crops.random_crop import Array, Plan


def window_px(config: CropConfig) -> int:
    """Side of the square in which a crop lies, however it is turned and scaled, in px."""
    half_diagonal_px = config.scale * math.sqrt(2) * (config.size_px - 1) / 2
    return 2 * (math.ceil(half_diagonal_px) + 2)


def parts(config: CropConfig) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each of the arrays of `cut_window`."""
    size = window_px(config)
    return [
        ((size, size, 4), torch.uint8),
        ((2, 3), torch.float32),
        ((3, 4), torch.float32),
    ]


def cut_window(
    sample: SamplePixels, config: CropConfig, plan: Plan, into: Sequence[npt.NDArray[Any]]
) -> None:
    """Write what `finish` makes a crop of, S being window_px(): what is about it, with its labels
    (S, S, 4), uint8, the map (2, 3) from its pixels (x, y) to theirs, and its density map (3, 4).
    """
    window, to_window, density_map = into
    size = window_px(config)
    middle = plan.to_image @ [(config.size_px - 1) / 2, (config.size_px - 1) / 2, 1]
    left, top = np.floor(middle).astype(int) - (size // 2 - 1)
    to_window[:] = plan.to_image - np.array([[0, 0, left], [0, 0, top]])
    density_map[:] = plan.density_map
    cut_square(sample, top, left, size, window)


def cut_square(sample: SamplePixels, top: int, left: int, size: int, into: Array) -> None:
    """A square of a sample, HW4 uint8; outside, it is mirrored."""
    height, width = sample.shape_hw
    above, before = max(-top, 0), max(-left, 0)
    below, behind = max(top + size - height, 0), max(left + size - width, 0)
    rows = slice(top + above, top + size - below)
    inside = sample.window(rows, slice(left + before, left + size - behind))
    cv2.copyMakeBorder(inside, above, below, before, behind, cv2.BORDER_REFLECT_101, into)


def finish(
    window_BHW4: Tensor,
    to_window_B23: Tensor,
    density_map_B34: Tensor,
    size_px: int,
    is_binary: bool,
) -> tuple[Tensor, Tensor]:
    """Crops of windows, on their device: images (B, size, size, 3) and masks, both uint8.

    Labels as `crops.cut_crop` has them.
    """
    along = torch.arange(size_px, dtype=torch.float32, device=window_BHW4.device)
    to_x, to_y, offset = to_window_B23[:, None, None].unbind(dim=-1)
    # not a matrix product: on a GPU that may be computed in TF32, too coarse for places
    source_BHW2 = to_x * along[:, None] + to_y * along[:, None, None] + offset
    grid_BHW2 = source_BHW2 * (2 / (window_BHW4.shape[1] - 1)) - 1
    window_B4HW = window_BHW4.permute(0, 3, 1, 2).float()
    moved_B4HW = F.grid_sample(window_B4HW, grid_BHW2, align_corners=True)
    image_BHWC = apply_density_maps(moved_B4HW[:, :3], density_map_B34)
    if is_binary:
        return image_BHWC, (moved_B4HW[:, 3] >= BINARY_LABEL / 2).byte() * BINARY_LABEL
    labels_B1HW = F.grid_sample(window_B4HW[:, 3:], grid_BHW2, mode="nearest", align_corners=True)
    return image_BHWC, labels_B1HW[:, 0].round().byte()


def apply_density_maps(image_BCHW: Tensor, density_map_B34: Tensor) -> Tensor:
    """As crops.apply_density_map, of floats 0 to 255; gives (B, H, W, 3) uint8."""
    density_BCHW = -torch.log((image_BCHW + 1) / 256)
    red, green, blue = density_BCHW[..., None].unbind(dim=1)
    of_red, of_green, of_blue, shift = density_map_B34[:, None, None].unbind(dim=-1)
    density_BHWC = of_red * red + of_green * green + of_blue * blue + shift
    return (256 * torch.exp(-density_BHWC) - 1).round().clamp(0, 255).byte()
