"""Check what the header of a TIF claims before anything is decoded.

Programs that read TIF differ in what they make of a header that contradicts itself; here it is
refused. So no picture comes out that another program would not show, and no memory is asked for
that the bytes of the file cannot fill.
"""

import struct
from dataclasses import dataclass

import numpy as np
from tifffile import TiffPage

from data_prep.raw import BadInputError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS, STRIP_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = (
    *(317, 320, 322, 323, 324, 325),
)
EXTRA, FORMAT, COEFFICIENTS, SUBSAMPLING, REFERENCE = 338, 339, 529, 530, 532
IMAGE_DEPTH, TILE_DEPTH = 32997, 32998
ONE_NUMBER = {
    *(WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES, ROWS, PLANAR),
    *(PREDICTOR, TILE_WIDTH, TILE_HEIGHT, IMAGE_DEPTH, TILE_DEPTH),
}
A_NUMBER_A_SAMPLE = {BITS, FORMAT}
OTHERS = {STRIP_OFFSETS, STRIP_COUNTS, COLOUR_MAP, TILE_OFFSETS, TILE_COUNTS, EXTRA}
OTHERS |= {COEFFICIENTS, SUBSAMPLING, REFERENCE, 292, 347}
WHOLE_NUMBERS = (1, 3, 4, 16)  # types of tags: BYTE, SHORT, LONG, LONG8

YCBCR = 6  # of PhotometricInterpretation
NOT_COMPRESSED, GROUP_4, LZW, JPEG, PACKBITS = 1, 4, 5, 7, 32773
DEFLATE, LZMA, ZSTD, JPEG_2000, WEBP = (8, 32946), 34925, 50000, (33003, 33005, 34712), 50001
PICTURES = (JPEG, *JPEG_2000, WEBP)
WITH_PREDICTOR = (LZW, *DEFLATE, LZMA, ZSTD)
MOST_EXPANSION = {
    GROUP_4: 2**20,  # a white row is a bit
    LZW: 2560,  # a code of 12 bits is at most 3,838 bytes
    JPEG: 1024,  # an empty block of 64 values is a bit
    PACKBITS: 64,
    **dict.fromkeys(DEFLATE, 1032),
    LZMA: 2**15,
    ZSTD: 2**15,
    **dict.fromkeys((*JPEG_2000, WEBP), 2**20),
}
"""How many bytes of pixels a stored byte can become, at most, for each compression."""
WORD_BYTES = 4
BOUNDLESS = (GROUP_4, LZMA, ZSTD, *JPEG_2000, WEBP)
"""Compressions by which a few bytes may stand for any number of px, or nearly so."""


MOST_AT_ONCE = 2**30
"""Most samples of a strip or tile, for compressions that are BOUNDLESS."""


