"""TIFs of every kind beside libtiff (OpenCV) and Pillow, and headers that contradict themselves."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from data_prep.image_files.open_image import open_image, read_image, read_size
from data_prep.images.arrays import Box
from data_prep.raw import BadInputError
from tests.data_prep.image_files.tif_files import packed, tif_bytes
from tests.fuzz.tif_structure import Entry, Tif

HEIGHT, WIDTH = 37, 53
ENCODERS: dict[int, Any] = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: imagecodecs.packbits_encode,
}


def values(bits: int, samples: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH, samples))


def written(
    bits: int,
    photometric: int,
    samples: int = 1,
    order: str = "<",
    compression: int = 1,
    planar: int = 1,
    tile: tuple[int, int] | None = None,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIF of random values, in strips of ten rows or in tiles."""
    pixels = values(bits, samples)
    planes = [pixels] if planar == 1 else np.split(pixels, samples, axis=-1)
    height, width = tile or (10, WIDTH)
    segments = []
    for plane in planes:
        if tile:
            plane = np.pad(plane, ((0, -HEIGHT % height), (0, -WIDTH % width), (0, 0)))
        segments += [
            packed(plane[y : y + height, x : x + width], bits, order)
            for y in range(0, len(plane), height)
            for x in range(0, plane.shape[1], width)
        ]
    layout = {322: [width], 323: [height]} if tile else {278: [height]}
    about = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * samples, 259: [compression]}
    about |= {262: [photometric], 277: [samples], 284: [planar], **layout, **(tags or {})}
    return tif_bytes(about, [ENCODERS[compression](each) for each in segments], order, bool(tile))


def ours(path: Path, content: bytes) -> np.ndarray:
    """The picture, which must be the same by tiles."""
    path.write_bytes(content)
    with open_image(path) as image:
        whole = image.read(image.whole)
        for y in range(0, image.height_px, 16):
            for x in range(0, image.width_px, 23):
                box = Box(x, y, min(23, image.width_px - x), min(16, image.height_px - y))
                part = whole[y : y + box.height, x : x + box.width]
                assert np.array_equal(image.read(box), part)
    return whole


