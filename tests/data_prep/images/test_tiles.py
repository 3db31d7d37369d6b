"""Images too large for one field: cut to covering tiles, with their points, without glass."""

import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from common.command_line import UserError
from common.workers import WorkerError
from data_prep.config import AugmentConfig, PrepConfig, ScaleConfig, SplitConfig
from data_prep.dataset.manifest import Sample, read_dataset
from data_prep.image_files.open_image import open_image, read_image, read_size
from data_prep.images.arrays import Box
from data_prep.images.tiles import (
    Tile,
    cut,
    inside_only,
    outside_only,
    pixels_of,
    points_in,
    tissue_fraction,
)
from data_prep.prepare import Summary, prepare
from tests.points import as_lists, as_points

pytestmark = pytest.mark.usefixtures("warm_workers")

HEIGHT, WIDTH, RADIUS = 600, 1000, 10
POINTS = [(30, 40), (255, 255), (256, 255), (511, 300), (980, 590), (700, 300), (505, 310)]


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"),
    [(1000, 1000, 256, 0), (1000, 1300, 256, 64), (256, 700, 256, 0), (100, 700, 256, 10)],
)
def test_tiles_cover_an_image_with_their_overlap(
    height: int, width: int, size: int, overlap: int
) -> None:
    covered = np.zeros((height, width), int)
    boxes = [tile.box for tile in cut(height, width, size, overlap)]
    for box in boxes:
        assert (box.height, box.width) == (min(size, height), min(size, width))
        assert 0 <= box.x <= width - box.width
        assert 0 <= box.y <= height - box.height
        covered[box.y : box.y + box.height, box.x : box.x + box.width] += 1
    assert covered.min() == 1
    xs = sorted({box.x for box in boxes})
    assert all(after - before <= size - overlap for before, after in pairwise(xs))


def read_part(path: Path, box: Box) -> np.ndarray:
    """A part of an image file."""
    with open_image(path) as image:
        return image.read(box)


def test_a_point_keeps_its_pixel_and_comes_to_every_tile_it_lies_in_or_reaches() -> None:
    tile = Tile(Box(256, 0, 256, 200), HEIGHT, WIDTH)
    points = as_points({"tumor": [(300, 100), (250, 100), (100, 100), (300, 590)], "lumen": []})
    # 250 is 6 px to the left; the others are far away
    assert as_lists(points_in(points, tile)) == {"tumor": [(44, 100), (-6, 100)], "lumen": []}


def test_a_point_is_the_pixel_that_it_lies_in_and_on_the_far_edge_the_last() -> None:
    from_corner_N2 = np.array([(0.0, 0.0), (29.0, 58.99), (WIDTH, HEIGHT)])
    tile = Tile(Box(256, 0, 256, 200), HEIGHT, WIDTH)
    found = pixels_of(from_corner_N2, tile)
    assert found.tolist() == [[0, 0], [29, 58], [WIDTH - 1, HEIGHT - 1]]


def test_inside_are_the_points_in_a_pixel_of_the_picture() -> None:
    """The first pixel begins at -0.5, the last of 10 ends at 9.5, where the next would begin."""
    inside = [(-0.5, -0.5), (0.0, 3.0), (9.49, 3.49)]
    outside = [(-0.51, 2.0), (9.5, 2.0), (2.0, -0.51), (2.0, 3.5)]
    points = as_points({"tumor": [*outside, *inside], "lumen": outside, "mitosis": []})
    assert as_lists(inside_only(points, 4, 10)) == {"tumor": inside, "lumen": [], "mitosis": []}
    found = as_lists(outside_only(points, 4, 10))
    assert found == {"tumor": outside, "lumen": outside, "mitosis": []}


