"""Read raw images to RGB uint8, and write prepared ones.

Whatever comes in goes out as HWC uint8 RGB:
- 16 bit: v -> round(255 v / white), at most 255, `white` being a setting (65535 by default);
- grey and palette: to RGB; inverted grey (MINISWHITE): turned round;
- RGBA: laid over white, the colour of an empty slide;
- several resolutions (pyramids) or images in a TIF: the largest.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage

from data_prep.images.arrays import Box, Image
from data_prep.raw import IMAGE_SUFFIXES, BadInputError

TIF_SUFFIXES = (".tif", ".tiff")
PillowImage.MAX_IMAGE_PIXELS = None  # large images are what is asked for, not an attack
PHOTOMETRICS = ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR")


@contextmanager
def codec_errors_explained() -> Iterator[None]:
    """Whatever a damaged file makes a codec raise, as BadInputError."""
    try:
        yield
    except (BadInputError, MemoryError):
        raise
    except Exception as error:  # every codec has errors of its own
        raise BadInputError(f"unreadable or cut short: {' '.join(str(error).split())}") from None


class ImageFile(ABC):
    """An open image file. Every way of reading it gives the same pixels."""

    height_px: int
    width_px: int
    mpp: float | None = None
    """Resolution, in micrometres per px; None if the file does not tell."""
    segment_px: tuple[int, int]
    """Height and width of the parts of the file that are decoded at once."""

    @property
    def whole(self) -> Box:
        """The box that is the whole image."""
        return Box(0, 0, self.width_px, self.height_px)

    @abstractmethod
    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""

    @abstractmethod
    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level of a pyramid in which a px stands for `most_shrink` px a side
        or fewer, HWC uint8 RGB.

        None if there is none below the full resolution, or if it has more than `most_px` in all.
        Raises BadInputError.
        """
        return None


class TifImage(ImageFile):
    """A TIF; of a part no more is read than that takes."""

    def __init__(self, tif: tifffile.TiffFile, num_bytes: int, uint16_white: int) -> None:
        self.tif, self.num_bytes, self.uint16_white = tif, num_bytes, uint16_white
        self.level = largest_level(tif)
        check_segments(self.level, num_bytes)
        sizes, page = plane_sizes(self.level), self.level.keyframe
        self.height_px, self.width_px = sizes["Y"], sizes["X"]
        self.segment_px = (page.rowsperstrip, page.imagewidth)
        if page.is_tiled:
            self.segment_px = (page.tilelength, page.tilewidth)

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        with codec_errors_explained():
            part = decode_level(self.level, None if box == self.whole else box)
            return to_rgb_uint8(part, self.uint16_white)

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""
        with codec_errors_explained():
            return stored_level(self.level, None if box == self.whole else box)

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level that ImageFile.overview allows. Raises BadInputError."""
        series = max(self.tif.series, key=lambda series: math.prod(plane_sizes(series).values()))
        width = plane_sizes(series)["X"]
        smaller = [
            level for level in series.levels[1:] if width <= most_shrink * plane_sizes(level)["X"]
        ]
        smallest = min(smaller, key=lambda level: plane_sizes(level)["X"], default=None)
        if smallest is None or math.prod(plane_sizes(smallest).values()) > most_px:
            return None
        with codec_errors_explained():
            check_segments(smallest, self.num_bytes)
            return to_rgb_uint8(decode_level(smallest), self.uint16_white)


class DecodedImage(ImageFile):
    """A PNG or JPG, which can only be decoded whole; the latest one is kept."""

    def __init__(self, path: Path, uint16_white: int) -> None:
        self.path, self.uint16_white = path, uint16_white
        with codec_errors_explained(), PillowImage.open(path) as image:
            self.height_px, self.width_px = image.height, image.width
        self.segment_px = self.height_px, self.width_px

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        return part_of(latest_image(self.path, self.uint16_white), box).copy()

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""
        return part_of(latest_stored(self.path), box)


@contextmanager
def open_image(path: Path, uint16_white: int = 65535) -> Iterator[ImageFile]:
    """Open an image file. Raises BadInputError if it is damaged or not an image."""
    if path.suffix.lower() not in TIF_SUFFIXES:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadInputError(
                f"'{path.suffix}' is no image that can be read: {', '.join(IMAGE_SUFFIXES)}"
            )
        yield DecodedImage(path, uint16_white)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}") from None
    with file, ExitStack() as stack:
        num_bytes = path.stat().st_size
        if not num_bytes:
            raise BadInputError("is empty (0 bytes)")
        with codec_errors_explained():
            tif = stack.enter_context(tifffile.TiffFile(file))
            image = TifImage(tif, num_bytes, uint16_white)
        yield image


def read_image(path: Path, uint16_white: int = 65535) -> Image:
    """Read a whole image, HWC uint8 RGB. Raises BadInputError."""
    with open_image(path, uint16_white) as image:
        return image.read(image.whole)


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's height and width, in px. Raises BadInputError."""
    with open_image(path) as image:
        return image.height_px, image.width_px


