"""Read a TIF, or a part of it: the strips and tiles that meet the part, each decoded by itself."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tifffile import TiffFile, TiffPage

from data_prep.image_files.samples import (
    Extra,
    Meaning,
    largest_uint16,
    stored_box,
    to_labels,
    to_rgb,
    turned,
)
from data_prep.image_files.tif_pages import Level, picture_levels
from data_prep.image_files.tif_segments import check_first_segment, is_plain, stored_samples
from data_prep.image_files.tif_structure import (
    COEFFICIENTS,
    COLOUR_MAP,
    EXTRA,
    JPEG,
    JPEG_2000,
    ORIENTATION,
    PICTURES,
    REFERENCE,
    SUBSAMPLING,
    Layout,
    checked_layout,
)
from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile, codec_errors_explained
from data_prep.images.resolution import mpp_of_tif
from data_prep.raw import BadInputError

COLOURS: dict[int, Literal["grey", "rgb", "palette", "ycbcr"]] = {
    0: "grey",
    1: "grey",
    2: "rgb",
    3: "palette",
    6: "ycbcr",
}
EXTRAS = {0: Extra.UNKNOWN, 1: Extra.PREMULTIPLIED, 2: Extra.ALPHA}
FULL_RANGE = (0, 255, 128, 255, 128, 255)
BT_601 = (0.299, 0.587, 0.114)


class TifImage(ImageFile):
    """A TIF; of a part no more is read than that takes."""

    def __init__(self, tif: TiffFile, num_bytes: int, uint16_white: int) -> None:
        self.tif, self.num_bytes, self.uint16_white = tif, num_bytes, uint16_white
        self.levels = picture_levels(tif)
        self.largest = StoredLevel(self.levels[0], num_bytes)
        self.height_px, self.width_px = self.largest.shape
        self.segment_px = self.largest.segment_px

    @property
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px, as ImageFile.mpp."""
        with codec_errors_explained():
            return mpp_of_tif(self.tif, self.levels[0].pages[0])

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        return self.rgb(self.largest, box)

    def rgb(self, level: "StoredLevel", box: Box) -> Image:
        """Return a part of a level, HWC uint8 RGB. Raises BadInputError."""
        with codec_errors_explained():
            stored_HWC = level.stored(box)
            pixels_HWC = to_rgb(stored_HWC, level.meaning, self.uint16_white)
            largest = largest_uint16(stored_HWC, level.meaning)
            self.largest_uint16 = max(self.largest_uint16, largest)
            return np.ascontiguousarray(turned(pixels_HWC, level.orientation))

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""
        compression = self.levels[0].pages[0].compression
        if compression in PICTURES:
            raise BadInputError(
                f"is compressed by {compression.name}, which may change values: save the mask"
                " uncompressed, or with LZW or deflate"
            )
        with codec_errors_explained():
            labels_HW = to_labels(self.largest.stored(box), self.largest.meaning)
            return turned(labels_HW, self.largest.orientation)

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level that ImageFile.overview allows. Raises BadInputError."""
        full_px = self.levels[0].width_px
        smaller = [level for level in self.levels[1:] if full_px <= most_shrink * level.width_px]
        smallest = min(smaller, key=lambda level: level.width_px, default=None)
        if smallest is None or smallest.height_px * smallest.width_px > most_px:
            return None
        with codec_errors_explained():
            level = StoredLevel(smallest, self.num_bytes)
        height_px, width_px = level.shape
        return self.rgb(level, Box(0, 0, width_px, height_px))


class StoredLevel:
    """The stored samples of one level, whose header has been checked. Raises BadInputError."""

    def __init__(self, level: Level, num_bytes: int) -> None:
        self.pages = level.pages
        self.layouts = [checked_layout(page, num_bytes) for page in level.pages]
        page, layout = self.pages[0], self.layouts[0]
        meanings = [meaning_of(page) for page in self.pages]
        self.meaning = meanings[0]
        if len(self.pages) > 1:  # planes that the file calls red, green and blue
            if any(each != Meaning("grey", layout.bits) for each in meanings):
                raise BadInputError("planes of red, green and blue that are not grey")
            self.meaning = Meaning("rgb", layout.bits)
        self.orientation = orientation_of(page)
        sizes = {
            (each.height_px, each.width_px, each.bits, orientation_of(its_page))
            for each, its_page in zip(self.layouts, self.pages, strict=True)
        }
        if len(sizes) > 1:
            raise BadInputError("planes of red, green and blue that differ in size or orientation")
        for each, its_layout in zip(self.pages, self.layouts, strict=True):
            check_first_segment(each, its_layout)
        self.stored_shape = layout.height_px, layout.width_px
        self.shape = layout.height_px, layout.width_px
        self.segment_px = segment_of(page, layout)
        if self.orientation >= 5:
            self.shape, self.segment_px = self.shape[::-1], self.segment_px[::-1]

    def stored(self, box: Box) -> npt.NDArray[Any]:
        """Return the samples of a part of the picture, HWC, not yet turned."""
        box = stored_box(box, self.orientation, *self.stored_shape)
        parts = [
            stored_samples(page, layout, box)
            for page, layout in zip(self.pages, self.layouts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def orientation_of(page: TiffPage) -> int:
    """Return how a page is turned, 1 to 8. Raises BadInputError."""
    orientation = int(page.tags.valueof(ORIENTATION, default=1)) or 1  # 0: not known
    if not 1 <= orientation <= 8:
        raise BadInputError(f"damaged: Orientation {orientation}: expected 1 to 8")
    return orientation


def segment_of(page: TiffPage, layout: Layout) -> tuple[int, int]:
    """Return height and width of what is decoded at once."""
    if not is_plain(page):
        return layout.segment_height, layout.segment_width
    return 1, 1 if layout.bits % 8 == 0 else layout.width_px


def meaning_of(page: TiffPage) -> Meaning:
    """Return what a page's samples stand for. Raises BadInputError by the name of what is odd."""
    name = getattr(page.photometric, "name", page.photometric)
    colours = COLOURS.get(int(page.photometric))
    if colours is None:
        raise BadInputError(f"colour space {name}: expected grey, RGB or RGBA")
    samples, bits = page.samplesperpixel, page.bitspersample
    num_extra = samples - (3 if colours in ("rgb", "ycbcr") else 1)
    listed = as_numbers(page, EXTRA)
    if num_extra not in (0, 1) or len(listed) not in (0, num_extra):
        raise BadInputError(
            f"{samples} channels of kind {name}, {len(listed)} of them extra: expected grey, RGB or"
            " RGBA"
        )
    extra = Extra.NONE
    if num_extra:
        if listed and listed[0] not in EXTRAS:
            raise BadInputError(f"an extra channel of unknown kind {listed[0]}")
        extra = EXTRAS[listed[0]] if listed else Extra.ALPHA
    is_inverted = int(page.photometric) == 0
    if extra is not Extra.NONE and (
        is_inverted
        or colours in ("palette", "ycbcr")
        or page.compression in (JPEG, *JPEG_2000)
        or (colours == "grey" and extra is Extra.UNKNOWN)
    ):
        raise BadInputError(f"kind {name} with a channel ({extra.value}) beside it: not known")
    if samples > 1 and bits not in (8, 16, 32, 64):
        raise BadInputError(f"{samples} channels of {bits} bits: expected 8 or 16")
    if colours == "ycbcr":
        return meaning_of_ycbcr(page)
    palette = palette_of(page) if colours == "palette" else None
    # ImageJ inverts to the eye only; tifffile says of every array of bool that its 0 is white
    is_agreed = not is_inverted or (bits == 1 and "tifffile" not in page.software)
    return Meaning(colours, bits, is_inverted, is_agreed, extra, palette)


