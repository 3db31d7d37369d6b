"""Tiles cover a field, blend as worked out by hand, and leave no seam."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import TileConfig
from train.precision import Precision, choose_precision
from train.tiles import blend_weight, predict_probability, tile_starts


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


@pytest.mark.parametrize("size_px", [7, 16, 31])
@pytest.mark.parametrize("overlap_px", [0, 1, 3])
def test_tiles_cover_every_length_and_overlap_enough(size_px: int, overlap_px: int) -> None:
    for length_px in range(1, 120):
        starts = tile_starts(length_px, size_px, overlap_px)
        if length_px <= size_px:
            assert starts == [0]
            continue
        assert starts[0] == 0
        assert starts[-1] + size_px == length_px
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= size_px - overlap_px).all()
        # and no tile more than it takes
        assert (len(starts) - 2) * (size_px - overlap_px) + size_px < length_px


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


@pytest.mark.parametrize(("height", "width"), [(50, 70), (32, 33), (31, 100), (5, 3)])
@pytest.mark.parametrize("tile", [TileConfig(32, 0), TileConfig(32, 16), TileConfig(32, 5, 3)])
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


@pytest.mark.parametrize("overlap_px", [0, 7, 15])
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
