"""Tiles cover a field, blend as worked out by hand, and leave no seam."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import build_model
from model.config import ModelConfig
from model.precision import Precision, choose_precision
from train.config import TileConfig
from train.prediction.tiles import (
    blend_weight,
    cut_into_bands,
    predict_probability,
    predict_tiles,
    stride_of,
    tile_starts,
)


class Network(nn.Module):
    """A function of the image as a network, which notes the shapes it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.shapes = function, list[tuple[int, ...]]()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        self.shapes.append(tuple(image_BCHW.shape))
        return self.function(image_BCHW)


@pytest.fixture
def plain() -> Precision:
    return choose_precision(torch.device("cpu"), "off", "contiguous")


def draw(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size_px", "overlap_px", "grid_px"), [(7, 0, 1), (7, 3, 4), (16, 1, 4), (31, 3, 1)]
)
def test_tiles_cover_every_length_and_overlap_enough(
    size_px: int, overlap_px: int, grid_px: int
) -> None:
    for length_px in range(1, 120):
        starts = tile_starts(length_px, size_px, overlap_px, grid_px)
        if length_px <= size_px:
            assert starts == [0]
            continue
        assert starts[0] == 0
        assert starts[-1] + size_px == length_px
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= size_px - overlap_px).all()
        assert all(start % grid_px == 0 for start in starts[:-1])
        # and no tile more than it takes
        step_px = (size_px - overlap_px) // grid_px * grid_px
        assert (len(starts) - 2) * step_px + size_px < length_px


def test_a_grid_wider_than_a_tile_has_beside_its_overlap_is_not_kept() -> None:
    """Steps of 4 px at most: 12 px take three."""
    assert tile_starts(20, 8, 4, 32) == [0, 4, 8, 12]


def test_tiles_of_the_network_agree_with_the_whole_image(plain: Precision) -> None:
    """Off their edges by what it sees, 10 px; two of three would begin at an odd px by half."""
    torch.manual_seed(0)
    network = build_model(ModelConfig(width=4, depth=1)).eval()
    image_HWC, tile = draw(158, 64), TileConfig(64, 16)
    tiles_HW = predict_probability(network, image_HWC, tile, plain)[0]
    whole_HW = predict_probability(network, image_HWC, TileConfig(158, 0), plain)[0]
    assert tile_starts(158, 64, 16) == [0, 47, 94]
    (band,) = cut_into_bands(158, 64, tile, stride_of(network), most_px=158 * 64)
    assert band.tops == (0, 46, 94)
    inner = [*range(36), *range(74, 84), *range(120, 158)]
    assert tiles_HW[inner] == pytest.approx(whole_HW[inner], abs=1e-6)


@pytest.mark.parametrize(
    ("length", "overlap_px", "expected"),
    [
        (5, 0, [1, 1, 1, 1, 1]),
        (5, 1, [1 / 2, 1, 1, 1, 1 / 2]),
        (6, 2, [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]),
    ],
)
def test_a_tiles_weight_falls_to_its_edges(
    length: int, overlap_px: int, expected: list[float]
) -> None:
    weight_HW = blend_weight((1, length), overlap_px)
    assert weight_HW[0] / weight_HW.max() == pytest.approx(expected)
    square = blend_weight((length, length), overlap_px)
    assert square == pytest.approx(np.outer(expected, expected))


def test_two_tiles_blend_as_worked_out(plain: Precision) -> None:
    """Tiles at 0 and 2 of 6 px say 0 and 1: two thirds and one third of each where both are."""
    answers = iter([-200.0, 200.0])
    network = Network(lambda image: torch.full_like(image[:, :1], next(answers)))
    probability_CHW = predict_probability(network, draw(1, 6), TileConfig(4, 2), plain)
    assert probability_CHW[0, 0] == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [
        (50, 70, TileConfig(32, 16)),
        (32, 33, TileConfig(32, 0)),
        (31, 100, TileConfig(32, 5, 3)),
        (5, 3, TileConfig(32, 5, 3)),
    ],
)
def test_a_network_of_single_pixels_gives_the_same_in_tiles(
    height: int, width: int, tile: TileConfig, plain: Precision
) -> None:
    """Logits of two classes: red and blue, from -4 to 4. Also where tiles go three at once."""
    image_HWC = draw(height, width)
    network = Network(lambda image: 8 * image[:, [0, 2]] - 4)
    probability_CHW = predict_probability(network, image_HWC, tile, plain)
    expected = 1 / (1 + np.exp(4 - 8 * image_HWC[..., [0, 2]].astype(float) / 255))
    assert probability_CHW.dtype == np.float32
    assert probability_CHW == pytest.approx(np.moveaxis(expected, -1, 0), abs=1e-6)


def blended_in_two_dimensions(
    network: Network, image_HWC: np.ndarray, tile: TileConfig
) -> np.ndarray:
    """The mean of all tiles weighted by the smaller distance to an edge, written out."""
    height, width = image_HWC.shape[:2]
    tall, wide = min(tile.size_px, height), min(tile.size_px, width)

    def ramp(length: int, place: int) -> float:
        return min(1, (min(place, length - 1 - place) + 1) / (tile.overlap_px + 1))

    weight = np.array([[ramp(tall, y) * ramp(wide, x) for x in range(wide)] for y in range(tall)])
    total, weights = np.zeros((height, width)), np.zeros((height, width))
    for top in tile_starts(height, tile.size_px, tile.overlap_px):
        for left in tile_starts(width, tile.size_px, tile.overlap_px):
            part = slice(top, top + tall), slice(left, left + wide)
            given = torch.from_numpy(image_HWC[part]).permute(2, 0, 1)[None] / 255
            total[part] += weight * torch.sigmoid(network(given))[0, 0].numpy()
            weights[part] += weight
    return total / weights


