"""A network over an image of any size, in overlapping tiles blended smoothly.

The tiles lie on a grid, and a tile's weight is the product of a ramp over its height and one over
its width. So rows of tiles can be blended by themselves (a `Band`), and bands with one another.

A network that halves its input sees an image on a grid of its own: moved by a px it answers
differently, moved by its stride it does not. So tiles start at multiples of that, and agree (where
the network has no norm over the whole of a tile).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_prep.images.tiles import tile_starts
from model.precision import Precision
from train.config import TileConfig

Array = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Corner = tuple[int, int]
"""Top and left of a tile, in px."""


@dataclass(frozen=True)
class Band:
    """Rows of tiles, over the whole width of an image: what goes through the network as one."""

    tops: tuple[int, ...]
    """Where its rows begin, in px from the image's top."""
    lefts: tuple[int, ...]
    size: tuple[int, int]
    """Height and width of a tile, in px."""
    overlap_px: int

    @property
    def top(self) -> int:
        """The first of the image's rows that it covers."""
        return self.tops[0]

    @property
    def bottom(self) -> int:
        """The row behind its last."""
        return self.tops[-1] + self.size[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in px."""
        return self.bottom - self.top, self.lefts[-1] + self.size[1]

    @property
    def corners(self) -> list[Corner]:
        """Its tiles, from its own top."""
        return [(top - self.top, left) for top in self.tops for left in self.lefts]

    def row_weight(self) -> Plane:
        """What its tiles weigh together in each of its rows."""
        return summed_ramps(self.tops, self.size[0], self.overlap_px)

    def column_weight(self) -> Plane:
        """What its tiles weigh together in each column."""
        return summed_ramps(self.lefts, self.size[1], self.overlap_px)


def stride_of(model: nn.Module) -> int:
    """How far an image may be moved for the network to answer alike, in px."""
    stride: int = getattr(model, "stride", 1)
    return stride


def cut_into_bands(
    height: int, width: int, tile: TileConfig, stride_px: int, most_px: int
) -> list[Band]:
    """Bands that cover an image: as many rows of tiles each as fit into `most_px`, one at least."""
    size = min(tile.size_px, height), min(tile.size_px, width)
    tops, lefts = (
        tile_starts(length, tile.size_px, tile.overlap_px, stride_px) for length in (height, width)
    )
    groups: list[list[int]] = []
    for top in tops:
        if groups and (top + size[0] - groups[-1][0]) * width <= most_px:
            groups[-1].append(top)
        else:
            groups.append([top])
    return [Band(tuple(tops), tuple(lefts), size, tile.overlap_px) for tops in groups]


def predict_probability(
    model: nn.Module, image_HWC: Array, tile: TileConfig, precision: Precision
) -> Plane:
    """uint8 RGB field -> probability of each class, (C, H, W) float32.

    Tiles overlap by at least `tile.overlap_px` and end at the field's border; where they overlap,
    a tile's weight falls off linearly to its edge, so that no seam shows.
    """
    height, width = image_HWC.shape[:2]
    (band,) = cut_into_bands(height, width, tile, stride_of(model), most_px=height * width)
    tiles = list(predict_tiles(model, image_HWC, band.corners, band.size, tile.batch, precision))
    blend = Blend(band, len(tiles[0][1]), precision.device)
    for corner, probability_CHW in tiles:
        blend.add(corner, probability_CHW)
    return blend.result().cpu().numpy()


@torch.no_grad()
def predict_tiles(
    model: nn.Module,
    image_HWC: Array,
    corners: Sequence[Corner],
    size: tuple[int, int],
    at_once: int,
    precision: Precision,
    tta: bool = False,
) -> Iterator[tuple[Corner, Tensor]]:
    """Each tile's probability of each class, (C, h, w) float32 on the model's device.

    `at_once` tiles go through the network together. With `tta` the result is the mean over the
    tile's eight flips and quarter turns.
    """
    image = torch.from_numpy(np.require(image_HWC, requirements="W"))  # or torch warns
    image = image.to(precision.device, non_blocking=True)
    for start in range(0, len(corners), at_once):
        batch = corners[start : start + at_once]
        tiles = [image[top : top + size[0], left : left + size[1]] for top, left in batch]
        input_BCHW = precision.image_to_input(torch.stack(tiles))
        probability = mean_of_turns if tta else tile_probability
        yield from zip(batch, probability(model, input_BCHW, precision), strict=True)


def tile_probability(model: nn.Module, input_BCHW: Tensor, precision: Precision) -> Tensor:
    """The probability that the network gives for its input, (B, C, H, W) float32."""
    with precision.autocast():
        logits = model(input_BCHW)
    return torch.sigmoid(logits.float())


def mean_of_turns(model: nn.Module, input_BCHW: Tensor, precision: Precision) -> Tensor:
    """The mean over the input's eight flips and quarter turns, each result turned back."""
    seen = []
    for turns, flipped in itertools.product(range(4), (False, True)):
        turned = torch.rot90(input_BCHW, turns, (-2, -1))
        turned = turned.flip(-1) if flipped else turned
        turned = turned.contiguous(memory_format=precision.memory_format)
        probability = tile_probability(model, turned, precision)
        probability = probability.flip(-1) if flipped else probability
        seen.append(torch.rot90(probability, -turns, (-2, -1)))
    return torch.stack(seen).mean(dim=0)


class Blend:
    """The weighted mean of a band's tiles; a tile that is never added counts as 0."""

    def __init__(self, band: Band, num_classes: int, device: torch.device) -> None:
        self.band = band
        self.weight_HW = torch.from_numpy(blend_weight(band.size, band.overlap_px)).to(device)
        self.total_CHW = torch.zeros((num_classes, *band.shape), device=device)

    def add(self, corner: Corner, probability_CHW: Tensor) -> None:
        """Add a tile."""
        (top, left), (height, width) = corner, self.band.size
        part = self.total_CHW[:, top : top + height, left : left + width]
        part.addcmul_(probability_CHW, self.weight_HW)

    def result(self) -> Tensor:
        """(C, H, W) float32, on the device. Call it once."""
        for weight in (self.band.row_weight()[:, None], self.band.column_weight()):
            self.total_CHW /= torch.from_numpy(weight).to(self.total_CHW.device)
        return self.total_CHW


def blend_weight(size: tuple[int, int], overlap_px: int) -> Plane:
    """(H, W) float32: 1 inside, falling linearly over the overlap towards the tile's edges."""
    return np.outer(*(ramp(length, overlap_px) for length in size)).astype(np.float32)


def ramp(length: int, overlap_px: int) -> Plane:
    """1 inside, falling linearly over the overlap towards both ends."""
    to_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(1, to_edge / (overlap_px + 1)).astype(np.float32)


def summed_ramps(starts: Sequence[int], length: int, overlap_px: int) -> Plane:
    """The sum of the ramps that begin at `starts`, counted from the first."""
    total = np.zeros(starts[-1] - starts[0] + length, np.float32)
    for start in starts:
        total[start - starts[0] : start - starts[0] + length] += ramp(length, overlap_px)
    return total
