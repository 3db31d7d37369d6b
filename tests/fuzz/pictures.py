"""Pictures of every kind that comes in, drawn small, to be mutated."""

import io
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage

from tests import slide_files
from tests.data_prep.image_files.tif_files import packed, tif_bytes

HEIGHT_PX, WIDTH_PX = 72, 100
Pixels = npt.NDArray[Any]


def drawn(seed: int = 0) -> Pixels:
    """A pale field with dark nuclei, that no flip or turn maps to itself; HWC uint8 RGB."""
    rng = np.random.default_rng(seed)
    picture_HWC = np.full((HEIGHT_PX, WIDTH_PX, 3), (235, 215, 230), np.uint8)
    picture_HWC -= rng.integers(0, 13, picture_HWC.shape, dtype=np.uint8)
    for x, y, radius in ((20, 15, 8), (70, 30, 10), (85, 60, 6)):
        cv2.circle(picture_HWC, (x, y), radius, (90, 40, 130), cv2.FILLED)
    return picture_HWC


RGB = drawn()
GREY = RGB[..., 1].copy()
ALPHA = np.tile(np.linspace(0, 255, WIDTH_PX).astype(np.uint8), (HEIGHT_PX, 1))
RGB16 = RGB.astype(np.uint16) * 257
IS_DARK = GREY < 128
OME_ID = "urn:uuid:00000000-0000-4000-8000-000000000000"  # tifffile would draw one


def tif(pixels: Pixels, **settings: Any) -> bytes:
    """Write a TIF with tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **({"metadata": None} | settings))
    return buffer.getvalue()


def pillow(image: PillowImage.Image, kind: str, **settings: Any) -> bytes:
    """Write a file with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def palette(bits: int) -> bytes:
    """A picture by a table of colours."""
    quantized = PillowImage.fromarray(RGB).quantize(2**bits)
    colours = np.zeros((256, 3), np.uint16)
    listed = np.array(quantized.getpalette(), np.uint16).reshape(-1, 3)
    colours[: len(listed)] = listed * 257
    index_HW = np.asarray(quantized)
    return tif(index_HW, photometric="palette", colormap=colours.T)


def with_exif(orientation: int) -> PillowImage.Exif:
    """Make the EXIF of a picture that lies otherwise than it is to be seen."""
    exif = PillowImage.Exif()
    exif[274] = orientation
    return exif


def of_bits(bits: int, photometric: int = 1) -> bytes:
    """Write a grey TIF of so many bits a px, which no library writes."""
    tags = {256: [WIDTH_PX], 257: [HEIGHT_PX], 258: [bits], 259: [1], 262: [photometric]}
    tags |= {277: [1], 278: [HEIGHT_PX]}
    return tif_bytes(tags, [packed(depths(bits)[..., None], bits, "<")])


def depths(bits: int) -> Pixels:
    """Return the grey picture with values of so many bits, HW."""
    return GREY.astype(np.int64) * (2**bits - 1) // 255


def of_depth(bits: int, is_inverted: bool = False) -> Pixels:
    """Return what `of_bits` means, by the formula of docs/input.md; HWC."""
    grey_HW = np.rint(255 * depths(bits) / (2**bits - 1)).astype(np.uint8)
    return np.repeat((255 - grey_HW if is_inverted else grey_HW)[..., None], 3, axis=-1)