def mean_of_81() -> Network:
    """A network whose tiles differ at their edges, where the outside counts as black."""
    return Network(lambda image: 8 * F.avg_pool2d(image[:, :1], 9, stride=1, padding=4) - 3)


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [
        (90, 70, TileConfig(32, 16, 4)),
        (33, 100, TileConfig(32, 5)),
        (33, 70, TileConfig(32, 0)),
    ],
)
def test_a_field_is_blended_as_in_two_dimensions(
    height: int, width: int, tile: TileConfig, plain: Precision
) -> None:
    image_HWC = draw(height, width)
    expected_HW = blended_in_two_dimensions(mean_of_81(), image_HWC, tile)
    probability_CHW = predict_probability(mean_of_81(), image_HWC, tile, plain)
    assert probability_CHW[0] == pytest.approx(expected_HW, abs=1e-5)


@pytest.mark.parametrize(("most_px", "expected"), [(1, [1] * 6), (72 * 50, [2] * 3), (10**9, [6])])
def test_bands_have_as_many_rows_of_tiles_as_fit(most_px: int, expected: list[int]) -> None:
    """Six rows of 32 px at 0, 22, 44, ... over 50 px: a row has 32 x 50 px, two rows 54 x 50."""
    bands = cut_into_bands(32 + 5 * 22, 50, TileConfig(32, 10), 1, most_px)
    assert [len(band.tops) for band in bands] == expected
    assert [top for band in bands for top in band.tops] == [0, 22, 44, 66, 88, 110]
    assert [corner for corner in bands[-1].corners if corner[0] == 0] == [(0, 0), (0, 18)]
    assert bands[-1].bottom == 142
    assert all(band.shape == (band.bottom - band.top, 50) for band in bands)


def test_augmentation_is_the_mean_over_the_eight_ways_to_lay_a_tile(plain: Precision) -> None:
    """A network that sees top and left: its answers turned back by hand, on a tile not square."""

    def slanted(image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        slope = torch.arange(height)[:, None] * 0.2 + torch.arange(width) * 0.03
        return (image_BCHW[:, :1] - 0.5) * slope

    image_HWC = draw(12, 20)
    ((corner, probability_CHW),) = predict_tiles(
        Network(slanted), image_HWC, [(0, 0)], (12, 20), 1, plain, tta=True
    )
    expected = np.zeros((12, 20))
    for transpose in (False, True):
        for step in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            red = image_HWC[:: step[0], :: step[1], 0] / 255
            red = red.T if transpose else red
            slope = 0.2 * np.arange(red.shape[0])[:, None] + 0.03 * np.arange(red.shape[1])
            seen = 1 / (1 + np.exp(-(red - 0.5) * slope))
            seen = seen.T if transpose else seen
            expected += seen[:: step[0], :: step[1]] / 8
    assert corner == (0, 0)
    assert probability_CHW[0].numpy() == pytest.approx(expected, abs=1e-6)


def test_without_augmentation_a_tile_goes_through_once(plain: Precision) -> None:
    network = Network(lambda image: image[:, :1])
    list(predict_tiles(network, draw(8, 16), [(0, 0), (0, 8)], (8, 8), 1, plain))
    assert network.shapes == [(1, 3, 8, 8)] * 2


@pytest.mark.parametrize("overlap_px", [0, 7])
def test_what_a_tiles_edge_gets_wrong_is_blended_away(overlap_px: int, plain: Precision) -> None:
    """A 3 x 3 mean that takes the outside for black is wrong by a third at the edge of a tile.

    The edge has a weight of 1 in (overlap + 1), so a white field stays white but for that share.
    """

    def mean_of_9(image_BCHW: Tensor) -> Tensor:
        mean = F.avg_pool2d(image_BCHW[:, :1], 3, stride=1, padding=1)
        return torch.logit(0.9 * mean)

    white_HWC = np.full((64, 192, 3), 255, np.uint8)
    tile = TileConfig(64, overlap_px)
    probability_CHW = predict_probability(Network(mean_of_9), white_HWC, tile, plain)
    error = np.abs(probability_CHW[0, 1:-1, 1:-1] - 0.9).max()
    assert error <= 0.9 / 3 / (overlap_px + 1) + 1e-6
    if not overlap_px:
        assert error == pytest.approx(0.3)  # the seam that the overlap takes away


@pytest.mark.parametrize(("height", "width"), [(20, 30), (1, 1), (20, 100)])
def test_tiles_end_at_the_fields_border(height: int, width: int, plain: Precision) -> None:
    """A field that is smaller than a tile goes in as it is."""
    network = Network(lambda image: image[:, :1])
    predict_probability(network, draw(height, width), TileConfig(64, 16), plain)
    assert set(network.shapes) == {(1, 3, min(height, 64), min(width, 64))}


def test_a_batch_of_tiles_goes_through_at_once(plain: Precision) -> None:
    network = Network(lambda image: image[:, :1])
    predict_probability(network, draw(64, 64 + 4 * 48), TileConfig(64, 16, batch=2), plain)
    assert [shape[0] for shape in network.shapes] == [2, 2, 1]


def test_nothing_is_kept_for_gradients(plain: Precision) -> None:
    weight = torch.ones(1, requires_grad=True)
    tracked = []
    network = Network(lambda image: tracked.append((weight * image).requires_grad) or image[:, :1])
    predict_probability(network, draw(8, 8), TileConfig(), plain)
    assert tracked == [False]


@pytest.mark.parametrize("settings", [(16, 9, 1), (16, -1, 1), (16, 4, 0), (0, 0, 1), (-4, 0, 1)])
def test_tiles_that_cannot_be_are_refused(settings: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"tile.size_px={settings[0]}"):
        TileConfig(*settings)