def decode_whole(path: Path, uint16_white: int) -> Image:
    """Decode a PNG or JPG to HWC uint8 RGB. Raises BadInputError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}") from None
    if not content:
        raise BadInputError("is empty (0 bytes)")
    with codec_errors_explained():
        if path.suffix.lower() == ".png":
            pixels = imagecodecs.png_decode(content)
        else:
            pixels = np.asarray(PillowImage.open(io.BytesIO(content)).convert("RGB"))
    return to_rgb_uint8(pixels, uint16_white)


def largest_level(tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The image with the most pixels: the base of a pyramid."""
    levels = (level for series in tif.series for level in series.levels)
    return max(levels, key=lambda level: math.prod(plane_sizes(level).values()))


def plane_sizes(level: tifffile.TiffPageSeries) -> dict[str, int]:
    """Length of the axes Y and X."""
    sizes = dict(zip(level.get_axes(squeeze=False), level.get_shape(squeeze=False), strict=True))
    return {axis: sizes.get(axis, 0) for axis in "YX"}


def decode_level(level: tifffile.TiffPageSeries, box: Box | None = None) -> npt.NDArray[Any]:
    """An image of a TIF, or a part of it: HW or HWC, 8 or 16 bit, brighter is more."""
    photometric, colormap = level.keyframe.photometric.name, level.keyframe.colormap
    if photometric not in PHOTOMETRICS:
        raise BadInputError(f"colour space {photometric}: expected grey, RGB or RGBA")
    pixels = stored_level(level, box)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if photometric == "MINISWHITE":
        pixels = np.iinfo(pixels.dtype).max - pixels
    if photometric == "PALETTE":
        pixels = np.moveaxis((colormap >> 8).astype(np.uint8)[:, pixels], 0, -1)
    return pixels


def stored_level(level: tifffile.TiffPageSeries, box: Box | None = None) -> npt.NDArray[Any]:
    """The values of an image of a TIF, or of a part of it, as they are stored: HW or HWC."""
    axes = level.get_axes(squeeze=False)
    if box is None:
        return to_hwc(level.asarray(squeeze=False), axes)
    part = {"Y": slice(box.y, box.y + box.height), "X": slice(box.x, box.x + box.width)}
    return to_hwc(read_part(level, tuple(part.get(axis, slice(None)) for axis in axes)), axes)


def decode_stored(path: Path) -> npt.NDArray[Any]:
    """A PNG's values as they are stored. Raises BadInputError."""
    with codec_errors_explained(), PillowImage.open(path) as image:
        return np.asarray(image)


def part_of(pixels: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """A view of a part of an image, HW or HWC."""
    return pixels[box.y : box.y + box.height, box.x : box.x + box.width]


class Latest:
    """Decodes files, but not the same one twice in a row.

    It lets go of one before it decodes the next: functools.lru_cache(maxsize=1) would hold both.
    For one thread.
    """

    def __init__(self, decode: Callable[..., npt.NDArray[Any]]) -> None:
        self.decode = decode
        self.key: tuple[object, ...] = ()
        self.pixels: npt.NDArray[Any] | None = None

    def __call__(self, path: Path, *settings: object) -> npt.NDArray[Any]:
        """The file's pixels, not to be written to. Raises BadInputError."""
        try:
            about = path.stat()
        except OSError as error:
            raise BadInputError(f"cannot be read: {error.strerror}") from None
        key = (path, about.st_mtime_ns, about.st_size, *settings)
        if self.pixels is None or self.key != key:
            self.pixels = None
            self.pixels, self.key = self.decode(path, *settings), key
            self.pixels.flags.writeable = False
        return self.pixels


# One image and one mask, for a worker's tiles are mostly of the same two files
latest_image = Latest(decode_whole)
latest_stored = Latest(decode_stored)


def read_part(level: tifffile.TiffPageSeries, part: tuple[slice, ...]) -> npt.NDArray[Any]:
    """Some pixels of an image, reading the strips or tiles that they are in."""
    if level.dataoffset is not None and level.keyframe.is_memmappable:
        # a strip of pixels as they are may be the whole image: no need to read all of it
        return np.array(level.asarray(squeeze=False, out="memmap")[part])
    import zarr  # here: it takes half a second, and few need it

    return np.asarray(zarr.open_array(level.aszarr(level=0, squeeze=False), mode="r")[part])


def check_segments(level: tifffile.TiffPageSeries, num_bytes: int) -> None:
    """tifffile fills a strip or tile that is not there with zeros; here that is an error."""
    for page in level.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if not (offset and count):
                raise BadInputError(missing_segments(page))
            if offset + count > num_bytes:
                raise BadInputError(
                    f"cut short: pixel data ends at byte {offset + count}, the file at {num_bytes}"
                )


def missing_segments(page: tifffile.TiffPage | tifffile.TiffFrame) -> str:
    """The reason why a page cannot be used that has not the data of all its strips or tiles."""
    segments = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
    num_missing = sum(not (offset and count) for offset, count in segments)
    kind = "tiles" if page.keyframe.is_tiled else "strips"
    return (
        f"holds no data for {num_missing} of {len(segments)} {kind}: it was not written to its end,"
        " or is a sparse TIF; write it anew and whole, with QuPath or 'vips tiffsave'"
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
