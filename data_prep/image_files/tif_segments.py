"""Decode the strips and tiles of a TIF's page that meet a box, each by itself."""

import io
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from tifffile import TiffPage

from data_prep.image_files.group_4 import check_group_4, has_end
from data_prep.image_files.tif_structure import (
    BOUNDLESS,
    GROUP_4,
    JPEG,
    LZMA,
    NOT_COMPRESSED,
    PICTURES,
    ZSTD,
    Layout,
)
from data_prep.images.arrays import Box
from data_prep.raw import BadInputError

STARTS = {ZSTD: b"\x28\xb5\x2f\xfd", LZMA: b"\xfd7zXZ\0"}


def check_first_segment(page: TiffPage, layout: Layout) -> None:
    """Raise BadInputError if the first strip or tile is not of the page's compression, which its
    first or last bytes tell.

    By some compressions a few bytes may stand for any number of px. So nothing else shows that a
    header claims a huge picture, before each of its tiles is listed.
    """
    if page.compression not in BOUNDLESS:
        return
    data, rows = read_segment(page, layout, 0, 0)
    check_data(data, page, layout, rows)
    if not data.startswith(STARTS.get(page.compression, b"")):
        raise BadInputError(f"unreadable: its strips or tiles are not {page.compression.name}")


def is_plain(page: TiffPage) -> bool:
    """Return whether rows of px lie in the file as they are, so that some can be read alone."""
    return page.compression == NOT_COMPRESSED and not page.is_tiled and page.fillorder == 1


def stored_samples(page: TiffPage, layout: Layout, box: Box) -> npt.NDArray[Any]:
    """Return the samples of a part of a page, HWC, as they are stored."""
    if is_plain(page):
        planes = [plain_rows(page, layout, plane, box) for plane in range(layout.num_planes)]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
    out_HWC = np.empty((box.height, box.width, layout.num_planes * layout.samples), page.dtype)
    for plane in range(layout.num_planes):
        samples = slice(plane * layout.samples, (plane + 1) * layout.samples)
        fill(out_HWC[..., samples], page, layout, plane, box)
    return out_HWC


def fill(out_HWC: npt.NDArray[Any], page: TiffPage, layout: Layout, plane: int, box: Box) -> None:
    """Decode the segments of a plane that meet a box into `out_HWC`."""
    height, width = layout.segment_height, layout.segment_width
    for row in range(box.y // height, -(-(box.y + box.height) // height)):
        for column in range(box.x // width, -(-(box.x + box.width) // width)):
            index = (plane * layout.down + row) * layout.across + column
            segment_HWC = decoded_segment(page, layout, index, row)
            top, left = row * height, column * width
            y0, y1 = max(box.y, top), min(box.y + box.height, top + height)
            x0, x1 = max(box.x, left), min(box.x + box.width, left + width)
            out_HWC[y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = segment_HWC[
                y0 - top : y1 - top, x0 - left : x1 - left
            ]


def decoded_segment(page: TiffPage, layout: Layout, index: int, row: int) -> npt.NDArray[Any]:
    """Decode a strip or tile, HWC. Raises BadInputError if it has not the size that it should."""
    data, rows = read_segment(page, layout, index, row)
    check_data(data, page, layout, rows)
    decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
    if decoded.shape != (1, rows, layout.segment_width, layout.samples):
        raise BadInputError(f"damaged: a strip or tile of {decoded.shape[1:]} values")
    if page.compression == GROUP_4:
        check_group_4(data, decoded[0, ..., 0])
    return decoded[0]


def read_segment(page: TiffPage, layout: Layout, index: int, row: int) -> tuple[bytes, int]:
    """Return a strip or tile as it is stored, and its height in px."""
    file = page.parent.filehandle
    file.seek(page.dataoffsets[index])
    data = file.read(page.databytecounts[index])
    rows = layout.segment_height
    if not page.is_tiled:
        rows = min(rows, layout.height_px - row * layout.segment_height)
    return data, rows


def check_data(data: bytes, page: TiffPage, layout: Layout, rows: int) -> None:
    """Refuse stored data of which decoders would make a picture though it is another, or cut."""
    if page.compression in PICTURES and page.jpegheader is None:
        check_picture(data, page, layout, rows)
    if page.compression == GROUP_4 and not has_end(data):
        raise BadInputError("unreadable or cut short: Group 4 data without its end")


def check_picture(data: bytes, page: TiffPage, layout: Layout, rows: int) -> None:
    """Refuse a picture inside a TIF (JPEG, ...) that has another size, or has no end."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=("JPEG", "JPEG2000", "WEBP")) as image:
            width, height = image.size
            samples = len(image.getbands())
    except UnidentifiedImageError:
        raise BadInputError(
            f"unreadable: its strips or tiles are not {page.compression.name}"
        ) from None
    # programs write the last strip whole, or only what of it is in the picture
    if width != layout.segment_width or height not in (rows, layout.segment_height):
        raise BadInputError(
            f"damaged: a strip or tile of {width} x {height} px, where the header says"
            f" {layout.segment_width} x {rows}"
        )
    if samples != layout.samples and page.compression == JPEG:
        raise BadInputError(f"damaged: a JPEG of {samples} channels, not {layout.samples}")
    if page.compression == JPEG and b"\xff\xd9" not in data[len(data) // 2 :]:
        raise BadInputError("cut short: a JPEG in it has no end")


def plain_rows(page: TiffPage, layout: Layout, plane: int, box: Box) -> npt.NDArray[Any]:
    """Read the px of a box, HWC, from rows that lie in the file as they are."""
    is_packed = bool(layout.bits % 8)
    px_bytes = layout.samples * layout.bits // 8
    start, length = box.x * px_bytes, box.width * px_bytes
    if is_packed:
        start, length = 0, layout.row_bytes
    rows = np.empty((box.height, length), np.uint8)
    file = page.parent.filehandle
    for place, begin, end in runs_of_rows(page, layout, plane, box):
        if length == layout.row_bytes:
            file.seek(place)
            if file.readinto(rows[begin:end]) != rows[begin:end].nbytes:
                raise BadInputError("cut short")
        else:  # of wide rows no more is read than is asked for
            shape = end - begin, layout.row_bytes
            mapped = np.memmap(file._fh, np.uint8, "r", place, shape)
            rows[begin:end] = mapped[:, start : start + length]
    if is_packed:
        run = layout.width_px * layout.samples
        unpacked = imagecodecs.packints_decode(rows.tobytes(), page.dtype, layout.bits, runlen=run)
        pixels = unpacked.reshape(box.height, layout.width_px, layout.samples)
        return pixels[:, box.x : box.x + box.width]
    pixels = rows.view(page.dtype.newbyteorder(page.parent.byteorder))
    native = pixels.astype(page.dtype, copy=False)
    return native.reshape(box.height, box.width, layout.samples)


def runs_of_rows(
    page: TiffPage, layout: Layout, plane: int, box: Box
) -> Iterator[tuple[int, int, int]]:
    """Yield the box's rows in runs that lie together in the file: place, first row, end."""
    height = layout.segment_height
    first, end = box.y // height, -(-(box.y + box.height) // height)
    place = begin = 0
    for strip in range(first, end):
        top = max(box.y, strip * height)
        offset = page.dataoffsets[plane * layout.down + strip]
        at = offset + (top - strip * height) * layout.row_bytes
        if place + (top - box.y - begin) * layout.row_bytes != at:
            if strip > first:
                yield place, begin, top - box.y
            place, begin = at, top - box.y
    yield place, begin, box.height