@cache
def slide(write: Callable[..., Pixels], side: int = 1) -> tuple[bytes, Pixels]:
    """Write a slide of tests/slide_files.py, with sides of so many px; and what is to be seen."""
    image_HWC = RGB[: HEIGHT_PX // side * side, : WIDTH_PX // side * side].copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        seen_HWC = write(path, image_HWC)
        return path.read_bytes(), seen_HWC


def orientation(value: int) -> list[tuple[Any, ...]]:
    """Return the tag of a picture that lies otherwise than it is to be seen."""
    return [(274, "H", 1, value, True)]


TIFS: dict[str, Callable[[], bytes]] = {
    "rgb": lambda: tif(RGB, photometric="rgb"),
    "rgb lzw": lambda: tif(RGB, photometric="rgb", compression="lzw", rowsperstrip=16),
    "rgb packbits": lambda: tif(RGB, photometric="rgb", compression="packbits", rowsperstrip=16),
    "rgb deflate": lambda: tif(
        RGB, photometric="rgb", compression="deflate", predictor=True, rowsperstrip=10
    ),
    "rgb tiles": lambda: tif(RGB, photometric="rgb", compression="deflate", tile=(32, 32)),
    "rgb tiles plain": lambda: tif(RGB, photometric="rgb", tile=(32, 48)),
    "rgb jpeg strips": lambda: tif(RGB, photometric="rgb", compression="jpeg", rowsperstrip=16),
    "rgb jpeg tiles": lambda: tif(RGB, photometric="rgb", compression="jpeg", tile=(32, 32)),
    "rgb planar": lambda: tif(
        np.moveaxis(RGB, -1, 0).copy(), photometric="rgb", planarconfig="separate"
    ),
    "rgb planar tiles": lambda: tif(
        np.moveaxis(RGB, -1, 0).copy(),
        photometric="rgb",
        planarconfig="separate",
        tile=(32, 32),
        compression="lzw",
    ),
    "rgb big-endian": lambda: tif(RGB, photometric="rgb", byteorder=">", rowsperstrip=16),
    "rgb BigTIFF": lambda: tif(RGB, photometric="rgb", bigtiff=True, rowsperstrip=16),
    "rgb 16 bit": lambda: tif(RGB16, photometric="rgb"),
    "rgb 16 bit big-endian": lambda: tif(
        RGB16, photometric="rgb", byteorder=">", compression="deflate"
    ),
    "ycbcr": lambda: pillow(PillowImage.fromarray(RGB).convert("YCbCr"), "TIFF"),
    "grey": lambda: tif(GREY, photometric="minisblack"),
    "grey inverted": lambda: tif(255 - GREY, photometric="miniswhite"),
    "grey 16 bit": lambda: tif(RGB16[..., 1].copy(), photometric="minisblack"),
    "grey 16 bit tiles": lambda: tif(
        RGB16[..., 1].copy(), photometric="minisblack", byteorder=">", tile=(32, 32)
    ),
    "1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "TIFF"),
    "1 bit fax": lambda: pillow(PillowImage.fromarray(IS_DARK), "TIFF", compression="group4"),
    "palette": lambda: palette(6),
    "rgba": lambda: tif(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
    "rgba premultiplied": lambda: tif(
        np.dstack([(RGB * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA]),
        photometric="rgb",
        extrasamples=["assocalpha"],
    ),
    "rgb and a sample": lambda: tif(
        np.dstack([RGB, 0 * GREY]), photometric="rgb", extrasamples=["unspecified"]
    ),
    "rgb 16 bit planar": lambda: tif(
        np.moveaxis(RGB16, -1, 0).copy(),
        photometric="rgb",
        planarconfig="separate",
        rowsperstrip=16,
    ),
    **{f"grey {bits} bit": partial(of_bits, bits) for bits in (2, 4, 10, 12)},
    **{f"grey {bits} bit inverted": partial(of_bits, bits, 0) for bits in (4, 16)},
    "upside down": lambda: tif(RGB, photometric="rgb", extratags=orientation(3)),
    "on its side": lambda: tif(RGB, photometric="rgb", extratags=orientation(6)),
}
WRITERS: dict[str, tuple[Callable[..., Pixels], int, int]] = {
    "svs": (slide_files.write_svs, 1, 0),
    "ndpi": (slide_files.write_ndpi, 32, 0),
    "scn": (slide_files.write_scn, 1, 1),
    "bif": (slide_files.write_bif, 32, 2),
    "philips": (slide_files.write_philips, 1, 0),
    "pyramid": (partial(slide_files.write_pyramid, subifds=True), 1, 0),
    "pyramid of pages": (slide_files.write_pyramid, 1, 0),
    "pyramid unmarked": (partial(slide_files.write_pyramid, marked=False), 1, 0),
}
"""Name -> what writes it, what its sides are multiples of, the page that is the picture."""
SLIDES: dict[str, Callable[[], bytes]] = {
    **{name: lambda w=write, s=side: slide(w, s)[0] for name, (write, side, _) in WRITERS.items()},
    "OME": lambda: tif(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS", "UUID": OME_ID}),
    "ImageJ": lambda: tif(RGB, imagej=True, photometric="rgb", metadata={"axes": "YXS"}),
}
PNGS: dict[str, Callable[[], bytes]] = {
    "png rgb": lambda: pillow(PillowImage.fromarray(RGB), "PNG"),
    "png rgba": lambda: pillow(PillowImage.fromarray(np.dstack([RGB, ALPHA])), "PNG"),
    "png grey": lambda: pillow(PillowImage.fromarray(GREY), "PNG"),
    "png grey 16 bit": lambda: pillow(PillowImage.fromarray(RGB16[..., 1].copy()), "PNG"),
    "png rgb 16 bit": lambda: cv2.imencode(".png", RGB16[..., ::-1])[1].tobytes(),
    "png 1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "PNG"),
    "png palette": lambda: pillow(PillowImage.fromarray(RGB).quantize(16), "PNG"),
}
JPGS: dict[str, Callable[[], bytes]] = {
    "jpg rgb": lambda: pillow(PillowImage.fromarray(RGB), "JPEG", quality=95, subsampling=0),
    "jpg 420": lambda: pillow(PillowImage.fromarray(RGB), "JPEG", quality=80),
    "jpg progressive": lambda: pillow(PillowImage.fromarray(RGB), "JPEG", progressive=True),
    "jpg grey": lambda: pillow(PillowImage.fromarray(GREY), "JPEG"),
    "jpg on its side": lambda: pillow(PillowImage.fromarray(RGB), "JPEG", exif=with_exif(6)),
}
KNOWN: dict[str, Callable[[], Pixels]] = {
    **{f"grey {bits} bit": partial(of_depth, bits) for bits in (2, 4, 10, 12)},
    **{f"grey {bits} bit inverted": partial(of_depth, bits, True) for bits in (4, 16)},
    "rgb 16 bit planar": lambda: RGB,
    **{name: lambda w=write, s=side: slide(w, s)[1] for name, (write, side, _) in WRITERS.items()},
}
"""What is to be seen in pictures that other readers do not read, or not rightly; HWC uint8 RGB."""
MASKS: dict[str, Callable[[], bytes]] = {
    "mask png": lambda: pillow(PillowImage.fromarray(IS_DARK.astype(np.uint8) * 255), "PNG"),
    "mask png 1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "PNG"),
    "mask tif": lambda: tif(IS_DARK.astype(np.uint8), compression="deflate", rowsperstrip=16),
    "mask tif tiles": lambda: tif(IS_DARK.astype(np.uint8) * 255, tile=(32, 32)),
    "mask tif 16 bit": lambda: tif(IS_DARK.astype(np.uint16), photometric="minisblack"),
    "mask tif 1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "TIFF"),
}
LABELS = IS_DARK.astype(np.uint8) * np.where(np.arange(WIDTH_PX) < WIDTH_PX // 2, 1, 2).astype(
    np.uint8
)
COLOURED = PillowImage.fromarray(LABELS, "L").convert("P")
COLOURED.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
CLASS_MASKS: dict[str, Callable[[], bytes]] = {
    "mask png": lambda: pillow(PillowImage.fromarray(LABELS), "PNG"),
    "mask png palette": lambda: pillow(COLOURED, "PNG", bits=8),
    "mask png palette 2 bit": lambda: pillow(COLOURED, "PNG", bits=2),
    "mask png 16 bit": lambda: pillow(PillowImage.fromarray(LABELS.astype(np.uint16)), "PNG"),
    "mask tif": lambda: tif(LABELS, compression="lzw", rowsperstrip=16),
    "mask tif tiles 16 bit": lambda: tif(
        LABELS.astype(np.uint16), tile=(32, 32), compression="deflate", photometric="minisblack"
    ),
}
