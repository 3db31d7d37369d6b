"""A network over a whole field, in overlapping tiles blended smoothly."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_prep.tiles import tile_starts
from train.config import TileConfig
from train.precision import Precision

Array = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


@torch.no_grad()
def predict_probability(
    model: nn.Module, image_HWC: Array, tile: TileConfig, precision: Precision
) -> Plane:
    """uint8 RGB field of any size -> probability of each class, (C, H, W) float32.

    Tiles overlap by at least `tile.overlap_px` and end at the field's border; where they overlap,
    a tile's weight falls off linearly to its edge, so that no seam shows.
    """
    height, width = image_HWC.shape[:2]
    size = min(tile.size_px, height), min(tile.size_px, width)
    weight_HW = blend_weight(size, tile.overlap_px)
    corners = [
        (top, left)
        for top in tile_starts(height, tile.size_px, tile.overlap_px)
        for left in tile_starts(width, tile.size_px, tile.overlap_px)
    ]
    total_CHW: Plane | None = None
    weights_HW = np.zeros((height, width), np.float32)
    for batch in batches(corners, tile.batch):
        cuts = [(slice(top, top + size[0]), slice(left, left + size[1])) for top, left in batch]
        image_BHWC = torch.from_numpy(np.stack([image_HWC[cut] for cut in cuts]))
        with precision.autocast():
            logits_BCHW = model(precision.image_to_input(image_BHWC))
        probability_BCHW = torch.sigmoid(logits_BCHW.float()).cpu().numpy()
        if total_CHW is None:
            total_CHW = np.zeros((probability_BCHW.shape[1], height, width), np.float32)
        for cut, probability_CHW in zip(cuts, probability_BCHW, strict=True):
            total_CHW[:, *cut] += probability_CHW * weight_HW
            weights_HW[cut] += weight_HW
    assert total_CHW is not None
    return total_CHW / weights_HW


def blend_weight(size: tuple[int, int], overlap_px: int) -> Plane:
    """(H, W) float32: 1 inside, falling linearly over the overlap towards the tile's edges."""
    ramps = []
    for length in size:
        to_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        ramps.append(np.minimum(1, to_edge / (overlap_px + 1)))
    return np.outer(*ramps).astype(np.float32)


def batches(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Runs of `size` corners."""
    for start in range(0, len(corners), size):
        yield corners[start : start + size]
