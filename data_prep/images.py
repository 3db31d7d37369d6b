"""Read raw images to RGB uint8, and write prepared ones.

Whatever comes in goes out as HWC uint8 RGB:
- 16 bit: v -> round(255 v / white), at most 255, `white` being a setting (65535 by default);
- grey and palette: to RGB; inverted grey (MINISWHITE): turned round;
- RGBA: laid over white, the colour of an empty slide;
- several resolutions (pyramids) or images in a TIF: the largest.
"""

import io
import os
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage

from data_prep.brecahad import IMAGE_SUFFIXES, BadInputError

PHOTOMETRICS = ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR")

Image = npt.NDArray[np.uint8]
"""RGB image, HWC uint8."""
Mask = npt.NDArray[np.uint8]
"""Label of every pixel, HW uint8; 0 is background."""


def read_image(path: Path, uint16_white: int = 65535) -> Image:
    """Read a file as HWC uint8 RGB. Raises BadInputError where it is damaged or of another kind."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}") from None
    return decode_image(content, path.suffix.lower(), uint16_white)


def decode_image(content: bytes, suffix: str, uint16_white: int = 65535) -> Image:
    """The same from the file's bytes and its ending."""
    if not content:
        raise BadInputError("is empty (0 bytes)")
    try:
        if suffix in (".tif", ".tiff"):
            pixels = decode_tif(content)
        elif suffix == ".png":
            pixels = imagecodecs.png_decode(content)
        elif suffix not in (".jpg", ".jpeg"):
            raise BadInputError(
                f"'{suffix}' is no image that can be read: {', '.join(IMAGE_SUFFIXES)}"
            )
        else:
            pixels = np.asarray(PillowImage.open(io.BytesIO(content)).convert("RGB"))
    except BadInputError:
        raise
    except Exception as error:  # every codec has errors of its own
        raise BadInputError(f"unreadable or cut short: {' '.join(str(error).split())}") from None
    return to_rgb_uint8(pixels, uint16_white)


def decode_tif(content: bytes) -> npt.NDArray[Any]:
    """The largest image of a TIF: HW or HWC, 8 or 16 bit."""
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        largest = max(
            (level for series in tif.series for level in series.levels), key=pixels_of_a_plane
        )
        check_segments(largest, len(content))
        photometric, colormap = largest.keyframe.photometric, largest.keyframe.colormap
        if photometric.name not in PHOTOMETRICS:
            raise BadInputError(f"colour space {photometric.name}: expected grey, RGB or RGBA")
        pixels, axes = largest.asarray(squeeze=False), largest.get_axes(squeeze=False)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if photometric.name == "MINISWHITE":
        pixels = np.iinfo(pixels.dtype).max - pixels
    pixels = to_hwc(pixels, axes)
    if photometric.name == "PALETTE":
        pixels = np.moveaxis((colormap >> 8).astype(np.uint8)[:, pixels], 0, -1)
    return pixels


def pixels_of_a_plane(level: tifffile.TiffPageSeries) -> int:
    """Height times width of one resolution."""
    sizes = dict(zip(level.get_axes(squeeze=False), level.get_shape(squeeze=False), strict=True))
    return sizes.get("Y", 0) * sizes.get("X", 0)


def check_segments(level: tifffile.TiffPageSeries, num_bytes: int) -> None:
    """tifffile fills a strip or tile that is not there with zeros; here that is an error."""
    for page in level.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > num_bytes:
                raise BadInputError(
                    f"cut short: pixel data ends at byte {offset + count}, the file at {num_bytes}"
                )


def to_hwc(pixels: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    """Drop axes of length one and move the samples last: HW or HWC."""
    kept = [index for index, axis in enumerate(axes) if axis in "YX" or pixels.shape[index] > 1]
    names = "".join(axes[index] for index in kept).replace("C", "S")  # OME calls samples C
    plane = pixels.reshape([pixels.shape[index] for index in kept])
    if names == "YX":
        return plane
    if names in ("YXS", "SYX"):
        return np.moveaxis(plane, names.index("S"), -1)
    raise BadInputError(f"shape {plane.shape} (axes {names}): expected one grey, RGB or RGBA image")


def to_rgb_uint8(pixels: npt.NDArray[Any], uint16_white: int) -> Image:
    """HW or HWC, 8 or 16 bit, grey, RGB or RGBA (grey + alpha too) -> HWC uint8 RGB."""
    if pixels.dtype == np.uint16:
        pixels = scale_uint16(pixels, uint16_white)
    if pixels.dtype != np.uint8:
        raise BadInputError(f"pixels of type {pixels.dtype}: expected 8 or 16 bit unsigned")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise BadInputError(f"{channels} channels: expected grey, RGB or RGBA")
    if channels in (2, 4):
        pixels = over_white(pixels)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.ascontiguousarray(pixels)


def scale_uint16(pixels: npt.NDArray[np.uint16], white: int) -> Image:
    """v -> round(255 v / white), at most 255, by a table of all 65,536 values."""
    table = np.minimum(np.rint(np.arange(65536) * (255.0 / white)), 255).astype(np.uint8)
    return table[pixels]


def over_white(pixels: Image) -> Image:
    """Lay pixels with a last channel of alpha over white."""
    alpha = pixels[..., -1:].astype(np.uint16)
    over = pixels[..., :-1] * alpha + 255 * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def encode_image(image: Image, format: str, jpg_quality: int) -> bytes:
    """HWC uint8 RGB -> the bytes of a JPG or a lossless PNG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, jpg_quality] if format == "jpg" else []
    return encode(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), format, options)


def encode_mask(mask: Mask) -> bytes:
    """HW uint8 -> the bytes of a PNG."""
    return encode(mask, "png", [])


def encode(pixels: npt.NDArray[np.uint8], format: str, options: list[int]) -> bytes:
    """OpenCV's encoder, to bytes."""
    done, content = cv2.imencode(f".{format}", pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {format} of shape {pixels.shape}")
    return content.tobytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
