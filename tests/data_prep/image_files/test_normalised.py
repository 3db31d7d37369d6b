"""Files read with the stains of a reference: the same px whole, in parts and of every kind."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from data_prep.image_files import normalised
from data_prep.image_files.normalised import open_normalised, sampled, stains_of
from data_prep.image_files.open_image import open_image
from data_prep.image_files.tif_image import TifImage
from data_prep.images.arrays import Box
from data_prep.images.macenko import Conversion, estimate
from data_prep.images.rescaling import of_size
from tests.data_prep.images.stained import ONE, OTHER, draw

WHITE = 65535
DRAWN = draw(ONE, 700, 900)
KINDS = {
    "strips.tif": {"rowsperstrip": 7, "compression": "zlib"},
    "tiles.tif": {"tile": (64, 64), "compression": "zlib"},
    "plain.tif": {},
    "a.png": {},
}


def save(path: Path, image_HWC: np.ndarray) -> Path:
    if path.suffix == ".png":
        cv2.imwrite(str(path), image_HWC[..., ::-1])
    else:
        tifffile.imwrite(path, image_HWC, photometric="rgb", **KINDS.get(path.name, {}))
    return path


def boxes(height: int, width: int, side: int) -> list[Box]:
    return [
        Box(x, y, min(side, width - x), min(side, height - y))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("whole_px", [2**24, 2**10])
def test_parts_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, whole_px: int
) -> None:
    """Each part by a file opened anew, also where only parts of the image are looked at."""
    monkeypatch.setattr(normalised, "WHOLE_PX", whole_px)
    stains_of.cache_clear()
    path = save(tmp_path / name, DRAWN)
    with open_normalised(path, WHITE, OTHER) as image:
        whole_HWC = image.read(image.whole)
        own = stains_of(path, WHITE, (path.stat().st_mtime_ns, path.stat().st_size))
        assert not isinstance(own, str)
        assert image.not_normalised == ""
    np.testing.assert_array_equal(whole_HWC, Conversion(own, OTHER)(DRAWN))
    assert np.abs(whole_HWC.astype(int) - draw(OTHER, 700, 900)).max() <= 5
    for box in boxes(700, 900, 500):
        stains_of.cache_clear()
        with open_normalised(path, WHITE, OTHER) as image:
            expected_HWC = whole_HWC[box.y : box.y + box.height, box.x : box.x + box.width]
            np.testing.assert_array_equal(image.read(box), expected_HWC)


def test_every_kind_of_file_is_looked_at_in_the_same_px(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 700 x 900 px that are too many, parts of 128 x 128 px at multiples of 256."""
    monkeypatch.setattr(normalised, "WHOLE_PX", 2**18)
    parts = [DRAWN[y : y + 128, x : x + 128] for y in (0, 256) for x in (0, 256, 512)]
    expected_N3 = np.concatenate([part.reshape(-1, 3) for part in parts])
    for name in KINDS:
        with open_image(save(tmp_path / name, DRAWN)) as image:
            np.testing.assert_array_equal(sampled(image), expected_N3)


def test_strips_are_read_once_for_all_parts_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles are read for their part alone."""
    monkeypatch.setattr(normalised, "WHOLE_PX", 2**18)
    boxes_read: list[Box] = []
    read = TifImage.read

    def noting(image: TifImage, box: Box) -> np.ndarray:
        boxes_read.append(box)
        return read(image, box)

    monkeypatch.setattr(TifImage, "read", noting)
    for name, number, width in (("strips.tif", 2, 900), ("tiles.tif", 6, 128)):
        boxes_read.clear()
        with open_image(save(tmp_path / name, DRAWN)) as image:
            sampled(image)
        assert [(box.width, box.height) for box in boxes_read] == [(width, 128)] * number


def test_of_many_px_every_fourth_of_every_fourth_row_is_looked_at(tmp_path: Path) -> None:
    """1360 x 1024 px are 10.6 times 2^17."""
    field_HWC = draw(ONE, 1024, 1360)
    with open_image(save(tmp_path / "plain.tif", field_HWC)) as image:
        np.testing.assert_array_equal(sampled(image), field_HWC[::4, ::4].reshape(-1, 3))


def test_a_narrow_strip_is_looked_at_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(normalised, "WHOLE_PX", 2**10)
    with open_image(save(tmp_path / "tiles.tif", DRAWN[:90])) as image:
        parts = [DRAWN[:90, x : x + 128].reshape(-1, 3) for x in (0, 256, 512)]
        np.testing.assert_array_equal(sampled(image), np.concatenate(parts))


def test_rescaling_comes_after(tmp_path: Path) -> None:
    """So the stains are those of the file, at whatever resolution it is read."""
    path = save(tmp_path / "plain.tif", DRAWN)
    with open_normalised(path, WHITE, OTHER) as image:
        whole_HWC = image.read(image.whole)
        half = of_size(image, 350, 450)
        made_HWC = half.read(half.whole)
    other = save(tmp_path / "other.tif", whole_HWC)
    with open_image(other) as image:
        half = of_size(image, 350, 450)
        np.testing.assert_array_equal(made_HWC, half.read(half.whole))


def test_the_smaller_level_of_a_pyramid_has_the_same_stains(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    small_HWC = draw(ONE, 175, 225, seed=1)
    with tifffile.TiffWriter(path) as tif:
        tif.write(DRAWN, subifds=1, photometric="rgb", tile=(64, 64))
        tif.write(small_HWC, subfiletype=1, photometric="rgb", tile=(64, 64))
    with open_normalised(path, WHITE, OTHER) as image:
        conversion = Conversion(estimate(DRAWN[::3, ::3].reshape(-1, 3)), OTHER)
        overview_HWC = image.overview(4, 10**6)
        assert overview_HWC is not None
        np.testing.assert_array_equal(overview_HWC, conversion(small_HWC))
        assert image.overview(2, 10**6) is None


def test_an_image_without_tissue_keeps_its_colours(tmp_path: Path) -> None:
    glass_HWC = np.random.default_rng(0).integers(225, 256, (200, 300, 3), np.uint8)
    with open_normalised(save(tmp_path / "plain.tif", glass_HWC), WHITE, OTHER) as image:
        np.testing.assert_array_equal(image.read(image.whole), glass_HWC)
        assert image.not_normalised == "too little tissue"
    with open_normalised(tmp_path / "plain.tif", WHITE, None) as image:
        assert image.not_normalised == ""


def test_a_file_that_was_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", DRAWN)
    for drawn in (DRAWN, draw(OTHER, 700, 900, seed=2)):
        save(path, drawn)
        with open_normalised(path, WHITE, ONE) as image:
            own = estimate(drawn[::3, ::3].reshape(-1, 3))
            np.testing.assert_array_equal(image.read(image.whole), Conversion(own, ONE)(drawn))
