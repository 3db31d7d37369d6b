"""Read a PNG or JPG, which can only be decoded whole; the latest one is kept for its next part."""

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from data_prep.image_files.samples import (
    Extra,
    Meaning,
    largest_uint16,
    to_labels,
    to_rgb,
    turned,
)
from data_prep.image_files.tif_structure import DEFLATE, JPEG, MOST_EXPANSION
from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile, codec_errors_explained
from data_prep.images.resolution import mpp_of_picture
from data_prep.raw import BadInputError

PillowImage.MAX_IMAGE_PIXELS = None  # large images are what is asked for, not an attack

PNG_START, JPG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
ORIENTATION = 274
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}


@dataclass(frozen=True)
class Header:
    """What a PNG or JPG says about itself."""

    height_px: int
    width_px: int
    orientation: int
    """1 to 8, as EXIF has it."""
    bits: int
    colour_type: int | None
    """Of a PNG; None for a JPG."""


class Decoded(NamedTuple):
    """The pixels of a file."""

    pixels: npt.NDArray[Any]
    """HWC uint8 RGB, or a mask's values, HW."""
    largest_uint16: int = 0
    """As ImageFile.largest_uint16."""


class DecodedImage(ImageFile):
    """An image that is decoded whole."""

    def __init__(self, path: Path, uint16_white: int) -> None:
        self.path, self.uint16_white = path, uint16_white
        with codec_errors_explained(), path.open("rb") as file:
            header = read_header(file)
        self.height_px, self.width_px = header.height_px, header.width_px
        if header.orientation >= 5:
            self.height_px, self.width_px = self.width_px, self.height_px
        self.segment_px = self.height_px, self.width_px

    @property
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px, as ImageFile.mpp."""
        with (
            codec_errors_explained(),
            PillowImage.open(self.path, formats=("PNG", "JPEG")) as image,
        ):
            return mpp_of_picture(image)

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        if box == self.whole:
            decoded = decode_image(self.path, self.uint16_white)
        else:
            decoded = latest_image(self.path, self.uint16_white)
        self.largest_uint16 = decoded.largest_uint16
        return decoded.pixels if box == self.whole else part_of(decoded.pixels, box).copy()

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""
        if box == self.whole:
            return decode_labels(self.path).pixels
        return part_of(latest_labels(self.path).pixels, box)


def read_header(file: BinaryIO) -> Header:
    """Read what a PNG or JPG says about itself. Raises BadInputError if it cannot be."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_png = file.read(len(PNG_START)) == PNG_START
    header, pixel_bytes, most = png_header(file) if is_png else jpg_header(file, num_bytes)
    if not (header.height_px and header.width_px):
        raise BadInputError(f"holds no picture: {header.width_px} x {header.height_px} px")
    if pixel_bytes > most:
        raise BadInputError(
            f"unreadable or cut short: {num_bytes} bytes cannot hold {header.width_px} x"
            f" {header.height_px} px"
        )
    return header


