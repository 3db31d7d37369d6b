"""Bands as they are read: tissue found in a pyramid's smaller level, and glass left unread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from data_prep.image_files.open_image import read_image
from data_prep.raw import BadInputError
from tests.data_prep.images.stained import STRONGEST, half_pale
from train import predict
from train.config import TileConfig
from train.prediction.band_reader import BandReader, boxes_with
from train.prediction.result_files import Task
from train.prediction.tiles import cut_into_bands

HEIGHT, WIDTH = 300, 500
SEGMENT = 64
TILE = TileConfig(48, 8)


def drawn() -> np.ndarray:
    """Glass, but for an island of noisy tissue at x = 200 to 330, y = 90 to 230."""
    rng = np.random.default_rng(0)
    image_HWC = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    image_HWC[90:230, 200:330] = rng.integers(60, 180, (140, 130, 3))
    return image_HWC


def write_pyramid(path: Path, image_HWC: np.ndarray, shrinks: tuple[int, ...]) -> None:
    """As OME-TIFs have their levels."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (SEGMENT, SEGMENT)}
    with tifffile.TiffWriter(path) as tif:
        tif.write(image_HWC, subifds=len(shrinks), compression="zlib", **options)
        for shrink in shrinks:
            size = -(-WIDTH // shrink), -(-HEIGHT // shrink)
            level_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
            tif.write(level_HWC, subfiletype=1, compression="zlib", **options)


def spoil(path: Path, is_spoilt: Callable[[int, int], bool]) -> int:
    """Overwrite segments of the full resolution, given their tops and lefts; how many."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        across = -(-WIDTH // SEGMENT)
        places = [
            (offset, count)
            for number, (offset, count) in enumerate(
                zip(page.dataoffsets, page.databytecounts, strict=True)
            )
            if is_spoilt(number // across * SEGMENT, number % across * SEGMENT)
        ]
    content = bytearray(path.read_bytes())
    for offset, count in places:
        content[offset : offset + count] = b"?" * count
    path.write_bytes(content)
    return len(places)


def task_of(path: Path, most_px: int) -> Task:
    bands = cut_into_bands(HEIGHT, WIDTH, TILE, 1, most_px)
    return Task(path, path.parent, HEIGHT, WIDTH, bands, {})


def tissue_tiles(reader: BandReader, task: Task) -> set[tuple[int, int]]:
    """Top and left in the image of all tiles that are not glass."""
    return {
        (band.top + top, left) for band in task.bands for top, left in reader.read(task, band)[1]
    }


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part may be as small as a segment."""
    monkeypatch.setattr("train.prediction.band_reader.LEAST_PX", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("most_px", [1, 100_000, 10**9])
def test_of_a_pyramid_the_tiles_of_glass_are_not_read(most_px: int, tmp_path: Path) -> None:
    """Only what is within a tile and a segment of the island may be decoded: the rest is spoilt."""
    image_HWC, path = drawn(), tmp_path / "slide.tif"
    write_pyramid(path, image_HWC, (2, 3))
    far = SEGMENT + TILE.size_px + 3  # a px of the overview
    num = spoil(path, lambda y, x: not (90 - far < y < 230 + 51 and 200 - far < x < 330 + 51))
    assert num > 15
    with pytest.raises(BadInputError):
        read_image(path)
    task, reader = task_of(path, most_px), BandReader(65535, 0.01)
    for band in task.bands:
        band_HWC, tissue = reader.read(task, band)
        assert band_HWC.shape == (*band.shape, 3)
        for top, left in tissue:
            there = band.top + top
            expected = image_HWC[there : there + 48, left : left + 48]
            assert np.array_equal(band_HWC[top : top + 48, left : left + 48], expected)
        rest = np.abs(band_HWC.astype(int) - image_HWC[band.top : band.bottom])
        assert (rest > 0).any(axis=-1).mean() < 0.02  # at the island's edge, in the overview


def test_tissue_is_the_same_in_the_smaller_level_and_in_the_image(tmp_path: Path) -> None:
    """Tiles that begin at 0, 42, 84, ... down and 0, 41, 82, 123, ... across: by hand, those with
    a pixel in the island; a tile's whole area is seen, so a sliver of 1% is not missed."""
    write_pyramid(tmp_path / "pyramid.tif", drawn(), (2,))
    tifffile.imwrite(tmp_path / "flat.tif", drawn(), photometric="rgb", tile=(64, 64))
    tiles = {
        name: tissue_tiles(BandReader(65535, 0.01), task_of(tmp_path / f"{name}.tif", 1))
        for name in ("pyramid", "flat")
    }
    expected = {
        (top, left)
        for band in task_of(tmp_path / "flat.tif", 1).bands
        for top, left in ((band.top, left) for left in band.lefts)
        if top + 48 > 92 and top < 228 and left + 48 > 202 and left < 328
    }
    assert tiles["pyramid"] == tiles["flat"] == expected


@pytest.mark.parametrize("shrinks", [(), (2,)])
def test_what_is_predicted_is_told_by_the_colours_of_the_scan(
    shrinks: tuple[int, ...], tmp_path: Path
) -> None:
    """Of an image and of a pyramid, whatever the reference."""
    image_HWC, path = half_pale(HEIGHT, WIDTH), tmp_path / "a.tif"
    write_pyramid(path, image_HWC, shrinks)
    task = task_of(path, 10**9)
    found = [BandReader(65535, 0.01, each).read(task, task.bands[0]) for each in (None, STRONGEST)]
    (_, tissue), (_, as_normalised) = found
    assert {left for _, left in tissue} == {
        left for left in task.bands[0].lefts if left < WIDTH // 2
    }
    assert as_normalised == tissue
    assert (found[0][0] != found[1][0]).any()


@pytest.mark.parametrize(
    ("shrinks", "min_tissue", "most_px", "reads_all"),
    [
        ((), 0.01, 2**26, True),  # no pyramid
        ((2, 3), 0.0, 2**26, True),  # all is to be computed
        ((4,), 0.01, 2**26, True),  # 12 px along a tile: too few to judge it by
        ((2,), 0.01, 250 * 150 - 1, True),  # a level too large to be held
        ((2,), 0.01, 250 * 150, False),
        ((2, 4), 0.01, 2**26, False),
    ],
)
def test_where_there_is_no_level_to_judge_by_all_is_read(
    shrinks: tuple[int, ...],
    min_tissue: float,
    most_px: int,
    reads_all: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.prediction.band_reader.MOST_PX", most_px)
    write_pyramid(tmp_path / "slide.tif", drawn(), shrinks)
    spoil(tmp_path / "slide.tif", lambda y, x: (y, x) == (0, 0))
    task, reader = task_of(tmp_path / "slide.tif", 1), BandReader(65535, min_tissue)
    if reads_all:
        with pytest.raises(BadInputError):
            reader.read(task, task.bands[0])
    else:
        assert reader.read(task, task.bands[0])[1] == []


def test_a_damaged_overview_is_an_error_and_no_glass(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "slide.tif", drawn(), (2,))
    content = (tmp_path / "slide.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "slide.tif") as tif:
        level = tif.series[0].levels[1].keyframe
        offset, count = level.dataoffsets[0], level.databytecounts[0]
    spoilt = content[:offset] + b"?" * count + content[offset + count :]
    (tmp_path / "slide.tif").write_bytes(spoilt)
    task = task_of(tmp_path / "slide.tif", 1)
    with pytest.raises(BadInputError):
        BandReader(65535, 0.01).read(task, task.bands[0])


@pytest.mark.parametrize(
    ("least_px", "segment"), [(1, (64, 64)), (100, (1, WIDTH)), (1, (256, 512)), (100, (40, 24))]
)
def test_parts_cover_the_tiles_and_no_segment_twice(
    least_px: int, segment: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random tiles of random bands."""
    monkeypatch.setattr("train.prediction.band_reader.LEAST_PX", least_px)
    rng = np.random.default_rng(0)
    for band in cut_into_bands(HEIGHT, WIDTH, TILE, 1, 130 * WIDTH):
        corners = [corner for corner in band.corners if rng.random() < 0.2]
        seen_HW = np.zeros((HEIGHT, WIDTH), int)
        decoded: list[tuple[int, int]] = []
        for box in boxes_with(band, corners, segment):
            assert band.top <= box.y < box.y + box.height <= band.bottom
            seen_HW[box.y : box.y + box.height, box.x : box.x + box.width] += 1
            decoded += [
                (row, column)
                for row in range(box.y // segment[0], -(-(box.y + box.height) // segment[0]))
                for column in range(box.x // segment[1], -(-(box.x + box.width) // segment[1]))
            ]
        assert seen_HW.max() <= 1
        assert len(set(decoded)) == len(decoded)
        for top, left in corners:
            assert seen_HW[band.top + top :, left:][:48, :48].all()
        assert not boxes_with(band, [], segment)


@pytest.mark.usefixtures("small_parts")
def test_a_slide_whose_glass_is_spoilt_is_predicted(
    trained: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """With the results of the intact one; computing all of it finds the damage."""
    for name in ("intact", "spoilt"):
        folder = tmp_path / name
        folder.mkdir()
        write_pyramid(folder / "slide.tif", drawn(), (2, 3))
    assert spoil(tmp_path / "spoilt" / "slide.tif", lambda y, x: x >= 448 or y == 0) == 12
    masks = []
    for name in ("intact", "spoilt"):
        out = tmp_path / f"{name}_out"
        given = [f"run={trained}", f"input={tmp_path / name}", f"out={out}", "threshold=0.3"]
        assert cli(predict.main, *given).code == 0
        masks.append(
            [tifffile.imread(out / f"slide_{kind}.tif") for kind in ("mask", "probability")]
        )
    assert np.array_equal(masks[0], masks[1])
    assert masks[0][1].any()
    outcome = cli(predict.main, *given, "min_tissue=0")
    assert outcome.code == 1
    assert "left out" in outcome.err
