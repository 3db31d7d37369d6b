"""Apply a network to an image of any size, in overlapping tiles that are blended smoothly.

The tiles lie on a grid, and a tile's weight is the product of a ramp over its height and one over
its width. So rows of tiles can be blended by themselves (a `Band`), and then the bands.

A network that halves its input gives another answer for an image that is moved by a px, and the
same for one that is moved by its stride. So tiles start at multiples of the stride, and agree where
they overlap, farther from their edges than the network looks.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_prep.images.tiles import tile_starts
from model.ensemble import Ensemble
from model.precision import Precision
from train.config import TileConfig

Array = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Corner = tuple[int, int]
"""Top and left of a tile, in px."""


@dataclass(frozen=True)
class Band:
    """Rows of tiles over the whole width of an image, which are blended together."""

    tops: tuple[int, ...]
    """First px of each of its rows of tiles, from the image's top."""
    lefts: tuple[int, ...]
    size: tuple[int, int]
    """Height and width of a tile, in px."""
    overlap_px: int

    @property
    def top(self) -> int:
        """The first px row of the image that it covers."""
        return self.tops[0]

    @property
    def bottom(self) -> int:
        """The px row after its last."""
        return self.tops[-1] + self.size[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in px."""
        return self.bottom - self.top, self.lefts[-1] + self.size[1]

    @property
    def corners(self) -> list[Corner]:
        """Top and left of its tiles, counted from its own top."""
        return [(top - self.top, left) for top in self.tops for left in self.lefts]

    def row_weight(self) -> Plane:
        """Sum the weights of its tiles in each of its px rows."""
        return summed_ramps(self.tops, self.size[0], self.overlap_px)

    def column_weight(self) -> Plane:
        """Sum the weights of its tiles in each px column."""
        return summed_ramps(self.lefts, self.size[1], self.overlap_px)


def stride_of(model: nn.Module) -> int:
    """Return by how many px an image may be moved without another answer of the network."""
    stride: int = getattr(model, "stride", 1)
    return stride


def cut_into_bands(
    height: int, width: int, tile: TileConfig, stride_px: int, most_px: int
) -> list[Band]:
    """Cut an image into bands of as many rows of tiles as fit into `most_px`, one at least."""
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
    model: nn.Module,
    image_HWC: Array,
    tile: TileConfig,
    precision: Precision,
    tta: bool = False,
) -> Plane:
    """Return the probability of each class, (C, H, W) float32, of an image, HWC uint8 RGB.

    Tiles overlap by at least `tile.overlap_px` and end at the image's border. Where they overlap, a
    tile's weight falls linearly to its edge, so that no seam shows. `tta`: see predict_tiles.
    """
    height, width = image_HWC.shape[:2]
    (band,) = cut_into_bands(height, width, tile, stride_of(model), most_px=height * width)
    how = tile.batch, precision, tta
    tiles = list(predict_tiles(model, image_HWC, band.corners, band.size, *how))
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
    """Yield each tile's probability of each class, (C, h, w) float32 on the model's device.

    `at_once` tiles go through the network together. With `tta` the result is the mean over the
    eight flips and quarter turns of the tile. That of an ensemble is the mean over its members.
    """
    image = torch.from_numpy(np.require(image_HWC, requirements="W"))  # or torch warns
    image = image.to(precision.device, non_blocking=True)
    for start in range(0, len(corners), at_once):
        batch = corners[start : start + at_once]
        tiles = [image[top : top + size[0], left : left + size[1]] for top, left in batch]
        input_BCHW = precision.image_to_input(torch.stack(tiles))
        yield from zip(batch, mean_of_members(model, input_BCHW, precision, tta), strict=True)


def mean_of_members(
    model: nn.Module, input_BCHW: Tensor, precision: Precision, tta: bool
) -> Tensor:
    """Apply a network, or each member of an ensemble; return the probability, (B, C, H, W)."""
    probability = mean_of_turns if tta else tile_probability
    if not isinstance(model, Ensemble):
        return probability(model, input_BCHW, precision)
    first, *others = (
        probability(member, input_BCHW, precision) for member in model.in_turn(precision.device)
    )
    return sum(others, first) / len(model.members)  # added up in the order of the members


def tile_probability(model: nn.Module, input_BCHW: Tensor, precision: Precision) -> Tensor:
    """Apply the network to its input; return the probability, (B, C, H, W) float32."""
    with precision.autocast():
        logits = model(input_BCHW)
    return torch.sigmoid(logits.float())


def mean_of_turns(model: nn.Module, input_BCHW: Tensor, precision: Precision) -> Tensor:
    """Average over the eight flips and quarter turns of the input, each result turned back."""
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
    """Computes the weighted mean of a band's tiles; a tile that is never added counts as 0."""

    def __init__(self, band: Band, num_classes: int, device: torch.device) -> None:
        self.band = band
        self.weight_HW = torch.from_numpy(blend_weight(band.size, band.overlap_px)).to(device)
        self.total_CHW = torch.zeros((num_classes, *band.shape), device=device)

    def add(self, corner: Corner, probability_CHW: Tensor) -> None:
        """Add a tile, (C, h, w) float32."""
        (top, left), (height, width) = corner, self.band.size
        covered = self.total_CHW[:, top : top + height, left : left + width]
        covered.addcmul_(probability_CHW, self.weight_HW)

    def result(self) -> Tensor:
        """Return the mean, (C, H, W) float32 on the device. Call it once."""
        for weight in (self.band.row_weight()[:, None], self.band.column_weight()):
            self.total_CHW /= torch.from_numpy(weight).to(self.total_CHW.device)
        return self.total_CHW


def blend_weight(size: tuple[int, int], overlap_px: int) -> Plane:
    """Return a tile's weight, (H, W) float32: 1 inside, falling linearly to its edges."""
    return np.outer(*(ramp(length, overlap_px) for length in size)).astype(np.float32)


def ramp(length: int, overlap_px: int) -> Plane:
    """Return (length,) float32: 1 inside, falling linearly over the overlap to both ends."""
    to_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(1, to_edge / (overlap_px + 1)).astype(np.float32)


def summed_ramps(starts: Sequence[int], length: int, overlap_px: int) -> Plane:
    """Sum ramps that begin at `starts`, from the first start to the last end, float32."""
    total = np.zeros(starts[-1] - starts[0] + length, np.float32)
    for start in starts:
        total[start - starts[0] : start - starts[0] + length] += ramp(length, overlap_px)
    return total
