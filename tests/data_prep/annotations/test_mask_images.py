"""Ready masks: what values mean, whatever they are stored as, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from common.command_line import UsageError
from data_prep.annotations.mask_images import MaskImageReader
from data_prep.annotations.reader import Annotation
from data_prep.config import PrepConfig
from data_prep.image_files import png_jpg
from data_prep.images.arrays import Box
from data_prep.images.tiles import Tile, whole
from data_prep.raw import BadFile, BadInputError, Field
from tests.points import as_lists

READER = MaskImageReader()
HEIGHT, WIDTH = 40, 60


@pytest.fixture
def labels() -> np.ndarray:
    """Two areas of class 1, one touching the border, and one of class 2."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[0:5, 0:7] = 1
    labels[10:21, 20:31] = 1
    labels[30:33, 40:43] = 2
    return labels


def read(path: Path, values: dict[str, int], tile: Tile | None = None) -> Annotation:
    parsed = READER.parse(Field("a-1", "a", path, path))
    return READER.annotation_in(parsed, tile or whole(HEIGHT, WIDTH), values)


def palette_png(path: Path, labels: np.ndarray) -> None:
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    image.save(path)


def palette_tif(path: Path, labels: np.ndarray) -> None:
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, labels, photometric="palette", colormap=colours)


WRITERS: dict[str, Any] = {
    "grey.png": lambda path, labels: Image.fromarray(labels).save(path),
    "palette.png": palette_png,
    "16_bit.png": lambda path, labels: path.write_bytes(
        imagecodecs.png_encode(labels.astype(np.uint16))
    ),
    "grey.tif": tifffile.imwrite,
    "palette.tif": palette_tif,
    "one_bit.tif": lambda path, labels: Image.fromarray(labels > 0).save(path),
    "32_bit.tiff": lambda path, labels: tifffile.imwrite(path, labels.astype(np.int32)),
    "tiled.tif": lambda path, labels: tifffile.imwrite(
        path, labels, tile=(16, 16), compression="deflate"
    ),
}


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "one_bit.tif"])
def test_value_k_is_the_kth_class_however_it_is_stored(
    labels: np.ndarray, tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name, labels)
    found = read(tmp_path / name, {"tumor": 1, "lumen": 2})
    assert np.array_equal(found.areas_HW, labels)
    binary = read(tmp_path / name, {"tumor": 255, "lumen": 255})
    assert np.array_equal(binary.areas_HW, np.where(labels, 255, 0))
    assert as_lists(found.points) == {"tumor": [], "lumen": []}, "no discs are drawn"


def test_every_connected_part_is_a_nucleus_at_its_middle(
    labels: np.ndarray, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels)
    found = read(tmp_path / "a.tif", {"tumor": 1, "lumen": 2})
    assert as_lists(found.nuclei) == {"tumor": [(3, 2), (25, 15)], "lumen": [(41, 31)]}


@pytest.mark.parametrize(
    ("name", "stored"),
    [("grey.png", np.uint8(1)), ("grey.tif", np.uint8(255)), ("one_bit.tif", np.bool_(True))],
)
def test_a_single_class_may_be_1_or_255(
    labels: np.ndarray, tmp_path: Path, name: str, stored: np.generic
) -> None:
    WRITERS[name](tmp_path / name, np.where(labels, stored, stored.dtype.type(0)))
    found = read(tmp_path / name, {"tumor": 255})
    assert np.array_equal(found.areas_HW, np.where(labels, 255, 0))


def test_a_tile_is_a_part_of_the_whole(labels: np.ndarray, tmp_path: Path) -> None:
    """A nucleus that the tile's border cuts is one in each tile."""
    for name in ("a.png", "a.tif"):
        WRITERS["grey." + name[2:]](tmp_path / name, labels)
        found = read(tmp_path / name, {"tumor": 1, "lumen": 2}, Tile(Box(25, 5, 30, 35), 40, 60))
        assert np.array_equal(found.areas_HW, labels[5:, 25:55])
        # columns 25 to 30 and rows 10 to 20 of the first: 2.5 in, the pixel 3, and 10 - 5 + 5
        assert as_lists(found.nuclei) == {"tumor": [(3, 10)], "lumen": [(16, 26)]}


