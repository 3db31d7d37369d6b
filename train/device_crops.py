"""Crops that a loader only copies out, and the rank's device turns, scales and stains.

The draws are those of `crops.random_crop`. The pixels are not quite: a device interpolates in
floating point, OpenCV at 1/32 of a pixel.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import CropConfig
from train.crops import Array, draw_affine, draw_density_map


def window_px(config: CropConfig) -> int:
    """Side of the square in which a crop lies, however it is turned and scaled, in px."""
    half_diagonal_px = config.scale * math.sqrt(2) * (config.size_px - 1) / 2
    return 2 * (math.ceil(half_diagonal_px) + 2)


def parts(config: CropConfig) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each of the arrays of `random_window`."""
    size = window_px(config)
    return [
        ((size, size, 3), torch.uint8),
        ((size, size), torch.uint8),
        ((2, 3), torch.float32),
        ((3, 4), torch.float32),
    ]


def random_window(
    image_HWC: Array, mask_HW: Array, config: CropConfig, rng: np.random.Generator
) -> tuple[Array, Array, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What `finish` makes a crop of, S being window_px(): the image about it (S, S, 3) and its mask
    (S, S), uint8, the map (2, 3) from its pixels (x, y) to theirs, and its density map (3, 4)."""
    to_image = draw_affine(mask_HW.shape, config, rng)
    size = window_px(config)
    middle = to_image @ [(config.size_px - 1) / 2, (config.size_px - 1) / 2, 1]
    left, top = np.floor(middle).astype(int) - (size // 2 - 1)
    to_window = to_image - np.array([[0, 0, left], [0, 0, top]])
    image, mask = (mirrored_window(pixels, top, left, size) for pixels in (image_HWC, mask_HW))
    return image, mask, to_window.astype(np.float32), draw_density_map(config, rng)


def mirrored_window(pixels: Array, top: int, left: int, size: int) -> Array:
    """A square of a picture, HW or HWC uint8; outside, the picture is mirrored."""
    height, width = pixels.shape[:2]
    above, before = max(-top, 0), max(-left, 0)
    below, behind = max(top + size - height, 0), max(left + size - width, 0)
    inside = pixels[top + above : top + size - below, left + before : left + size - behind]
    return cv2.copyMakeBorder(inside, above, below, before, behind, cv2.BORDER_REFLECT_101)


def finish(
    image_BHWC: Tensor,
    mask_BHW: Tensor,
    to_window_B23: Tensor,
    density_map_B34: Tensor,
    size_px: int,
) -> tuple[Tensor, Tensor]:
    """Crops of windows, on their device: images (B, size, size, 3) and masks, both uint8."""
    along = torch.arange(size_px, dtype=torch.float32, device=image_BHWC.device)
    to_x, to_y, offset = to_window_B23[:, None, None].unbind(dim=-1)
    # not a matrix product: on a GPU that may be computed in TF32, too coarse for places
    source_BHW2 = to_x * along[:, None] + to_y * along[:, None, None] + offset
    grid_BHW2 = source_BHW2 * (2 / (image_BHWC.shape[1] - 1)) - 1
    image_BCHW = F.grid_sample(
        image_BHWC.permute(0, 3, 1, 2).float(), grid_BHW2, align_corners=True
    )
    mask_BCHW = F.grid_sample(
        mask_BHW[:, None].float(), grid_BHW2, mode="nearest", align_corners=True
    )
    return apply_density_maps(image_BCHW, density_map_B34), mask_BCHW[:, 0].round().byte()


def apply_density_maps(image_BCHW: Tensor, density_map_B34: Tensor) -> Tensor:
    """As crops.apply_density_map, of floats 0 to 255; gives (B, H, W, 3) uint8."""
    density_BCHW = -torch.log((image_BCHW + 1) / 256)
    red, green, blue = density_BCHW[..., None].unbind(dim=1)
    of_red, of_green, of_blue, shift = density_map_B34[:, None, None].unbind(dim=-1)
    density_BHWC = of_red * red + of_green * green + of_blue * blue + shift
    return (256 * torch.exp(-density_BHWC) - 1).round().clamp(0, 255).byte()