def meaning_of_ycbcr(page: TiffPage) -> Meaning:
    """Return what Y, Cb and Cr stand for. Raises BadInputError where it cannot be converted."""
    if page.planarconfig != 1 or page.bitspersample != 8:
        raise BadInputError("YCbCr in planes, or not of 8 bits: save it as RGB")
    if page.compression == JPEG:
        return Meaning("rgb", 8)  # the decoder converts it
    if page.compression in PICTURES and page.compression != 33003:
        raise BadInputError("YCbCr in another form than JPEG: save it as RGB")
    if page.compression not in PICTURES and as_numbers(page, SUBSAMPLING) != (1, 1):
        raise BadInputError("YCbCr with coarser colours, and not as JPEG: save it as RGB")
    for code, usual in ((REFERENCE, FULL_RANGE), (COEFFICIENTS, BT_601)):
        if code in page.tags and not np.allclose(fractions_of(page, code), usual, atol=5e-4):
            raise BadInputError("YCbCr of unusual range or weights: save it as RGB")
    return Meaning("ycbcr", 8)


def as_numbers(page: TiffPage, code: int) -> tuple[int, ...]:
    """Return the whole numbers of a tag; none if there is no such tag."""
    return tuple(np.atleast_1d(page.tags.valueof(code, default=())).astype(int).tolist())


def fractions_of(page: TiffPage, code: int) -> npt.NDArray[np.float64]:
    """Return the fractions of a tag, which stores numerators and denominators in turn."""
    pairs = np.array(page.tags.valueof(code), float).reshape(-1, 2)
    return pairs[:, 0] / np.where(pairs[:, 1] == 0, np.nan, pairs[:, 1])


def palette_of(page: TiffPage) -> Image:
    """Return the colours of a colour table, (2^bits, 3). Raises BadInputError."""
    bits, map_tag = page.bitspersample, page.tags.get(COLOUR_MAP)
    if bits not in (1, 2, 4, 8) or page.sampleformat != 1:
        raise BadInputError(f"a colour table for {bits} bits: expected 1, 2, 4 or 8")
    if map_tag is None or map_tag.count != 3 * 2**bits:
        raise BadInputError(f"damaged: no colour table of {2**bits} colours")
    colours = np.asarray(map_tag.value).reshape(3, -1).T
    # some programs write 8 bits where 16 are meant; libtiff tells them apart in the same way
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)