@dataclass(frozen=True)
class Layout:
    """Where a page has its pixels: planes of rows of segments (strips or tiles)."""

    height_px: int
    width_px: int
    segment_height: int
    segment_width: int
    num_planes: int
    """1 where the samples of a px lie together, else a plane a sample."""
    samples: int
    """Samples of a px that lie together."""
    bits: int
    row_bytes: int
    """Length of a segment's row before compression."""

    @property
    def down(self) -> int:
        """Segments below each other."""
        return -(-self.height_px // self.segment_height)

    @property
    def across(self) -> int:
        """Segments beside each other."""
        return -(-self.width_px // self.segment_width)


def checked_layout(page: TiffPage, num_bytes: int) -> Layout:
    """Return where a page has its pixels in a file of so many bytes.

    Raises BadInputError if the header contradicts itself or the file, or asks for what cannot be
    read.
    """
    check_tags(page)
    check_kind(page)
    layout = layout_of(page)
    if STRIP_COUNTS not in page.tags and not page.is_tiled and page.compression == NOT_COMPRESSED:
        page.databytecounts = plain_counts(layout)  # old scanners leave it out
    check_segments(page, layout, num_bytes)
    return layout


def check_tags(page: TiffPage) -> None:
    """Refuse tags that tifffile left out because they are damaged, and odd types and counts."""
    file, tiff = page.parent.filehandle, page.parent.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(tiff.tagnoformat, file.read(tiff.tagnosize))
    entries = file.read(count * tiff.tagsize)
    # one that is there twice with the same content is one
    listed = {
        entries[start : start + tiff.tagsize] for start in range(0, len(entries), tiff.tagsize)
    }
    codes = [struct.unpack_from(f"{tiff.byteorder}H", entry)[0] for entry in listed]
    for code in ONE_NUMBER | A_NUMBER_A_SAMPLE | OTHERS:
        if codes.count(code) != (code in page.tags):
            raise BadInputError(f"damaged: tag {code} cannot be read, or is there twice")
    for tag in page.tags:
        if tag.code not in ONE_NUMBER | A_NUMBER_A_SAMPLE:
            continue
        allowed = (1,) if tag.code in ONE_NUMBER else (1, page.samplesperpixel)
        if tag.count not in allowed or tag.dtype not in WHOLE_NUMBERS:
            raise BadInputError(f"damaged: tag {tag.name} has {tag.count} values of another type")
    for code in (WIDTH, HEIGHT, PHOTOMETRIC):
        if code not in page.tags:
            raise BadInputError(f"damaged: tag {code} is missing")


def check_kind(page: TiffPage) -> None:
    """Refuse what contradicts itself whatever the colours are, and compressions not known."""
    if not (page.imagewidth > 0 and page.imagelength > 0):
        raise BadInputError(f"holds no picture: {page.imagewidth} x {page.imagelength} px")
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise BadInputError(f"is a volume of depth {page.imagedepth}: expected one picture")
    compression, name = page.compression, getattr(page.compression, "name", page.compression)
    if compression != NOT_COMPRESSED and compression not in MOST_EXPANSION:
        raise BadInputError(
            f"compression {name} cannot be read: save it uncompressed, or with LZW, deflate or JPEG"
        )
    if compression not in WITH_PREDICTOR:
        page.predictor = 1  # it means nothing here, but tifffile would apply it
    if page.photometric != YCBCR:
        page.subsampling = (1, 1)  # for the same reason
    if page.predictor not in (1, 2):
        raise BadInputError(f"damaged: predictor {page.predictor} with compression {name}")
    if page.fillorder not in (
        (1,) if compression == GROUP_4 else (1, 2)
    ) or page.planarconfig not in (1, 2):
        raise BadInputError(
            f"damaged: FillOrder {page.fillorder}, PlanarConfiguration {page.planarconfig}"
        )
    if isinstance(page.bitspersample, tuple) or page.dtype is None:
        raise BadInputError(
            f"samples of {page.bitspersample} bits, format {page.sampleformat}: expected 8 or 16"
        )
    needed = {JPEG: 8, WEBP: 8, GROUP_4: 1}.get(compression, page.bitspersample)
    if page.bitspersample != needed or (page.predictor == 2 and page.bitspersample % 8):
        raise BadInputError(f"damaged: {page.bitspersample} bits a sample with compression {name}")


def layout_of(page: TiffPage) -> Layout:
    """Return where a page has its pixels. Raises BadInputError for strips and tiles of no size."""
    is_tiled = TILE_WIDTH in page.tags or page.jpegheader is not None
    height, width = (page.tilelength, page.tilewidth) if is_tiled else (0, page.imagewidth)
    if not is_tiled:
        height = page.rowsperstrip
    if height < 1 or width < 1:
        raise BadInputError(f"damaged: strips or tiles of {width} x {height} px")
    is_planar = page.planarconfig == 2
    samples = 1 if is_planar else page.samplesperpixel
    return Layout(
        height_px=page.imagelength,
        width_px=page.imagewidth,
        segment_height=height,
        segment_width=width,
        num_planes=page.samplesperpixel if is_planar else 1,
        samples=samples,
        bits=page.bitspersample,
        row_bytes=-(-width * samples * page.bitspersample // 8),
    )


def plain_counts(layout: Layout) -> tuple[int, ...]:
    """Return the bytes of each strip of a page that is not compressed."""
    ends = (min((row + 1) * layout.segment_height, layout.height_px) for row in range(layout.down))
    heights = [end - row * layout.segment_height for row, end in enumerate(ends)]
    return tuple(height * layout.row_bytes for height in heights) * layout.num_planes


def check_segments(page: TiffPage, layout: Layout, num_bytes: int) -> None:
    """Refuse a page that lacks strips or tiles, or whose bytes cannot hold its pixels."""
    kind = "tiles" if page.is_tiled else "strips"
    check_listed(page, layout, kind)
    is_compressed = page.compression != NOT_COMPRESSED
    most = MOST_EXPANSION[page.compression] if is_compressed else 1
    full_bytes = layout.segment_height * layout.row_bytes
    offsets, counts = (
        np.minimum(np.array(listed, np.uint64), 2**62).astype(np.int64)
        for listed in (page.dataoffsets, page.databytecounts)
    )
    num_missing = int(np.count_nonzero((offsets == 0) | (counts == 0)))
    if num_missing:
        raise BadInputError(
            f"holds no data for {num_missing} of {len(offsets)} {kind}: it was not written to its"
            " end, or is a sparse TIF; write it anew and whole, with QuPath or 'vips tiffsave'"
        )
    height = layout.down * layout.segment_height if page.is_tiled else layout.height_px
    claimed = layout.num_planes * height * layout.across * layout.row_bytes
    stored = min(num_bytes, num_stored_bytes(page))  # strips and tiles may be the same bytes
    if claimed > stored * most:
        raise BadInputError(
            f"damaged or cut short: {stored} bytes cannot hold {claimed} bytes of pixels"
        )
    if page.compression in BOUNDLESS and full_bytes * 8 > MOST_AT_ONCE * layout.bits:
        raise BadInputError(
            f"{kind} of {layout.segment_width} x {layout.segment_height} px are too large to decode"
            " at once: save it in tiles, with QuPath or 'vips tiffsave --tile'"
        )
    if (end := int((offsets + counts).max())) > num_bytes:
        raise BadInputError(f"cut short: pixel data ends at byte {end}, the file at {num_bytes}")
    needed = np.full((layout.num_planes, layout.down, layout.across), full_bytes)
    if not page.is_tiled:  # the last strip may have fewer rows
        needed[:, -1] -= (layout.down * layout.segment_height - height) * layout.row_bytes
    wrong = needed.ravel() > counts * most
    if not is_compressed:
        padding = counts - needed.ravel()  # some programs begin each strip at a whole word
        wrong = ((padding < 0) | (padding >= WORD_BYTES)) & (counts != full_bytes)
    if wrong.any():
        number = int(np.flatnonzero(wrong)[0])
        raise BadInputError(
            f"damaged: {counts[number]} bytes cannot be the {needed.flat[number]} of its"
            f" {kind[:-1]} number {number}"
        )


def num_stored_bytes(page: TiffPage) -> int:
    """Return how many bytes a page's strips or tiles take, those that are listed again once."""
    lengths = dict(zip(page.dataoffsets, page.databytecounts, strict=False))
    return sum(map(int, lengths.values()))


def check_listed(page: TiffPage, layout: Layout, kind: str) -> None:
    """Refuse a page that lists more or fewer strips or tiles than its size needs."""
    num_needed = layout.num_planes * layout.down * layout.across
    listed = {len(page.dataoffsets), len(page.databytecounts)}
    if page.jpegheader is None:  # tifffile shortens lists that are too long
        pairs = ((TILE_OFFSETS, TILE_COUNTS), (STRIP_OFFSETS, STRIP_COUNTS))
        mine, others = pairs if kind == "tiles" else pairs[::-1]
        listed |= {page.tags[code].count for code in mine if code in page.tags}
        if any(code in page.tags for code in others):
            raise BadInputError("damaged: has both strips and tiles")
    if wrong := listed - {num_needed}:
        size = f"{layout.width_px} x {layout.height_px} px"
        raise BadInputError(f"damaged: lists {min(wrong)} {kind}, but {size} need {num_needed}")
