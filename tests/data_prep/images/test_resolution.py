"""Resolutions that files tell, each written by another library; and what is no resolution."""

import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from data_prep.image_files.open_image import open_image
from data_prep.images import resolution
from data_prep.images.resolution import told_by_ome
from data_prep.raw import BadInputError

PIXELS = np.full((20, 30, 3), 200, np.uint8)
APERIO = "Aperio Image Library v11.2.1\r\n30x20 [0,0 30x20] (16x16) JPEG/RGB Q=70"


def tif(**given: Any) -> Callable[[Path], Path]:
    """A writer of a TIF by tifffile."""

    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "a.tif", PIXELS, **{"photometric": "rgb"} | given)
        return folder / "a.tif"

    return write


def ome(size: object, unit: str) -> Callable[[Path], Path]:
    about = {f"PhysicalSize{axis}": size for axis in "XY"}
    about |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    return tif(ome=True, metadata={"axes": "YXS", **about})


def imagej(density: float, unit: str) -> Callable[[Path], Path]:
    return tif(imagej=True, resolution=(density, density), metadata={"unit": unit})


def picture(name: str, **given: Any) -> Callable[[Path], Path]:
    """A writer of a PNG or JPG by Pillow."""

    def write(folder: Path) -> Path:
        Image.fromarray(PIXELS).save(folder / name, **given)
        return folder / name

    return write


def jfif(unit: int, x: int, y: int) -> Callable[[Path], Path]:
    """A JPG whose JFIF header has these numbers."""

    def write(folder: Path) -> Path:
        content = bytearray(picture("a.jpg")(folder).read_bytes())
        start = content.index(b"JFIF\0") + 7
        content[start : start + 5] = struct.pack(">BHH", unit, x, y)
        (folder / "a.jpg").write_bytes(content)
        return folder / "a.jpg"

    return write


def exif(unit: int, density: float) -> Image.Exif:
    tags = Image.Exif()
    tags[282] = tags[283] = IFDRational(density)
    tags[296] = unit
    return tags


def rational(numerator: int, denominator: int) -> Callable[[Path], Path]:
    """A TIF whose two resolutions are this fraction of px a centimetre."""

    def write(folder: Path) -> Path:
        path = tif(resolution=(7.0, 7.0), resolutionunit="CENTIMETER")(folder)
        content = path.read_bytes()
        seven = struct.pack("<II", 7, 1)
        assert content.count(seven) == 2
        path.write_bytes(content.replace(seven, struct.pack("<II", numerator, denominator)))
        return path

    return write


def mpp_of(path: Path) -> float | None:
    with open_image(path) as image:
        return image.mpp


TOLD = {
    "cm": (tif(resolution=(40_000, 40_000), resolutionunit="CENTIMETER"), 0.25),
    "inch": (tif(resolution=(50_800, 50_800), resolutionunit="INCH"), 0.5),
    "OME": (ome(0.25, "µm"), 0.25),
    "OME in nm": (ome(250, "nm"), 0.25),
    "OME in mm": (ome(0.00025, "mm"), 0.25),
    "ImageJ in um": (imagej(4, "um"), 0.25),
    "ImageJ in micron": (imagej(4, "micron"), 0.25),
    "ImageJ in escaped um": (imagej(4, "\\u00B5m"), 0.25),
    "ImageJ in cm": (imagej(20_000, "cm"), 0.5),
    "ImageJ in inch": (imagej(101_600, "inch"), 0.25),
    "SVS": (tif(description=APERIO + "|AppMag = 40|MPP = 0.2501", metadata=None), 0.2501),
    "JPG in inches": (jfif(1, 50_800, 50_800), 0.5),
    "JPG in cm": (jfif(2, 20_000, 20_000), 0.5),
    "JPG of print, EXIF in cm": (picture("a.jpg", dpi=(72, 72), exif=exif(3, 40_000)), 0.25),
    "PNG": (picture("a.png", dpi=(101_600, 101_600)), 0.25),
    "a px slightly not square": (rational(40_000, 1), 0.25),
}
UNKNOWN = {
    "none": tif(),
    "print": tif(resolution=(300, 300), resolutionunit="INCH"),
    "no unit": tif(resolution=(40_000, 40_000), resolutionunit="NONE"),
    "divided by zero": rational(40_000, 0),
    "zero": rational(0, 1),
    "nothing by nothing": rational(0, 0),
    "huge": rational(2**32 - 1, 1),
    "OME of none": ome("NaN", "µm"),
    "OME of a word": ome("wide", "µm"),
    "OME below zero": ome(-0.25, "µm"),
    "OME in px": ome(0.25, "pixel"),
    "ImageJ in px": imagej(4, "pixel"),
    "SVS of dots": tif(description=APERIO + "|MPP = 0.2.5", metadata=None),
    "PNG": picture("a.png"),
    "PNG of print": picture("a.png", dpi=(300, 300)),
    "JPG": picture("a.jpg"),
    "JPG of zero": jfif(1, 0, 0),
    "JPG with damaged EXIF": picture("a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_a_file_tells_is_read(kind: str, tmp_path: Path) -> None:
    write, mpp = TOLD[kind]
    assert mpp_of(write(tmp_path)) == pytest.approx(mpp, rel=1e-3)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_no_microscope_has_is_unknown(kind: str, tmp_path: Path) -> None:
    assert mpp_of(UNKNOWN[kind](tmp_path)) is None


def test_the_surest_comes_first(tmp_path: Path) -> None:
    """OME's size, not that of the tags; but the tags if OME's is none."""
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    for size, mpp in ((0.25, 0.25), (1e6, 0.5)):
        about = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
        assert mpp_of(tif(ome=True, metadata=about, **tags)(tmp_path)) == pytest.approx(mpp)


def test_px_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = tif(resolution=(40_000, 20_000), resolutionunit="CENTIMETER")(tmp_path)
    with pytest.raises(BadInputError, match=r"0\.25 x 0\.5 micrometres, which is not square"):
        mpp_of(path)


def test_sides_that_differ_by_a_rounding_are_one_resolution(tmp_path: Path) -> None:
    path = tif(resolution=(40_000, 40_400), resolutionunit="CENTIMETER")(tmp_path)
    assert mpp_of(path) == pytest.approx(0.2488, abs=1e-4)  # the root of 0.25 x 0.2475


@pytest.mark.parametrize("piece", ["<Pixels ", "<Pixels a", "<Pixels " + "a" * 99, '<Pixels x="'])
def test_a_long_description_of_ome_takes_no_long_time(piece: str) -> None:
    page: Any = SimpleNamespace(imagewidth=30, imagelength=20)
    start = time.perf_counter()
    assert [*told_by_ome(piece * (2_000_000 // len(piece)), page)] == []
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("piece", ["\n", "\n ", "|", "| ", "|MPP"])
def test_a_long_description_of_a_slide_takes_no_long_time(piece: str) -> None:
    start = time.perf_counter()
    assert resolution.APERIO.search(piece * (1_000_000 // len(piece))) is None
    assert time.perf_counter() - start < 5
