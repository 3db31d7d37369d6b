"""Bands on disk: blended to what the whole image gives, kept for the same settings only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.images.arrays import Box
from model.precision import Precision, choose_precision
from train.config import TileConfig
from train.prediction.predicted_bands import CERTAIN, PredictedBands, save_array, shrink
from train.prediction.tiles import Blend, cut_into_bands, predict_probability, predict_tiles


class Edgy(nn.Module):
    """Logits of two classes that depend on 9 x 9 px, the outside being black."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return 8 * F.avg_pool2d(image_BCHW[:, :2], 9, stride=1, padding=4) - 3


@pytest.fixture
def plain() -> Precision:
    return choose_precision(torch.device("cpu"), "off", "contiguous")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (170, 75, 3), dtype=np.uint8)


@pytest.fixture
def filled(tmp_path: Path, plain: Precision, image: np.ndarray) -> Callable[..., PredictedBands]:
    """A store with the bands of the image, each computed by itself."""

    def fill(tile: TileConfig, most_px: int, shrink: int = 1) -> PredictedBands:
        bands = cut_into_bands(*image.shape[:2], tile, 1, most_px)
        store = PredictedBands(tmp_path / "store", bands, shrink)
        store.begin({})
        for number, band in enumerate(bands):
            part_HWC, blend = image[band.top : band.bottom], Blend(band, 2, plain.device)
            for tile_result in predict_tiles(Edgy(), part_HWC, band.corners, band.size, 3, plain):
                blend.add(*tile_result)
            stored = np.rint(blend.result().numpy() * CERTAIN).astype(np.uint16)
            store.save(number, stored, part_HWC)
        return store

    return fill


@pytest.mark.parametrize(
    ("rows", "tile"),
    [
        (1, TileConfig(32, 16)),
        (2, TileConfig(32, 10)),
        (1, TileConfig(32, 0)),
        (100, TileConfig(32, 10)),
    ],
)
def test_bands_blend_to_the_probability_of_the_whole(
    rows: int,
    tile: TileConfig,
    filled: Callable[..., PredictedBands],
    plain: Precision,
    image: np.ndarray,
) -> None:
    store = filled(tile, most_px=(32 + (rows - 1) * 22) * 75)
    assert (len(store.bands) == 1) == (rows == 100)
    expected_CHW = predict_probability(Edgy(), image, tile, plain)
    for channel in range(2):
        whole_HW = store.probability(channel, Box(0, 0, 75, 170))
        assert whole_HW == pytest.approx(expected_CHW[channel], abs=1e-5)
    part_HW = store.probability(1, Box(11, 20, 30, 41))
    assert part_HW == pytest.approx(expected_CHW[1, 20:61, 11:41], abs=1e-5)


@pytest.mark.parametrize(("factor", "overlap_px"), [(1, 0), (3, 10), (4, 0)])
def test_the_picture_is_the_whole_image_shrunk(
    overlap_px: int, factor: int, filled: Callable[..., PredictedBands], image: np.ndarray
) -> None:
    """But for the rows where a band without overlap ends inside a pixel of the picture."""
    store = filled(TileConfig(32, overlap_px), most_px=1, shrink=factor)
    picture, expected = store.picture(), shrink(image, factor)
    assert picture.shape == (-(-170 // factor), -(-75 // factor), 3)
    differing = (picture != expected).any(axis=(1, 2)).sum()
    assert differing == 0 if factor == 1 or overlap_px else differing < len(store.bands)


def test_shrinking_takes_the_mean() -> None:
    image_HWC = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    expected = image_HWC.astype(float).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrink(image_HWC, 2) - expected).max() <= 0.5
    assert shrink(image_HWC[:3, :3], 2).shape == (2, 2, 3)


def test_only_bands_of_the_same_settings_are_kept(filled: Callable[..., PredictedBands]) -> None:
    store = filled(TileConfig(32, 10), most_px=1)
    store.begin({})
    assert all(store.has(number) for number in range(len(store.bands)))
    store.begin({"tta": True})
    assert not any(store.has(number) for number in range(len(store.bands)))


def test_only_what_is_kept_here_is_cleared_away(
    filled: Callable[..., PredictedBands], tmp_path: Path
) -> None:
    store = filled(TileConfig(32, 10), most_px=1)
    (store.folder / "notes.npy").write_text("mine")
    (store.folder / "mine").mkdir()
    (store.folder / "mine" / "0000.npy").write_text("mine")
    (tmp_path / "0001.npy").write_text("mine")
    (store.folder / "0099.npy").symlink_to(tmp_path / "0001.npy")
    store.remove()
    assert sorted(path.name for path in store.folder.iterdir()) == ["0099.npy", "mine", "notes.npy"]
    assert (store.folder / "mine" / "0000.npy").exists()


def test_bands_without_settings_are_not_trusted(filled: Callable[..., PredictedBands]) -> None:
    """As where the clearing of other settings' bands was interrupted."""
    store = filled(TileConfig(32, 10), most_px=1)
    (store.folder / "settings.json").unlink()
    store.begin({})
    assert not store.has(0)


def test_a_band_that_was_killed_while_it_was_written_is_not_there(
    filled: Callable[..., PredictedBands], kills: Callable[..., object], tmp_path: Path
) -> None:
    """At whatever instant: what counts as there can be read, and is the same."""
    store = filled(TileConfig(200, 10), most_px=1)
    expected = np.load(store.file(0))
    empty = tmp_path / "empty"
    empty.mkdir()

    def save(folder: Path) -> None:
        again = PredictedBands(folder / "again", store.bands, 1)
        again.begin({})
        again.save(0, expected, np.zeros((170, 75, 3), np.uint8))

    there = []
    for folder in kills(empty, save):  # type: ignore[attr-defined]
        killed = PredictedBands(folder / "again", store.bands, 1)
        there.append(killed.has(0))
        if killed.has(0):
            assert np.array_equal(np.load(killed.file(0)), expected)
            assert killed.picture().shape == (170, 75, 3)
    assert there[-1]
    assert not there[0]


@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 4), (7,)])
def test_an_array_is_saved_as_numpy_does(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    for number, view in enumerate((array, array.T)):
        save_array(tmp_path / f"{number}.npy", view)
        read = np.load(tmp_path / f"{number}.npy")
        assert (read.dtype, read.shape) == (view.dtype, view.shape)
        np.testing.assert_array_equal(read, view)


def test_a_full_disk_is_told_with_the_file(small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/disk/0000.npy'"):
        save_array(small_disk / "0000.npy", np.zeros(2**17, np.uint8))
    assert not [*small_disk.iterdir()]