def png_header(file: BinaryIO) -> tuple[Header, int, int]:
    """Read a PNG's header; return also the bytes of its pixels and the most that it can hold."""
    found: dict[bytes, bytes] = {}
    compressed_bytes = 0
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(len(PNG_START))
    while len(start := file.read(8)) == 8 and b"IEND" not in found:
        length, name = struct.unpack(">I4s", start)
        if name == b"IDAT":  # which may claim more than there is
            compressed_bytes += min(length, num_bytes - file.tell())
        if name in (b"IHDR", b"eXIf", b"IEND") and name not in found:
            found[name] = file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)
    width, height, bits, colour_type = struct.unpack(">IIBB", found.get(b"IHDR", b"")[:10])
    row_bytes = -(-width * SAMPLES.get(colour_type, 1) * bits // 8)
    header = Header(height, width, exif_orientation(found.get(b"eXIf", b"")), bits, colour_type)
    return header, height * row_bytes, compressed_bytes * MOST_EXPANSION[DEFLATE[0]]


def jpg_header(file: BinaryIO, num_bytes: int) -> tuple[Header, int, int]:
    """Read a JPG's header; return also the number of its px and the most that it can hold."""
    with open_jpg(file) as image:
        if image.mode not in ("L", "RGB"):
            raise BadInputError(f"colour space {image.mode}: expected grey or RGB")
        orientation = exif_orientation(image.info.get("exif", b""))
        header = Header(image.height, image.width, orientation, 8, None)
    return header, header.height_px * header.width_px, num_bytes * MOST_EXPANSION[JPEG]


def open_jpg(file: BinaryIO) -> PillowImage.Image:
    """Open a JPG, of several pictures (MPO) the first. Raises BadInputError."""
    try:
        return PillowImage.open(file, formats=("JPEG",))
    except UnidentifiedImageError:
        raise BadInputError(
            "unreadable or cut short: no JPEG of 8 bits; save it as PNG or TIF"
        ) from None


def exif_orientation(exif: bytes) -> int:
    """Return how a picture is turned, 1 to 8. Raises BadInputError."""
    entries = PillowImage.Exif()
    with suppress(Exception):  # a damaged EXIF raises whatever it likes; the picture may be whole
        entries.load(exif)
    orientation = entries.get(ORIENTATION, 1) or 1  # 0: not known
    if orientation not in range(1, 9):
        raise BadInputError(f"damaged: EXIF's Orientation {orientation}: expected 1 to 8")
    return int(orientation)


def decode_image(path: Path, uint16_white: int) -> Decoded:
    """Decode a PNG or JPG to HWC uint8 RGB. Raises BadInputError."""
    with codec_errors_explained(), path.open("rb") as file:
        header = read_header(file)
        file.seek(0)
        if header.colour_type is None:
            with open_jpg(file) as image:
                stored = np.asarray(image)
        else:
            stored = imagecodecs.png_decode(file.read())  # of any bits, tables and alpha
        stored_HWC = stored.reshape(header.height_px, header.width_px, -1)
        samples, bits = stored_HWC.shape[-1], 8 * stored.itemsize
        extra = Extra.NONE if samples % 2 else Extra.ALPHA
        meaning = Meaning("grey" if samples < 3 else "rgb", bits, extra=extra)
        image_HWC = to_rgb(stored_HWC, meaning, uint16_white)
        pixels = np.ascontiguousarray(turned(image_HWC, header.orientation))
        return Decoded(pixels, largest_uint16(stored_HWC, meaning))


def decode_labels(path: Path) -> Decoded:
    """Decode a PNG's values as they are stored, HW. Raises BadInputError."""
    with codec_errors_explained(), path.open("rb") as file:
        header = read_header(file)
        if header.colour_type is None:
            raise BadInputError("is a JPG, which changes values: save the mask as PNG or TIF")
        with PillowImage.open(file, formats=("PNG",)) as image:
            stored = np.asarray(image)
        if header.colour_type == GREY and header.bits in (2, 4):
            stored = stored // (255 // (2**header.bits - 1))  # Pillow makes the largest 255
        stored_HWC = stored.reshape(header.height_px, header.width_px, -1)
        labels_HW = to_labels(stored_HWC, Meaning("grey", header.bits))
        return Decoded(turned(labels_HW, header.orientation))


def part_of(pixels: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """A view of a part of an image, HW or HWC."""
    return pixels[box.y : box.y + box.height, box.x : box.x + box.width]


class Latest:
    """Decodes files, but not the same one twice in a row.

    It lets go of one before it decodes the next: functools.lru_cache(maxsize=1) would hold both.
    For one thread.
    """

    def __init__(self, decode: Callable[..., Decoded]) -> None:
        self.decode = decode
        self.key: tuple[object, ...] = ()
        self.decoded: Decoded | None = None

    def __call__(self, path: Path, *settings: object) -> Decoded:
        """The file's pixels, not to be written to. Raises BadInputError."""
        try:
            about = path.stat()
        except OSError as error:
            raise BadInputError(f"cannot be read: {error.strerror}") from None
        key = (path, about.st_mtime_ns, about.st_size, *settings)
        if self.decoded is None or self.key != key:
            self.decoded = None
            self.decoded, self.key = self.decode(path, *settings), key
            self.decoded.pixels.flags.writeable = False
        return self.decoded


# One image and one mask, for a worker's tiles are mostly of the same two files
latest_image = Latest(decode_image)
latest_labels = Latest(decode_labels)
