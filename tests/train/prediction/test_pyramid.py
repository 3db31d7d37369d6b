"""Pyramids: every level as worked out, through tifffile and through Pillow, in bounded memory."""

import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from train.prediction.pyramid import halve_labels, halve_values, level_shapes, write_pyramid


def draw(planes: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (planes, height, width), dtype=np.uint8)


def test_levels_halve_until_they_are_small() -> None:
    assert level_shapes((1, 1024, 700)) == [(1, 1024, 700)]
    assert level_shapes((2, 1025, 4000)) == [(2, 1025, 4000), (2, 513, 2000), (2, 257, 1000)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("labels", (1, 1500, 1025)), ("values", (3, 1025, 2100)), ("values", (1, 1, 1))],
)
def test_every_level_is_read_back_as_worked_out(
    kind: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    planes_CHW = draw(*shape)
    names = ["tumor", "mitosis", "lumen"][: shape[0]]
    halve = halve_labels if kind == "labels" else halve_values
    file = tmp_path / "out.tif"
    write_pyramid(file, shape, lambda plane, a, b: planes_CHW[plane, a:b], halve, names)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]
    with tifffile.TiffFile(file) as tif:
        (series,) = tif.series
        assert tif.is_ome
        assert all(name in tif.ome_metadata for name in names)
        assert [level.shape for level in series.levels] == [
            given if shape[0] > 1 else given[1:] for given in level_shapes(shape)
        ]
        assert all(level.keyframe.is_tiled for level in series.levels)
        assert all(level.keyframe.compression.name == "ADOBE_DEFLATE" for level in series.levels)
        assert len(tif.pages) == shape[0]  # the levels are SubIFDs
        expected = planes_CHW
        for level in series.levels:
            read = level.asarray().reshape(expected.shape)
            assert np.abs(read.astype(int) - expected).max() <= (kind == "values")
            expected = half(read, kind)


def half(planes_CHW: np.ndarray, kind: str) -> np.ndarray:
    """By numpy alone."""
    if kind == "labels":
        return planes_CHW[:, ::2, ::2]
    even = np.pad(planes_CHW, [(0, 0), *((0, n % 2) for n in planes_CHW.shape[1:])], mode="edge")
    planes, height, width = even.shape
    return even.reshape(planes, height // 2, 2, width // 2, 2).astype(float).mean(axis=(2, 4))


def test_another_library_reads_the_full_resolution(tmp_path: Path) -> None:
    (plane_HW,) = planes_CHW = draw(1, 1300, 600)
    write_pyramid(
        tmp_path / "out.tif",
        planes_CHW.shape,
        lambda plane, a, b: planes_CHW[plane, a:b],
        halve_values,
        ["tumor"],
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.tif")), plane_HW)


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """24 MB of pixels pass through a few strips of 0.5 MB."""
    strip = draw(1, 512, 1024)[0]
    most_bytes = {}
    for height in (512 * 8, 512 * 48):
        tracemalloc.start()
        write_pyramid(
            tmp_path / "out.tif",
            (1, height, 1024),
            lambda plane, a, b: strip[: b - a],
            halve_values,
            ["tumor"],
        )
        most_bytes[height] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    small, large = most_bytes.values()
    assert large < small + 2e6


def test_a_class_with_any_name_makes_a_header_that_parsers_take(tmp_path: Path) -> None:
    """As a table of a stranger may name it."""
    planes_CHW, file = draw(2, 8, 8), tmp_path / "out.tif"
    names = ['a\x1b[2J\0\x08<b>&"', "é\ud800\ufffe"]
    write_pyramid(file, (2, 8, 8), lambda plane, a, b: planes_CHW[plane, a:b], halve_values, names)
    with tifffile.TiffFile(file) as tif:
        root = ElementTree.fromstring(tif.ome_metadata)
    channels = [entry.get("Name") for entry in root.iter() if entry.tag.endswith("}Channel")]
    assert channels == [r"a\x1b[2J\x00\x08" + '<b>&"', r"é\xd800\xfffe"]
