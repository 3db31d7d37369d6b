"""Small files with the tags and the layout of real slides, to read in tests.

Each builder takes the picture of full resolution, HWC uint8 RGB, writes a file, and returns the
pixels that a reader should find: JPEG changes them, so they are decoded from the tiles by another
library than the one that reads them (Pillow, or PNG-like compression that changes nothing).
"""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as Pillow

Pixels = npt.NDArray[np.uint8]

APERIO = (
    "Aperio Image Library v11.2.1\r\n{w}x{h} [0,0 {w}x{h}] (32x32) JPEG/RGB Q=90"
    "|AppMag = {mag}|StripeWidth = 2040|ScanScope ID = SS0000|Filename = 0000|MPP = {mpp}|Left = 25"
)
SCN = (
    '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
    '<collection name="slide" sizeX="26000000" sizeY="76000000"><barcode>none</barcode>{images}'
    "</collection></scn>"
)
SCN_IMAGE = (
    '<image name="{name}"><pixels sizeX="{w}" sizeY="{h}">{levels}</pixels>'
    '<view sizeX="{size_x}" sizeY="{size_y}" offsetX="{at}" offsetY="{at}"/><scanSettings>'
    "<objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    "</image>"
)
BIF_SCAN = b'<iScan Magnification="40" ScanRes="0.25" Z-layers="1"/>'
BIF_ENCODED = (
    '<EncodeInfo><SlideStitchInfo><ImageInfo AOIScanned="1" Width="{tile}" Height="{tile}"'
    ' Pos-X="0" Pos-Y="0" NumRows="{rows}" NumCols="{cols}">{joints}</ImageInfo>'
    '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
)
BIF_JOINT = (
    '<TileJointInfo Confidence="99" Direction="{direction}" Tile1="{first}" Tile2="{second}"'
    ' OverlapX="{overlap}" OverlapY="0"/>'
)
PHILIPS = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="DICOM_MANUFACTURER">PHILIPS</Attribute>'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
    "</DataObject></Array></Attribute></DataObject>"
)
PHILIPS_LEVEL = (
    '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
    "&quot;{mm}&quot; &quot;{mm}&quot;</Attribute>"
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">{number}</Attribute></DataObject>'
)


def glass_and_tissue(height_px: int, width_px: int, seed: int = 0) -> Pixels:
    """Draw white glass, and in its middle a rectangle of tissue with dark nuclei."""
    rng = np.random.default_rng(seed)
    image = np.full((height_px, width_px, 3), 245, np.uint8)
    top, left = height_px // 4, width_px // 4
    image[top:-top, left:-left] = (200, 130, 170)
    for y, x in zip(
        rng.integers(top + 6, height_px - top - 6, 40),
        rng.integers(left + 6, width_px - left - 6, 40),
        strict=True,
    ):
        image[y - 4 : y + 4, x - 4 : x + 4] = (70, 30, 110)
    return image


def halved(image: Pixels, times: int = 1) -> Pixels:
    """Shrink to a half of each side, `times` times, by the mean; odd edges are cut off."""
    for _ in range(times):
        h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        blocks = image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).astype(float)
        image = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return image


def jpeg(image: Pixels, **options: Any) -> bytes:
    """Encode by Pillow, without the tables being made to measure."""
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "JPEG", quality=90, subsampling=0, **options)
    return file.getvalue()


def jpeg_segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and bytes of each segment; the last one, SOS, with all that follows."""
    at = 2
    while at < len(stream):
        marker, length = struct.unpack(">HH", stream[at : at + 4])
        end = len(stream) if marker == 0xFFDA else at + 2 + length
        yield marker, stream[at:end]
        at = end


def without_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG into the tables that all tiles share, and the rest, as scanners do."""
    tables = [part for marker, part in jpeg_segments(stream) if marker in (0xFFDB, 0xFFC4)]
    rest = [
        part
        for marker, part in jpeg_segments(stream)
        if marker not in (0xFFDB, 0xFFC4) and not 0xFFE0 <= marker <= 0xFFEF
    ]
    start, end = b"\xff\xd8", b"\xff\xd9"
    return start + b"".join(tables) + end, start + b"".join(rest)


def tiles_of(image: Pixels, tile_px: int) -> Iterator[Pixels]:
    """Yield the tiles, row by row; the last ones repeat the edge."""
    below, right = -image.shape[0] % tile_px, -image.shape[1] % tile_px
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), "edge")
    for y in range(0, padded.shape[0], tile_px):
        for x in range(0, padded.shape[1], tile_px):
            yield padded[y : y + tile_px, x : x + tile_px]