@pytest.mark.parametrize(
    ("edit", "classes", "reason"),
    [
        (
            lambda labels: labels * 3,
            ["a", "b"],
            "values 3, 6 mean no class; .*: 0 background, 1 a.*; ignore_value=V",
        ),
        (lambda labels: labels * 255, ["a", "b"], "values 254, 255 mean no class"),
        (
            lambda labels: labels,
            ["a"],
            "values 2 mean no class; .*: 0 background, 1 a, 255 a; ignore_value=2 leaves",
        ),
        (
            lambda labels: np.arange(2400).reshape(40, 60).astype(np.uint16),
            ["a"],
            "9 and 2389 more",
        ),
        (lambda labels: labels.astype(np.float32), ["a"], "values of type float32"),
        (lambda labels: np.stack([labels] * 3, -1), ["a", "b"], "3 channels: a mask has one value"),
        (lambda labels: labels[:, :50], ["a", "b"], "is 50 x 40 px, but its image 60 x 40 px"),
    ],
)
def test_what_means_nothing_is_refused(
    labels: np.ndarray, tmp_path: Path, edit: Any, classes: list[str], reason: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", edit(labels))
    with pytest.raises(BadInputError, match=reason):
        read(tmp_path / "a.tif", dict(zip(classes, (1, 2), strict=False)))


@pytest.mark.parametrize(
    ("name", "part"), [("a.png", 5), ("a.png", 60), ("a.tif", 0), ("a.tif", 60)]
)
def test_a_file_cut_short_is_refused(
    labels: np.ndarray, tmp_path: Path, name: str, part: int
) -> None:
    WRITERS["grey." + name[2:]](tmp_path / name, np.random.default_rng(0).permutation(labels))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * part // 100])
    with pytest.raises(BadInputError, match=r"cut short|is empty"):
        read(tmp_path / name, {"a": 1, "b": 2})


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "group4"])
def test_of_one_bit_what_the_file_calls_white_is_followed(
    labels: np.ndarray, tmp_path: Path, compression: str
) -> None:
    """Pillow turns the values round where it writes that 0 is white."""
    image = Image.fromarray(labels > 0)
    image.save(tmp_path / "a.tif", tiffinfo={262: 0}, compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.pages.first.photometric == 0
    found = read(tmp_path / "a.tif", {"tumor": 255})
    assert np.array_equal(found.areas_HW, np.where(np.asarray(image), 255, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
def test_where_programs_disagree_on_what_is_background_the_mask_is_refused(
    labels: np.ndarray, tmp_path: Path, dtype: Any
) -> None:
    """ImageJ's inverting LUT, and tifffile, which calls 0 white for each array of bool."""
    tifffile.imwrite(tmp_path / "a.tif", (labels > 0).astype(dtype), photometric="miniswhite")
    with pytest.raises(BadInputError, match="0 is white"):
        read(tmp_path / "a.tif", {"tumor": 255})


def test_a_mask_is_turned_as_its_image_would_be(labels: np.ndarray, tmp_path: Path) -> None:
    extra = [(274, "H", 1, 3, True)]
    tifffile.imwrite(tmp_path / "a.tif", labels[::-1, ::-1].copy(), extratags=extra)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(labels[::-1, ::-1].copy()).save(tmp_path / "a.png", exif=exif)
    for name in ("a.tif", "a.png"):
        found = read(tmp_path / name, {"tumor": 1, "lumen": 2})
        assert np.array_equal(found.areas_HW, labels)


def test_a_jpg_is_no_mask_whatever_it_is_called(labels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(labels).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(BadInputError, match="is a JPG"):
        read(tmp_path / "a.png", {"tumor": 1, "lumen": 2})


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_tif_compressed_as_a_picture_is_no_mask(
    labels: np.ndarray, tmp_path: Path, compression: str
) -> None:
    """JPEG makes 1 of some zeros, which would count as tumor."""
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack", compression=compression)
    with pytest.raises(BadInputError, match="may change values"):
        read(tmp_path / "a.tif", {"tumor": 1, "lumen": 2})


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many PNG were decoded so far."""
    decoded, decode = [], png_jpg.decode_labels

    def noting(path: Path) -> png_jpg.Decoded:
        decoded.append(path)
        return decode(path)

    monkeypatch.setattr(png_jpg, "decode_labels", noting)
    monkeypatch.setattr(png_jpg, "latest_labels", png_jpg.Latest(noting))
    return lambda: len(decoded)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_the_classes_of_a_large_mask_are_found_by_strips(
    tmp_path: Path, num_decoded: Callable[[], int], name: str
) -> None:
    labels = np.zeros((2500, 30), np.uint8)
    labels[2400, 3] = 2
    WRITERS["grey." + name[2:]](tmp_path / name, labels)
    parsed = READER.parse(Field("a-1", "a", tmp_path / name, tmp_path / name))
    assert READER.classes_in(parsed, ["tumor", "lumen"]) == {"lumen"}
    assert num_decoded() == (name == "a.png"), "a PNG once, not once a strip"
    assert png_jpg.latest_labels.decoded is None, "whoever looks for classes makes no tiles"


def test_of_a_png_that_is_not_cut_nothing_is_kept(
    labels: np.ndarray, tmp_path: Path, num_decoded: Callable[[], int]
) -> None:
    Image.fromarray(labels).save(tmp_path / "a.png")
    read(tmp_path / "a.png", {"tumor": 1, "lumen": 2})
    assert num_decoded() == 1
    assert png_jpg.latest_labels.decoded is None


def test_a_png_is_decoded_once_for_all_tiles(
    labels: np.ndarray, tmp_path: Path, num_decoded: Callable[[], int]
) -> None:
    Image.fromarray(labels).save(tmp_path / "a.png")
    for x in range(0, 60, 20):
        tile = Tile(Box(x, 0, 20, 40), 40, 60)
        found = read(tmp_path / "a.png", {"tumor": 1, "lumen": 2}, tile)
        assert np.array_equal(found.areas_HW, labels[:, x : x + 20])
    assert num_decoded() == 1


def find(raw: Path, *names: str) -> tuple[dict[str, str], list[BadFile]]:
    """Return each field's image and mask, and the bad files."""
    for name in names:
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes(b"")
    fields, bad = READER.find_fields(raw, PrepConfig().case_regex)
    return {
        str(field.image.relative_to(raw)): str(field.annotation.relative_to(raw))
        for field in fields
    }, bad


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a-1.tif", "groundTruth/a-1.png"),
        ("images/a-1.png", "masks/a-1.png"),
        ("images/a-1.png", "Masks/a-1_mask.png"),
        ("images/a-1.ome.tif", "labels/a-1.ome.tif"),
        ("images/a-1.jpg", "masks/a-1.jpg.png"),
        ("images/a-1.jpg", "masks/a-1-labels.tif"),
        ("a-1.png", "mask/a-1.png"),
        ("a-1.png", "a-1_mask.png"),
        ("a-1.png", "a-1_Masks.PNG"),
        ("a-1.ome.tif", "a-1.ome_label.ome.tif"),
        ("a_mask-1.png", "a_mask-1_mask.png"),
        ("images/a-1.png", "images/a-1_cp_masks.png"),
    ],
)
def test_the_usual_names_of_masks_are_found(tmp_path: Path, image: str, mask: str) -> None:
    assert find(tmp_path, image, mask) == ({image: mask}, [])


def test_an_image_and_its_mask_of_one_name_cannot_be_told_apart_in_one_folder(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=r"2 images in this folder, but no annotation"):
        find(tmp_path, "a-1.tif", "a-1.png")


def test_in_a_folder_of_images_only_a_mask_of_another_file_is_a_mask(tmp_path: Path) -> None:
    """b_mask has no b; c has two masks; a mask of a mask is nobody's."""
    names = ["a.png", "a_mask.png", "b_mask.png", "c.png", "c_mask.png", "c_label.png"]
    fields, bad = find(tmp_path, *names, "a_mask_mask.png")
    assert fields == {"a.png": "a_mask.png"}
    assert {entry.file: entry.reason.partition(":")[0] for entry in bad} == {
        "a_mask_mask.png": "has no image",
        "b_mask.png": "has no annotation",
        **dict.fromkeys(["c.png", "c_mask.png", "c_label.png"], "two annotations of one field"),
    }