def test_glass_has_no_tissue() -> None:
    rng = np.random.default_rng(0)
    glass = rng.integers(225, 256, (80, 80, 3), np.uint8)
    stained = np.full((80, 80, 3), (190, 120, 170), np.uint8)
    assert tissue_fraction(glass) == 0
    assert tissue_fraction(stained) == 1
    half = glass.copy()
    half[:40] = stained[:40]
    assert tissue_fraction(half) == 0.5


@pytest.fixture
def slide() -> np.ndarray:
    """Tissue of noise, but for glass right of x = 600; every pixel tells where it is."""
    picture = np.random.default_rng(0).integers(60, 180, (HEIGHT, WIDTH, 3), np.uint8)
    picture[:, 600:] = 245
    return picture


def write_slide(folder: Path, picture: np.ndarray, **options: object) -> Path:
    (folder / "raw").mkdir(exist_ok=True)
    tifffile.imwrite(folder / "raw/Slide_1-1.tif", picture, photometric="rgb", **options)
    tumor = [{"x": (x + 0.5) / WIDTH, "y": (y + 0.5) / HEIGHT} for x, y in POINTS]
    (folder / "raw/Slide_1-1.json").write_text(json.dumps({"tumor": tumor}))
    return folder / "raw"


def prepare_slide(raw: Path, out: Path, **settings: object) -> Summary:
    augment = AugmentConfig(transforms=["horizontal_flip"])
    given = {"tile_px": 256, "copies": 1, "format": "png", "workers": 2, "radius_px": RADIUS}
    given |= {"split": SplitConfig(val=0, test=0), "augment": augment} | settings
    return prepare(PrepConfig(raw=str(raw), out=str(out), **given))  # type: ignore[arg-type]


def test_a_slide_becomes_fields_of_its_case(slide: np.ndarray, tmp_path: Path) -> None:
    raw = write_slide(tmp_path, slide, tile=(64, 64), compression="deflate")
    summary = prepare_slide(raw, tmp_path / "out")
    # 4 x 3 tiles start at x 0, 248, 496, 744 and y 0, 172, 344; those at 744 are glass, but for
    # the one with the point (980, 590)
    assert summary.num_glass == 2
    assert len(summary.samples) == 10
    assert {sample.case for sample in summary.samples} == {"Slide_1"}
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth = np.any([(x - px) ** 2 + (y - py) ** 2 <= RADIUS**2 for px, py in POINTS], axis=0)
    for sample in summary.samples:
        top, left = corner(sample)
        part = (slice(top, top + 256), slice(left, left + 256))
        image = np.asarray(Image.open(tmp_path / "out" / sample.image))
        mask = np.asarray(Image.open(tmp_path / "out" / sample.mask))
        assert np.array_equal(image, slide[part])
        assert np.array_equal(mask > 0, truth[part]), "discs reach in from other tiles"
        points = json.loads((tmp_path / "out" / sample.points).read_text())["tumor"]
        inside = {(px, py) for px, py in POINTS if 0 <= px - left < 256 and 0 <= py - top < 256}
        found = {(int(p["x"] * 256) + left, int(p["y"] * 256) + top) for p in points}
        assert found == inside


