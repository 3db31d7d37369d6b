"""Group 4: sound data is read as Pillow wrote it, damaged data is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from data_prep.image_files.open_image import open_image
from data_prep.images.arrays import Box
from data_prep.raw import BadInputError
from tests.fuzz.pictures import IS_DARK
from tests.fuzz.tif_structure import Entry, Tif


def written(pixels_HW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels_HW).save(buffer, "TIFF", compression="group4")
    return buffer.getvalue()


def read(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    with open_image(path) as file:
        return file.read_labels(Box(0, 0, file.width_px, file.height_px))


@pytest.mark.parametrize("seed", range(3))
def test_sound_data_is_read(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels_HW = rng.random((50, 37 + 1000 * seed)) < (0.5, 0.02, 0.9)[seed]
    assert np.array_equal(read(tmp_path / "a.tif", written(pixels_HW)), pixels_HW)


def test_damaged_data_is_refused_or_read_as_others_read_it(tmp_path: Path) -> None:
    content = written(IS_DARK)
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        start, size = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    num_read = 0
    for bit in range(0, 8 * (size - 3), 5):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 128 >> bit % 8
        try:
            pixels_HW = read(tmp_path / "a.tif", bytes(damaged))
        except BadInputError:
            continue
        num_read += 1
        assert np.array_equal(pixels_HW, PillowImage.open(io.BytesIO(damaged)))
    assert num_read > 10


def test_another_width_than_that_of_the_data_is_refused(tmp_path: Path) -> None:
    tif = Tif(written(IS_DARK))
    (page,) = tif.pages()
    narrow = tuple(Entry(256, 4, 1, b"\1\0\0\0") if e.tag == 256 else e for e in page.entries)
    with pytest.raises(BadInputError, match="Group 4"):
        read(tmp_path / "a.tif", tif.with_page(page, narrow, 0))
