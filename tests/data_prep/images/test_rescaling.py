"""Images at another resolution: the same bytes by any box, at the right place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_prep.image_files.open_image import open_image
from data_prep.images import rescaling
from data_prep.images.arrays import Box
from data_prep.images.image_file import ImageFile
from data_prep.images.rescaling import Axis, Rescaled, at_resolution, resample
from data_prep.raw import BadInputError


@contextmanager
def opened(folder: Path, pixels: np.ndarray, mpp: float | None = None) -> Iterator[ImageFile]:
    """An open TIF in tiles with these pixels."""
    tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    path = folder / "a.tif"
    tifffile.imwrite(path, pixels, photometric=photometric, tile=(16, 16), **tags)
    with open_image(path) as image:
        yield image


@pytest.mark.parametrize("seed", range(12))
def test_every_box_has_the_bytes_of_the_whole(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of several blocks, read in several pieces, by factors of 1/7 to 4."""
    monkeypatch.setattr(rescaling, "BLOCK_PX", 16)
    monkeypatch.setattr(rescaling, "MOST_PX", 1500)
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2).tolist()
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    factor = float(np.exp(rng.uniform(np.log(1 / 7), np.log(4))))
    with opened(tmp_path, pixels) as image:
        size = max(1, round(height * factor)), max(1, round(width * factor))
        rescaled = Rescaled(image, *size)
        whole = rescaled.read(rescaled.whole)
        assert whole.shape == (*size, 3)
        assert whole.dtype == np.uint8
        for _ in range(20):
            (top, bottom), (left, right) = (
                sorted(rng.choice(length + 1, 2, replace=False).tolist()) for length in size
            )
            box = Box(left, top, right - left, bottom - top)
            assert np.array_equal(rescaled.read(box), whole[top:bottom, left:right])
    with opened(tmp_path, pixels[..., 0]) as image:
        rescaled = Rescaled(image, *size)
        labels = rescaled.read_labels(rescaled.whole)
        assert np.array_equal(rescaled.read_labels(box), labels[top:bottom, left:right])


@pytest.mark.parametrize("size", [(96, 150), (31, 50), (130, 203), (64, 100)])
def test_the_image_is_that_of_another_program(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow resizes it as a whole; ours differs by roundings of ties, one a direction."""
    monkeypatch.setattr(rescaling, "BLOCK_PX", 16)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    with opened(tmp_path, pixels) as image:
        rescaled = Rescaled(image, *size)
        found = rescaled.read(rescaled.whole)
    expected = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("target", [25, 40, 80, 130])
def test_a_slope_stays_where_it_is(target: int) -> None:
    """A px holds the place of its middle in the source: (i + 1/2) n / m - 1/2, but at the ends."""
    slope = np.tile(np.arange(50, dtype=np.float32), (3, 1))

    def read(box: Box) -> np.ndarray:
        return slope[box.y : box.y + box.height, box.x : box.x + box.width]

    found = resample(read, Axis(3, 3), Axis(50, target), Box(0, 1, target, 1))
    expected = (np.arange(target) + 0.5) * 50 / target - 0.5
    inner = slice(target // 12, -(target // 12))
    assert found[0][inner] == pytest.approx(expected[inner], abs=0.05)


def test_what_is_fine_is_averaged_when_it_shrinks(tmp_path: Path) -> None:
    """Black and white columns become grey, not stripes."""
    columns = np.tile(np.array([0, 255], np.uint8), (40, 40))
    with opened(tmp_path, np.stack([columns] * 3, axis=-1)) as image:
        shrunk = Rescaled(image, 20, 40).read(Box(2, 2, 30, 10))
    assert (np.abs(shrunk.astype(int) - 127) <= 33).all()


def test_labels_are_those_of_the_nearest_px(tmp_path: Path) -> None:
    """Worked out by hand: of 4 px, the middles of 6 lie at 1/3, 1, 5/3, 7/3, 3, 11/3; of 2 at 1
    and 3."""
    labels = np.tile(np.array([10, 20, 30, 40], np.uint8), (2, 1))
    with opened(tmp_path, labels) as image:
        wide, narrow = Rescaled(image, 2, 6), Rescaled(image, 2, 2)
        assert wide.read_labels(wide.whole)[0].tolist() == [10, 20, 20, 30, 40, 40]
        assert narrow.read_labels(narrow.whole)[0].tolist() == [20, 40]


def test_only_what_is_known_to_differ_is_rescaled(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    with opened(tmp_path, pixels, mpp=0.5) as image:
        assert image.mpp == pytest.approx(0.5)
        for wanted in (None, 0.0, 0.5, 0.503):
            assert at_resolution(image, wanted, 0.25) is image
        doubled = at_resolution(image, 0.25, 0.25)
        assert (doubled.height_px, doubled.width_px) == (80, 120)
        assert doubled.mpp == pytest.approx(0.25)
        with pytest.raises(BadInputError, match=r"enlarged 50 times, and at most 10"):
            at_resolution(image, 0.01, 0)
    with opened(tmp_path, pixels) as image:
        assert at_resolution(image, 0.25, 0) is image
        assert at_resolution(image, 0.25, 1.0).width_px == 240


def test_the_overview_is_that_of_the_file(tmp_path: Path) -> None:
    """Levels of 256, 128 and 64 px: of the image at twice its size, a px of the second level stands
    for 4 px."""
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as tif:
        for level, side in enumerate((256, 128, 64)):
            pixels = np.full((side, side, 3), level, np.uint8)
            about = {"subifds": 2} if level == 0 else {"subfiletype": 1}
            tif.write(pixels, photometric="rgb", tile=(32, 32), **about)
    with open_image(path) as image:
        rescaled = Rescaled(image, 512, 512)
        for most_shrink, level in ((3.9, None), (4, 1), (7.9, 1), (8, 2)):
            found = rescaled.overview(most_shrink, 2**20)
            assert (None if found is None else found[0, 0, 0]) == level