def by_libtiff(content: bytes) -> np.ndarray | None:
    """As OpenCV reads it: HWC of 8 bits, colours and perhaps alpha."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return None
    if image.dtype == np.uint16:
        image = np.rint(image * (255 / 65535)).astype(np.uint8)
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=-1)
    return image[..., [2, 1, 0, 3][: image.shape[-1]]]


def by_pillow(content: bytes) -> np.ndarray | None:
    """As Pillow reads it, RGB; None for what it does not."""
    try:
        image = Pillow.open(io.BytesIO(content))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:
        return None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}], ids=["strips", "tiles"])
def test_grey_of_any_bits_is_spread_to_255(
    order: str, compression: int, layout: dict[str, Any], tmp_path: Path
) -> None:
    """round(255 v / (2^bits - 1)); of 1 to 8 bits that is what Pillow gives, in strips."""
    for bits in (1, 2, 4, 8, 10, 12, 14, 16):
        for photometric in (0, 1):
            content = written(bits, photometric, order=order, compression=compression, **layout)
            expected = np.rint(values(bits, 1) * 255 / (2**bits - 1)).astype(np.uint8)
            expected = 255 - expected if photometric == 0 else expected
            found = ours(tmp_path / "a.tif", content)
            assert np.array_equal(found, np.repeat(expected, 3, axis=-1))
            if bits <= 8 and not layout:
                assert np.array_equal(found, by_pillow(content))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}], ids=["strips", "tiles"])
def test_rgb_is_read_as_libtiff_reads_it(
    order: str, compression: int, planar: int, layout: dict[str, Any], tmp_path: Path
) -> None:
    for bits in (8, 16):
        content = written(bits, 2, 3, order, compression, planar, **layout)
        expected = np.rint(values(bits, 3) * 255 / (2**bits - 1)).astype(np.uint8)
        assert np.array_equal(ours(tmp_path / "a.tif", content), expected)
        if (bits, planar) != (16, 2):  # which OpenCV shuffles
            read = by_libtiff(content)
            assert read is None or np.array_equal(read, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    tags = {274: [orientation]}
    for content in (written(8, 2, 3, tags=tags), written(8, 2, 3, tile=(16, 16), tags=tags)):
        assert np.array_equal(ours(tmp_path / "a.tif", content), by_pillow(content))
    exif, stored = Pillow.Exif(), Pillow.fromarray(values(8, 3).astype(np.uint8))
    exif[274] = orientation
    for format in ("PNG", "JPEG"):
        file = io.BytesIO()
        stored.save(file, format, exif=exif)
        expected = by_pillow(file.getvalue())
        assert np.array_equal(ours(tmp_path / "a.tif", file.getvalue()), expected)
        assert read_size(tmp_path / "a.tif") == expected.shape[:2]


@pytest.mark.parametrize("planar", [1, 2])
def test_what_the_file_calls_the_fourth_sample_decides_what_it_does(
    planar: int, tmp_path: Path
) -> None:
    stored = values(8, 4)
    colours, alpha = stored[..., :3], stored[..., 3:]
    expected = {
        0: colours,
        1: np.minimum(colours, alpha) + 255 - alpha,
        2: (2 * (colours * alpha + 255 * (255 - alpha)) + 255) // 510,
    }
    for kind, pixels in expected.items():
        content = written(8, 2, 4, planar=planar, tags={338: [kind]})
        assert np.array_equal(ours(tmp_path / "a.tif", content), pixels)
    no_tag = written(8, 2, 4, planar=planar)
    assert np.array_equal(ours(tmp_path / "a.tif", no_tag), expected[2])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_colour_table_of_8_or_16_bits_is_looked_up(bits: int, tmp_path: Path) -> None:
    """The table has all red values first; libtiff takes one without a value above 255 as 8 bit."""
    table = np.random.default_rng(bits).integers(0, 256, (3, 2**bits))
    expected = table.T[values(bits, 1)[..., 0]]
    for factor in (1, 257):
        tags = {320: (table * factor).ravel().tolist()}
        content = written(bits, 3, tags=tags)
        assert np.array_equal(ours(tmp_path / "a.tif", content), expected)
        if bits >= 4:
            assert np.array_equal(by_libtiff(content), expected)


def test_ycbcr_without_jpeg_is_read_as_libtiff_reads_it(tmp_path: Path) -> None:
    content = written(8, 6, 3, tags={530: [1, 1]})
    assert np.array_equal(ours(tmp_path / "a.tif", content), by_libtiff(content))


WRONG: dict[str, tuple[dict[int, list[int]], str]] = {
    "no width": ({256: [0]}, "holds no picture"),
    "no height": ({257: [0]}, "holds no picture"),
    "huge": ({256: [60_000], 257: [60_000]}, "lists 4 strips|cannot hold"),
    "higher than its strips": ({257: [HEIGHT + 10]}, "lists 4 strips, but .* need 5"),
    "lower than its strips": ({257: [HEIGHT - 10]}, "lists 4 strips, but .* need 3"),
    "one bit for RGB": ({258: [1, 1, 1]}, "3 channels of 1 bits|cannot be"),
    "no bits": ({258: [0, 0, 0]}, "samples of 0 bits"),
    "unequal bits": ({258: [5, 6, 5]}, r"samples of \(5, 6, 5\) bits"),
    "one sample of RGB": ({277: [1], 258: [8]}, "1 channels of kind RGB|cannot be"),
    "no planar configuration": ({284: [0]}, "PlanarConfiguration 0"),
    "planes that are not there": ({284: [2]}, "lists 4 strips, but .* need 12"),
    "another compression": ({259: [34676]}, "compression .*cannot be read"),
    "no orientation": ({274: [9]}, "Orientation 9"),
    "colours unknown": ({262: [8]}, "colour space CIELAB"),
    "more extra samples than there are": ({338: [0, 0]}, "channels of kind RGB"),
    "signed": ({339: [2, 2, 2]}, "pixels of type int8"),
    "coarse YCbCr": ({262: [6]}, "coarser colours"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_header_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    tags, reason = WRONG[name]
    (tmp_path / "a.tif").write_bytes(written(8, 2, 3, tags=tags))
    with pytest.raises(BadInputError, match=reason):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "tags",
    [{317: [0]}, {317: [2]}, {530: [2, 2]}, {274: [0]}],
    ids=["predictor 0", "predictor 2", "subsampling of RGB", "orientation not known"],
)
@pytest.mark.parametrize("compression", [1, 32773])
def test_what_says_nothing_of_the_picture_is_passed_over(
    tags: dict[int, list[int]], compression: int, tmp_path: Path
) -> None:
    """As libtiff does."""
    for tile in (None, (16, 32)):
        content = written(8, 2, 3, compression=compression, tile=tile, tags=tags)
        assert np.array_equal(ours(tmp_path / "a.tif", content), values(8, 3))
        read = by_pillow(content) if tile is None else by_libtiff(content)
        assert read is None or np.array_equal(read, values(8, 3))


def with_entries(content: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """A TIF of one page with other entries in its list of tags, at its end."""
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    places = range(start + 2, start + 2 + 12 * count, 12)
    entries = change([content[place : place + 12] for place in places])
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


def test_strips_that_lie_as_they_are_need_no_lengths(tmp_path: Path) -> None:
    """Old scanners leave StripByteCounts out."""
    for planar in (1, 2):
        content = with_entries(
            written(8, 2, 3, planar=planar),
            lambda entries: [entry for entry in entries if entry[:2] != b"\x17\x01"],
        )
        assert np.array_equal(ours(tmp_path / "a.tif", content), values(8, 3))
    (tmp_path / "a.tif").write_bytes(content[:200])
    with pytest.raises(BadInputError):
        read_image(tmp_path / "a.tif")
    content = with_entries(
        written(8, 2, 3, compression=5),
        lambda entries: [entry for entry in entries if entry[:2] != b"\x17\x01"],
    )
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadInputError, match="lists 1 strips"):
        read_image(tmp_path / "a.tif")


def test_a_tag_that_is_there_twice_counts_once_if_it_says_the_same(tmp_path: Path) -> None:
    content = with_entries(written(8, 2, 3), lambda entries: entries[:1] + entries)
    assert np.array_equal(ours(tmp_path / "a.tif", content), values(8, 3))
    other_width = struct.pack("<HHII", 256, 4, 1, WIDTH - 1)
    content = with_entries(written(8, 2, 3), lambda entries: [*entries, other_width])
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadInputError, match=r"tag 256 .* is there twice"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [4, 34712, 34925, 50000, 50001])
def test_a_claim_that_a_few_bytes_may_hold_is_checked_against_the_first_of_them(
    compression: int, tmp_path: Path
) -> None:
    """Else each of the tiles that it claims would be listed before one is decoded."""
    bits, photometric = ([1], 0) if compression == 4 else ([8], 1)
    side, tiles = 2560, 100
    about = {256: [side], 257: [side], 258: bits, 259: [compression], 262: [photometric]}
    about |= {277: [1], 322: [256], 323: [256]}
    content = tif_bytes(about, [bytes(310)] * tiles, tiled=True)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadInputError, match=r"are not (JPEG|ZSTD|LZMA|WEBP)|without its end"):
        read_size(tmp_path / "a.tif")


def test_tiles_that_are_all_the_same_bytes_hold_no_more_than_these(tmp_path: Path) -> None:
    tile = zlib.compress(bytes(256 * 256))
    about = {256: [60_000], 257: [60_000], 258: [8], 259: [8], 262: [1], 277: [1]}
    about |= {322: [256], 323: [256], 324: [8] * 235**2, 325: [len(tile)] * 235**2}
    (tmp_path / "a.tif").write_bytes(tif_bytes(about, [tile], tiled=True))
    with pytest.raises(BadInputError, match=f"{len(tile)} bytes cannot hold"):
        read_size(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [4, 34712, 50001])
def test_a_strip_that_no_memory_holds_is_refused(compression: int, tmp_path: Path) -> None:
    bits, photometric = ([1], 0) if compression == 4 else ([8], 1)
    about = {256: [60_000], 257: [60_000], 258: bits, 259: [compression], 262: [photometric]}
    (tmp_path / "a.tif").write_bytes(tif_bytes({**about, 278: [60_000]}, [bytes(31_000)]))
    with pytest.raises(BadInputError, match="too large to decode at once"):
        read_size(tmp_path / "a.tif")


def test_a_jpeg_of_another_size_than_its_tile_or_without_end_is_refused(tmp_path: Path) -> None:
    pixels = values(8, 3).astype(np.uint8)[:32, :32]
    jpeg = imagecodecs.jpeg8_encode(pixels, colorspace="rgb", outcolorspace="rgb")
    about = {256: [32], 257: [32], 258: [8] * 3, 259: [7], 262: [2], 277: [3], 284: [1]}
    for side, data, reason in (
        (32, jpeg, None),
        (48, jpeg, "32 x 32 px, where the header says 48 x 48"),
        (32, jpeg[:-40], "has no end"),
    ):
        path = tmp_path / "a.tif"
        path.write_bytes(tif_bytes({**about, 322: [side], 323: [side]}, [data], tiled=True))
        if reason is None:
            assert read_image(path).shape == (32, 32, 3)
            continue
        with pytest.raises(BadInputError, match=reason):
            read_image(path)


def test_a_png_or_jpg_that_claims_more_than_its_bytes_hold_is_refused(tmp_path: Path) -> None:
    png = bytearray(imagecodecs.png_encode(values(8, 3).astype(np.uint8)))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    jpg = bytearray(imagecodecs.jpeg8_encode(values(8, 3).astype(np.uint8)))
    frame = jpg.index(b"\xff\xc0")
    jpg[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
    for content in (png, jpg):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(BadInputError, match="cannot hold"):
            read_size(tmp_path / "a.png")


FIXTURES = [
    *(written(8, 2, 3, compression=compression) for compression in ENCODERS),
    written(8, 2, 3, planar=2, compression=5),
    written(16, 2, 3, order=">", compression=8),
    written(4, 1),
    written(8, 3, tags={320: [*range(0, 65536, 256)] * 3}),
    written(8, 2, 3, tile=(16, 16), compression=5),
]


def test_a_header_with_random_bytes_gives_what_libtiff_gives_or_is_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    num_refused = 0
    for number in range(600):
        content = FIXTURES[number % len(FIXTURES)]
        start = int.from_bytes(content[4:8], "big" if content[:2] == b"MM" else "little")
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2))):
            damaged[rng.randrange(start, len(content))] = rng.choice(
                (0, 1, 2, 3, 255, rng.getrandbits(8))
            )
        path = tmp_path / "a.tif"
        path.write_bytes(damaged)
        try:
            found = read_image(path)
        except BadInputError:
            num_refused += 1
            continue
        path.write_bytes(content)
        others = [read_image(path), by_libtiff(bytes(damaged)), by_pillow(bytes(damaged))]
        told = [at for at in range(len(content)) if content[at] != damaged[at]]
        assert any(is_close(found, other) for other in others if other is not None), (number, told)
    assert 200 < num_refused < 590


def test_a_damaged_tag_that_matters_to_no_px_is_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Pillow.fromarray(pixels_HWC).save(tmp_path / "a.tif", dpi=(300, 300))
    tif = Tif((tmp_path / "a.tif").read_bytes())
    (page,) = tif.pages()
    nowhere = b"\xff\xff\xff\x7f"
    damaged = tuple(Entry(282, 5, 1, nowhere) if e.tag == 282 else e for e in page.entries)
    (tmp_path / "a.tif").write_bytes(tif.with_page(page, damaged, 0))
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels_HWC)
    assert not caplog.records


def is_close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether pictures are the same but for roundings."""
    if one.shape != other.shape:
        return False
    return int(np.abs(one.astype(int) - other).max()) <= 1
