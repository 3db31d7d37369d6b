"""Pictures of every kind that comes in, drawn small, to be mutated."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage

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
BELOW = RGB[::2, ::2].copy()


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


def several(pages: list[dict[str, Any]], **settings: Any) -> bytes:
    """Write a TIF of several pages."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **settings) as writer:
        for page in pages:
            writer.write(**({"photometric": "rgb", "metadata": None} | page))
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


def svs() -> bytes:
    """A slide as Aperio's scanners write it: base, thumbnail, a smaller level, label, macro."""
    tile = {"tile": (32, 32), "compression": "jpeg"}
    about = f"Aperio Image Library v11.2.1\r\n{WIDTH_PX}x{HEIGHT_PX} [0,0 {WIDTH_PX}x{HEIGHT_PX}]"
    about += " (32x32) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2500"
    small = {"data": BELOW[::2, ::2].copy(), "compression": "jpeg", "rowsperstrip": 8}
    pages = [
        {"data": RGB, "description": about, **tile},
        {**small, "description": "Aperio Image Library v11.2.1\r\nthumbnail"},
        {"data": BELOW, "description": about, **tile},
        {**small, "description": "Aperio\r\nlabel 20x20", "subfiletype": 1},
        {**small, "description": "Aperio\r\nmacro 20x20", "subfiletype": 9},
    ]
    return several(pages)


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
    "upside down": lambda: tif(RGB, photometric="rgb", extratags=orientation(3)),
    "on its side": lambda: tif(RGB, photometric="rgb", extratags=orientation(6)),
}
SLIDES: dict[str, Callable[[], bytes]] = {
    "svs": svs,
    "pyramid": lambda: several(
        [
            {"data": RGB, "subifds": 1, "tile": (32, 32)},
            {"data": BELOW, "subfiletype": 1, "tile": (32, 32)},
        ]
    ),
    "pyramid of pages": lambda: several(
        [{"data": RGB, "tile": (32, 32)}, {"data": BELOW, "subfiletype": 1, "tile": (32, 32)}]
    ),
    "two pages": lambda: several([{"data": BELOW}, {"data": RGB, "compression": "lzw"}]),
    "OME": lambda: tif(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS"}),
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
MASKS: dict[str, Callable[[], bytes]] = {
    "mask png": lambda: pillow(PillowImage.fromarray(IS_DARK.astype(np.uint8) * 255), "PNG"),
    "mask png 1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "PNG"),
    "mask tif": lambda: tif(IS_DARK.astype(np.uint8), compression="deflate", rowsperstrip=16),
    "mask tif tiles": lambda: tif(IS_DARK.astype(np.uint8) * 255, tile=(32, 32)),
    "mask tif 16 bit": lambda: tif(IS_DARK.astype(np.uint16), photometric="minisblack"),
    "mask tif 1 bit": lambda: pillow(PillowImage.fromarray(IS_DARK), "TIFF"),
}