@pytest.mark.parametrize("mask_mode", ["redraw", "warp"])
def test_a_variant_has_what_its_tile_shows_of_a_disc_beside_it(
    tmp_path: Path, mask_mode: str
) -> None:
    """Black discs on grey, whose middles lie in the tile or in the next one: the mask is black."""
    radius, height, width = 20, 256, 500
    y, x = np.mgrid[:height, :width]
    points = [(262, 60), (266, 128), (272, 200), (100, 100), (251, 20), (295, 128)]
    discs_HW = np.any([(x - px) ** 2 + (y - py) ** 2 <= radius**2 for px, py in points], axis=0)
    raw = tmp_path / "raw"
    raw.mkdir()
    picture = np.where(discs_HW, 0, 128).astype(np.uint8)
    tifffile.imwrite(raw / "a_1-1.tif", np.stack([picture] * 3, -1), photometric="rgb")
    tumor = [{"x": (px + 0.5) / width, "y": (py + 0.5) / height} for px, py in points]
    (raw / "a_1-1.json").write_text(json.dumps({"tumor": tumor}))
    augment = AugmentConfig(
        transforms=["scale", "rotation"], scale=ScaleConfig(min=0.7, max=0.7), border="mirror"
    )
    settings = {"augment": augment, "copies": 5, "min_tissue": 0.0, "radius_px": radius}
    samples = prepare_slide(raw, tmp_path / "out", mask_mode=mask_mode, **settings).samples
    left = [sample for sample in samples if sample.field.endswith("_x0_y0")]
    assert len(left) == 5
    for sample in left:
        dark_HW = np.asarray(Image.open(tmp_path / "out" / sample.image))[..., 0] < 64
        mask_HW = np.asarray(Image.open(tmp_path / "out" / sample.mask)) > 0
        if mask_mode == "warp" or sample.variant == 0:
            # pixels of the outline may fall to either side
            assert np.mean(dark_HW != mask_HW) < 0.01
        for point in json.loads((tmp_path / "out" / sample.points).read_text())["tumor"]:
            assert dark_HW[int(point["y"] * 256), int(point["x"] * 256)]
        num_parts, part_HW = cv2.connectedComponents(mask_HW.astype(np.uint8))
        assert set(np.unique(part_HW[dark_HW])) >= {*range(1, num_parts)}, "a disc on plain grey"


def corner(sample: Sample) -> tuple[int, int]:
    """(y, x) of a tile, from its field's name."""
    _, x, y = sample.field.rsplit("_", 2)
    return int(y.removeprefix("y")), int(x.removeprefix("x"))


def test_images_no_larger_than_a_tile_stay_whole(slide: np.ndarray, tmp_path: Path) -> None:
    raw = write_slide(tmp_path, slide)
    (sample,) = prepare_slide(raw, tmp_path / "out", tile_px=1000).samples
    assert (sample.field, sample.width_px) == ("Slide_1-1", 1000)


def test_only_tiles_of_changed_settings_and_slides_are_redone(
    slide: np.ndarray, tmp_path: Path
) -> None:
    raw = write_slide(tmp_path, slide)
    prepare_slide(raw, tmp_path / "out")
    assert prepare_slide(raw, tmp_path / "out").num_reused == 12, "glass is known as glass"
    # of 251 px in steps, they start where those of 256 did
    assert prepare_slide(raw, tmp_path / "out", tile_overlap_px=5).num_reused == 12
    unseen = AugmentConfig(transforms=["barrel"])
    assert prepare_slide(raw, tmp_path / "out", augment=unseen).num_reused == 12
    smaller = prepare_slide(raw, tmp_path / "out", tile_px=255)
    assert smaller.num_reused == 0, "a tile of the same name that ends elsewhere"
    assert {sample.width_px for sample in smaller.samples} == {255}
    prepare_slide(raw, tmp_path / "out")
    untouched = prepare_slide(raw, tmp_path / "out", min_tissue=0.0)
    assert (untouched.num_reused, untouched.num_glass) == (0, 0)
    write_slide(tmp_path, slide[::-1].copy())
    assert prepare_slide(raw, tmp_path / "out").num_reused == 0


