"""What programs really write, and what a damaged file may claim."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from data_prep.image_files.open_image import open_image, read_image
from data_prep.raw import BadInputError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
NAMED = [*enumerate(("Red", "Green", "Blue"))]


def test_whatever_white_is_alpha_has_all_of_its_bits(tmp_path: Path) -> None:
    """A 12-bit camera's 2048 of 4095 under half of an alpha of 16 bits: 128 / 2 + 255 / 2."""
    pixels = np.full((8, 8, 4), 2048, np.uint16)
    pixels[..., 3] = 32768
    extra = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **extra)
    assert np.abs(read_image(tmp_path / "a.tif", 4095).astype(int) - 191).max() <= 1


@pytest.mark.parametrize(("padding", "is_read"), [(3, True), (4, False)])
def test_strips_that_are_padded_to_whole_words_are_read(
    padding: int, is_read: bool, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    content = bytearray((tmp_path / "a.tif").read_bytes() + bytes(8))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        place = tif.pages.first.tags["StripByteCounts"].valueoffset
    struct.pack_into("<I", content, place, RGB.nbytes + padding)
    (tmp_path / "a.tif").write_bytes(content)
    if is_read:
        assert np.array_equal(read_image(tmp_path / "a.tif"), RGB)
    else:
        with pytest.raises(BadInputError, match="1804 bytes cannot be the 1800"):
            read_image(tmp_path / "a.tif")


def test_a_jpg_is_whole_though_its_exif_is_damaged(tmp_path: Path) -> None:
    Pillow.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0not a TIFF file")
    expected = np.asarray(Pillow.open(tmp_path / "a.jpg"))
    assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)


def test_a_chunk_of_a_png_may_claim_more_than_there_is(tmp_path: Path) -> None:
    """69 bytes that claim 200,000 x 200,000 px and a chunk of 2 GB to hold them."""

    def chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data) if length is None else length) + name + data + check

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""), 2**31 - 1)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInputError, match="cannot hold 200000 x 200000 px"):
        open_image(tmp_path / "a.png").__enter__()


def test_planes_of_colours_that_lie_otherwise_are_refused(tmp_path: Path) -> None:
    """Three grey pages that OME names red, green and blue; one is turned."""
    channels = "".join(f'<Channel ID="Channel:0:{n}" Name="{name}"/>' for n, name in NAMED)
    planes = "".join(f'<TiffData IFD="{n}" FirstC="{n}" PlaneCount="1"/>' for n, _ in NAMED)
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="30"'
        f' SizeY="20" SizeC="3" SizeZ="1" SizeT="1">{channels}{planes}</Pixels></Image></OME>'
    )
    for name, turn in (("same", 1), ("turned", 3)):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for number in range(3):
                about = {"description": ome} if number == 0 else {}
                tags = [(274, 3, 1, turn if number == 1 else 1, True)]
                writer.write(RGB[..., number], metadata=None, extratags=tags, **about)
    assert np.array_equal(read_image(tmp_path / "same"), RGB)
    with pytest.raises(BadInputError, match="orientation"):
        read_image(tmp_path / "turned")