def write_jpeg_tiles(
    writer: tifffile.TiffWriter, image: Pixels, tile_px: int, **options: Any
) -> Pixels:
    """Write a page of JPEG tiles with common tables; return what Pillow decodes from them."""
    streams = [jpeg(tile) for tile in tiles_of(image, tile_px)]
    tables = without_tables(streams[0])[0]
    writer.write(
        iter([without_tables(stream)[1] for stream in streams]),
        shape=image.shape,
        dtype=np.uint8,
        tile=(tile_px, tile_px),
        photometric="ycbcr",
        subsampling=(1, 1),
        compression="jpeg",
        jpegtables=tables,
        metadata=None,
        **options,
    )
    return tiles_as_decoded(streams, image.shape)


def tiles_as_decoded(streams: list[bytes], shape: tuple[int, ...]) -> Pixels:
    """Put tiles together that Pillow decodes."""
    decoded = [np.asarray(Pillow.open(io.BytesIO(stream))) for stream in streams]
    across = -(-shape[1] // decoded[0].shape[1])
    rows = [np.hstack(decoded[at : at + across]) for at in range(0, len(decoded), across)]
    return np.vstack(rows)[: shape[0], : shape[1]]


def noise(height_px: int, width_px: int) -> Pixels:
    """A picture that is none of the slide: a label, a macro."""
    return np.random.default_rng(1).integers(0, 255, (height_px, width_px, 3), np.uint8)


def write_strips(writer: tifffile.TiffWriter, image: Pixels, **options: Any) -> None:
    """Write a page in strips, which changes no value."""
    writer.write(
        image, photometric="rgb", compression="lzw", rowsperstrip=16, metadata=None, **options
    )


def write_svs(
    path: Path, image: Pixels, tile_px: int = 32, mpp: float = 0.25, magnification: int = 40
) -> Pixels:
    """Aperio: base, thumbnail in strips, a level at a quarter, label, macro (larger than all)."""
    h, w = image.shape[:2]
    about = APERIO.format(w=w, h=h, mag=magnification, mpp=mpp)
    library = about.partition("\r\n")[0]
    with tifffile.TiffWriter(path) as writer:
        pixels = write_jpeg_tiles(writer, image, tile_px, description=about)
        write_strips(writer, halved(image, 3), description=about + " -> thumbnail")
        write_jpeg_tiles(writer, halved(image, 2), tile_px, description=about)
        label, macro = noise(50, 40), noise(h + 60, 2 * w)
        write_strips(writer, label, subfiletype=1, description=f"{library}\r\nlabel 40x50")
        write_strips(
            writer, macro, subfiletype=9, description=f"{library}\r\nmacro {2 * w}x{h + 60}"
        )
    return pixels


def write_scn(path: Path, image: Pixels, tile_px: int = 32, num_regions: int = 1) -> Pixels:
    """Leica: the macro of the whole slide first, then each region with its level."""
    macro, level = noise(200, 80), halved(image)
    dimension = '<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"/>'
    whole = dimension.format(w=80, h=200, r=0, ifd=0)
    images = [
        SCN_IMAGE.format(
            name="macro", w=80, h=200, levels=whole, size_x=26000000, size_y=76000000, at=0
        )
    ]
    h, w = image.shape[:2]
    for region in range(num_regions):
        levels = "".join(
            dimension.format(w=size[1], h=size[0], r=r, ifd=1 + 2 * region + r)
            for r, size in enumerate([(h, w), level.shape])
        )
        images.append(
            SCN_IMAGE.format(
                name="region", w=w, h=h, levels=levels, size_x=w * 250, size_y=h * 250, at=9000
            )
        )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        write_jpeg_tiles(writer, macro, tile_px, description=SCN.format(images="".join(images)))
        for _ in range(num_regions):
            pixels = write_jpeg_tiles(writer, image, tile_px)
            write_jpeg_tiles(writer, level, tile_px)
    return pixels


def write_bif(path: Path, image: Pixels, tile_px: int = 32, overlap_px: int = 0) -> Pixels:
    """Ventana: label, probability map, then numbered levels; its XMP tells how tiles overlap."""
    rows, cols = -(-image.shape[0] // tile_px), -(-image.shape[1] // tile_px)
    joints = "".join(
        BIF_JOINT.format(direction=direction, first=1, second=second, overlap=overlap_px)
        for direction, second in (("RIGHT", 2), ("UP", 2 * cols))
    )
    encoded = BIF_ENCODED.format(tile=tile_px, rows=rows, cols=cols, joints=joints).encode()

    def xmp(content: bytes) -> dict[str, Any]:
        return {"extratags": [(700, 1, len(content), content, True)]}

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        about = {"software": "ScanOutputManager 1.1.0", **xmp(BIF_SCAN)}
        write_strips(writer, noise(300, 100), description="Label Image", **about)
        write_strips(writer, noise(30, 10), description="Probability_Image")
        pixels = write_jpeg_tiles(
            writer, image, tile_px, description="level=0 mag=40 quality=90", **xmp(encoded)
        )
        write_jpeg_tiles(writer, halved(image), tile_px, description="level=1 mag=20 quality=90")
    return pixels


def write_philips(path: Path, image: Pixels, tile_px: int = 32, mpp: float = 0.25) -> Pixels:
    """Philips: levels in tiles, padded to whole tiles; macro and label in strips, named."""
    level = np.pad(halved(image), ((0, tile_px), (0, tile_px), (0, 0)), constant_values=255)
    levels = "".join(
        PHILIPS_LEVEL.format(mm=f"{mpp * 2**number / 1000:g}", number=number) for number in range(2)
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        about = PHILIPS.format(levels=levels)
        pixels = write_jpeg_tiles(
            writer, image, tile_px, description=about, software="Philips DP v1.0"
        )
        write_jpeg_tiles(writer, level, tile_px, subfiletype=1)
        write_strips(writer, noise(300, 900), description="Macro")
        write_strips(writer, noise(300, 300), description="Label")
    return pixels


def write_pyramid(
    path: Path, image: Pixels, tile_px: int = 32, subifds: bool = False, marked: bool = True
) -> Pixels:
    """A plain pyramid, as libvips (`marked`: NewSubfileType 1) or QuPath (`subifds`) write it."""
    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {"tile": (tile_px, tile_px), "compression": "deflate"}
        options |= {"photometric": "rgb", "metadata": None}
        writer.write(image, subifds=2 if subifds else 0, **options)
        for times in (1, 2):
            writer.write(halved(image, times), subfiletype=int(marked), **options)
    return image


def write_ndpi(path: Path, image: Pixels, mpp: float = 0.25) -> Pixels:
    """Hamamatsu: each page one JPEG with restart markers, the macro last; offsets of 64 bits.

    The picture's sides are multiples of 32.
    """
    content = bytearray(b"II*\0" + bytes(8))
    pointer = 4  # to the next page
    for pixels, magnification in ((image, 40.0), (halved(image), 20.0), (noise(160, 400), -1.0)):
        stream = jpeg(pixels, restart_marker_blocks=2)
        tags = ndpi_tags(pixels, stream, len(content), magnification, mpp)
        content += stream
        entries, high = b"", b""
        for code, kind, count, value in sorted(tags):
            if len(value) > 4:
                at = len(content)
                content += value
                value = struct.pack("<I", at)
            entries += struct.pack("<HHI", code, kind, count) + value.ljust(4, b"\0")
            high += bytes(4)
        content[pointer : pointer + 8] = struct.pack("<Q", len(content))
        pointer = len(content) + 2 + len(entries)
        content += struct.pack("<H", len(tags)) + entries + bytes(8) + high
    path.write_bytes(content)
    return np.asarray(Pillow.open(io.BytesIO(jpeg(image))))


def ndpi_tags(
    pixels: Pixels, stream: bytes, at: int, magnification: float, mpp: float
) -> list[tuple[int, int, int, bytes]]:
    """Return code, type, count and value of each tag of a page."""
    start = stream.index(b"\xff\xda") + 14  # SOS of three components
    restarts = [start + found.end() for found in re.finditer(rb"\xff[\xd0-\xd7]", stream[start:])]
    per_cm = round(1e4 / mpp * abs(magnification) / 40)

    def long(code: int, value: int) -> tuple[int, int, int, bytes]:
        return code, 4, 1, struct.pack("<I", value)

    tags = [long(256, pixels.shape[1]), long(257, pixels.shape[0]), long(278, pixels.shape[0])]
    tags += [long(273, at), long(279, len(stream)), long(65420, 1)]
    tags += [(code, 3, 1, struct.pack("<H", v)) for code, v in ((259, 7), (262, 6), (277, 3))]
    tags += [(code, 5, 1, struct.pack("<II", per_cm, 1)) for code in (282, 283)]
    tags += [(296, 3, 1, struct.pack("<H", 3)), (530, 3, 2, struct.pack("<HH", 1, 1))]
    tags += [(258, 3, 3, struct.pack("<HHH", 8, 8, 8)), (271, 2, 10, b"Hamamatsu\0")]
    tags += [(65424, 9, 1, struct.pack("<i", 0))]  # in the middle of the depth
    tags += [(65421, 11, 1, struct.pack("<f", magnification))]
    if magnification > 0:
        starts = [start, *restarts]
        tags += [(65426, 4, len(starts), struct.pack(f"<{len(starts)}I", *starts))]
    return tags