def test_a_split_of_nothing_but_glass_is_told_as_that(tmp_path: Path) -> None:
    raw, tissue = tmp_path / "raw", np.full((100, 100), 100, np.uint8)
    raw.mkdir()
    for name, picture in (("a-1", tissue), ("a-2", tissue), ("b-1", np.full_like(tissue, 245))):
        tifffile.imwrite(raw / f"{name}.tif", picture)
    (raw / "points.csv").write_text("file,x,y,class\na-1,5,5,t\na-2,5,200,t\nb-1,,,\n")
    given = {"annotations": "csv", "classes": ["t"], "on_error": "skip", "tile_px": 64}
    given["split"] = SplitConfig(val=0, test_cases=["b"])
    with pytest.raises(UserError) as caught:
        prepare_slide(raw, tmp_path / "out", **given)
    first, second, bad = str(caught.value).splitlines()
    assert first.startswith("nothing of the test split (b) is left: its tiles are glass, ")
    assert "min_tissue=0.1" in first
    assert "split.test_cases=[...]" in first
    assert second == "Left out as bad:"
    assert bad.startswith("  points.csv: line 3 (a-2): y = 200 is outside the image")
    assert len(prepare_slide(raw, tmp_path / "out", **given, min_tissue=0).samples) == 4 + 4
    assert len(prepare_slide(raw, tmp_path / "out", **given | {"tile_px": 0}).samples) == 2


@pytest.mark.parametrize(
    "write",
    [
        lambda slide, path: tifffile.imwrite(path.with_suffix(".tif"), slide, photometric="rgb"),
        lambda slide, path: tifffile.imwrite(
            path.with_suffix(".tif"), slide, rowsperstrip=7, compression="lzw", photometric="rgb"
        ),
        lambda slide, path: Image.fromarray(slide).save(path.with_suffix(".png")),
        lambda slide, path: Image.fromarray(slide).save(path.with_suffix(".jpg")),
    ],
    ids=["tif", "strips", "png", "jpg"],
)
def test_a_part_is_read_of_every_kind_of_file(
    slide: np.ndarray, tmp_path: Path, write: Callable[[np.ndarray, Path], None]
) -> None:
    write(slide, tmp_path / "a")
    (path,) = tmp_path.iterdir()
    assert read_size(path) == (HEIGHT, WIDTH)
    part = read_part(path, Box(100, 50, 200, 120))
    assert np.array_equal(part, read_image(path)[50:170, 100:300])


def test_a_tile_of_a_large_tif_takes_the_memory_of_a_tile(tmp_path: Path) -> None:
    """450 MB of pixels, read under a limit of 300 MB for new memory."""
    raw = tmp_path / "raw"
    raw.mkdir()
    path = raw / "Slide_1-1.tif"
    tile = np.random.default_rng(0).integers(60, 180, (512, 512, 3), np.uint8)
    shape = (12_288, 12_288, 3)
    tifffile.imwrite(
        path,
        (tile for _ in range(24 * 24)),
        shape=shape,
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="jpeg",
    )
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    read_part(path, Box(0, 0, 64, 64))  # imports
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, hard))
    try:
        part = read_part(path, Box(10_000, 9_000, 700, 300))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    expected = np.tile(tile, (2, 3, 1))[9_000 % 512 :, 10_000 % 512 :][:300, :700]
    assert np.abs(part.astype(int) - expected).mean() < 40  # JPEG of noise
    assert part.shape == (300, 700, 3)


def test_what_is_too_large_for_one_field_says_how_to_cut_it(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    tifffile.imwrite(raw / "Slide_1-1.tif", np.full((40, 33_000), 100, np.uint8))
    (raw / "Slide_1-1.json").write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
    with pytest.raises(Exception, match=r"33000 x 40 px.*tile_px=1024") as caught:
        prepare_slide(raw, tmp_path / "out", tile_px=0)
    assert not isinstance(caught.value, WorkerError)
    summary = prepare_slide(raw, tmp_path / "out", tile_px=1024)
    assert len(summary.samples) == len(read_dataset(tmp_path / "out").samples) == 33


def test_of_an_image_in_one_strip_only_the_part_is_read(tmp_path: Path) -> None:
    """27 MB as cameras' software writes them: not compressed, one strip."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", image_HWC, photometric="rgb", rowsperstrip=3000)
    tracemalloc.start()
    part = read_part(tmp_path / "large.tif", Box(20, 1000, 2900, 100))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(part, image_HWC[1000:1100, 20:2920])
    assert part.flags.writeable
    assert most_bytes < 5e6
