"""Reading every kind of raw image to RGB uint8, refusing damaged ones, and writing prepared ones.

Files are written by Pillow, tifffile or OpenCV; what is expected comes from the pixels that went
in, or from another decoder than the one under test.
"""

import io
import os
import tempfile
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from data_prep.image_files import png_jpg
from data_prep.image_files.open_image import open_image, read_image
from data_prep.image_files.png_jpg import Decoded, Latest
from data_prep.images.arrays import Box, Image
from data_prep.images.encoding import encode_image, encode_mask
from data_prep.raw import BadInputError

HEIGHT, WIDTH = 120, 160


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, *shape), dtype, endpoint=True)


def gradient() -> np.ndarray:
    """A smooth RGB picture, which JPEG hardly changes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x + 40, 200 - y, (x + y) // 2 + 60], axis=-1).astype(np.uint8)


def ycbcr(image_HWC: np.ndarray) -> np.ndarray:
    return np.asarray(Pillow.fromarray(image_HWC).convert("YCbCr"))


def tif(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def saved(image: Pillow.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode_image(content: bytes, suffix: str = ".tif", white: int = 65535) -> Image:
    """The picture, which must be the same read whole, by bands and by tiles."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        with open_image(path, white) as image:
            whole = image.read(image.whole)
            for height, width in ((7, image.width_px), (24, 37)):
                for box in boxes(image.height_px, image.width_px, height, width):
                    part = whole[box.y : box.y + box.height, box.x : box.x + box.width]
                    assert np.array_equal(image.read(box), part)
    return whole


def boxes(height: int, width: int, down: int, across: int) -> list[Box]:
    """Boxes that cover a picture."""
    return [
        Box(x, y, min(across, width - x), min(down, height - y))
        for y in range(0, height, down)
        for x in range(0, width, across)
    ]


def read_tile(path: Path, box: Box, white: int = 65535) -> Image:
    with open_image(path, white) as image:
        return image.read(box)


def assert_rgb(decoded: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= tolerance


class TestTif:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"compression": "lzw", "predictor": True},
            {"compression": "packbits"},
            {"tile": (32, 48), "compression": "lzw"},  # neither side is a multiple
            {"planarconfig": "separate"},
            {"planarconfig": "separate", "tile": (32, 32), "compression": "deflate"},
            {"byteorder": ">", "rowsperstrip": 7, "bigtiff": True},
        ],
        ids=str,
    )
    def test_rgb_comes_back_to_the_bit(self, options: dict[str, Any]) -> None:
        image_HWC = noise(3)
        if options.get("planarconfig"):
            content = tif(np.moveaxis(image_HWC, -1, 0), photometric="rgb", **options)
        else:
            content = tif(image_HWC, photometric="rgb", **options)
        assert_rgb(decode_image(content, ".tif"), image_HWC)

    def test_what_another_library_wrote_comes_back_to_the_bit(self) -> None:
        content = saved(Pillow.fromarray(noise(3)), "TIFF", compression="tiff_lzw")
        assert_rgb(decode_image(content, ".tiff"), noise(3))

    @pytest.mark.parametrize(
        "write",
        [
            lambda: tif(gradient(), photometric="rgb", compression="jpeg"),
            lambda: tif(gradient(), photometric="rgb", compression="jpeg", tile=(64, 64)),
            lambda: tif(ycbcr(gradient()), photometric="ycbcr", compression="jpeg"),
            lambda: saved(Pillow.fromarray(gradient()), "TIFF", compression="jpeg"),
        ],
        ids=["strips", "tiles", "ycbcr", "of Pillow"],
    )
    def test_jpeg_inside_comes_back_as_another_library_reads_it(
        self, write: Callable[[], bytes]
    ) -> None:
        decoded = decode_image(write(), ".tif")
        expected = np.asarray(Pillow.open(io.BytesIO(write())).convert("RGB"))
        assert_rgb(decoded, expected, tolerance=4)
        assert np.abs(decoded.astype(int) - gradient()).mean() < 3

    def test_grey_becomes_three_equal_channels(self) -> None:
        content = tif(noise(), photometric="minisblack", compression="lzw")
        assert_rgb(decode_image(content, ".tif"), np.stack([noise()] * 3, axis=-1))

    def test_inverted_grey_is_turned_round(self) -> None:
        inverted = 255 - noise()
        assert_rgb(
            decode_image(tif(noise(), photometric="miniswhite"), ".tif"),
            np.stack([inverted] * 3, axis=-1),
        )

    def test_black_and_white_becomes_0_and_255(self) -> None:
        bits = noise() > 128
        content = saved(Pillow.fromarray(bits), "TIFF")
        assert_rgb(decode_image(content, ".tif"), np.stack([bits * 255] * 3, axis=-1))

    def test_palette_colours_are_looked_up_whatever_16_bit_images_call_white(self) -> None:
        image = Pillow.fromarray(noise(3)).quantize(100)
        expected = np.asarray(image.convert("RGB"))
        assert_rgb(decode_image(saved(image, "TIFF"), ".tif", 4095), expected)

    @pytest.mark.parametrize("planar", [False, True])
    def test_rgba_is_laid_over_white(self, planar: bool) -> None:
        pixels = noise(4)
        options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        if planar:
            content = tif(np.moveaxis(pixels, -1, 0), planarconfig="separate", **options)
        else:
            content = tif(pixels, **options)
        assert_rgb(decode_image(content, ".tif"), over_white(pixels))

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
    def test_of_several_images_the_largest_is_read(self, order: list[int]) -> None:
        levels = [noise(3), noise(3)[::2, ::2], noise(3)[::4, ::4]]
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for index in order:
                writer.write(levels[index], photometric="rgb", tile=(32, 32))
        assert_rgb(decode_image(file.getvalue(), ".tif"), levels[0])

    def test_of_a_pyramid_the_largest_level_is_read(self) -> None:
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(noise(3), photometric="rgb", tile=(32, 32), subifds=2)
            for step in (2, 4):
                writer.write(noise(3)[::step, ::step], photometric="rgb", subfiletype=1)
        assert_rgb(decode_image(file.getvalue(), ".tif"), noise(3))


def over_white(pixels: np.ndarray) -> np.ndarray:
    """(c a + 255 (255 - a)) / 255, rounded; a tie cannot be, 255 being odd."""
    colour, alpha = pixels[..., :3].astype(int), pixels[..., 3:].astype(int)
    return (2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510


class TestSixteenBit:
    @pytest.mark.parametrize("white", [65535, 1000])
    def test_every_value_follows_the_rule(self, white: int) -> None:
        """round(255 v / white), at most 255; checked in fractions, for all 65,536 values."""
        every_value = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        decoded = decode_image(tif(every_value, photometric="minisblack"), ".tif", white)
        expected = [min(255, round(Fraction(255 * v, white))) for v in range(65536)]
        assert decoded[..., 0].ravel().tolist() == expected

    def test_the_low_byte_is_not_cut_off(self) -> None:
        """256 = 0x0100 and 511 = 0x01FF differ in the byte that truncation would keep or drop."""
        values = np.array([[0, 128, 129, 256, 511, 4095, 65534, 65535]], np.uint16)
        decoded = decode_image(tif(values, photometric="minisblack"), ".tif")
        assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 2, 16, 255, 255]

    def test_16_bit_rgb_and_rgba_are_read(self) -> None:
        options = {"compression": "deflate", "tile": (32, 32)}
        fine, byte = noise(3).astype(np.uint16) * 257, noise(3)  # 257 v is v of 255 in 16 bit
        assert_rgb(decode_image(tif(fine, photometric="rgb", **options), ".tif"), byte)
        opaque = np.dstack([fine, np.full((HEIGHT, WIDTH), 65535, np.uint16)])
        assert_rgb(decode_image(tif(opaque, photometric="rgb", **options), ".tif"), byte)

    def test_16_bit_inverted_grey_is_turned_round_before_it_is_scaled(self) -> None:
        values = np.array([[0, 65535 - 257 * 7, 65535]], np.uint16)
        decoded = decode_image(tif(values, photometric="miniswhite"), ".tif")
        assert decoded[0, :, 0].tolist() == [255, 7, 0]

    def test_16_bit_png_follows_the_same_rule(self) -> None:
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        _, content = cv2.imencode(".png", values)
        decoded = decode_image(content.tobytes(), ".png", 4095)
        assert np.array_equal(
            decoded, decode_image(tif(values, photometric="minisblack"), ".tif", 4095)
        )


class TestPngAndJpg:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
    def test_png_comes_back_to_the_bit(self, mode: str) -> None:
        image = Pillow.fromarray(noise(3)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        assert_rgb(decode_image(saved(image, "PNG"), ".png"), expected)

    def test_transparent_png_is_laid_over_white(self) -> None:
        content = saved(Pillow.fromarray(noise(4), "RGBA"), "PNG")
        assert_rgb(decode_image(content, ".png"), over_white(noise(4)))

    @pytest.mark.parametrize(("mode", "suffix"), [("RGB", ".jpg"), ("L", ".jpeg")])
    def test_jpg_comes_back_as_another_decoder_reads_it(self, mode: str, suffix: str) -> None:
        content = saved(Pillow.fromarray(gradient()).convert(mode), "JPEG", quality=90)
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert_rgb(decode_image(content, suffix), bgr[..., ::-1], tolerance=3)


WHOLE = {
    "tif": lambda: (tif(noise(3), photometric="rgb"), ".tif"),
    "tif deflate": lambda: (tif(noise(3), photometric="rgb", compression="deflate"), ".tif"),
    "tif jpeg": lambda: (tif(noise(3), photometric="rgb", compression="jpeg"), ".tif"),
    "tif tiles": lambda: (tif(noise(3), photometric="rgb", tile=(32, 32)), ".tif"),
    "tif lzw tiles": lambda: (
        tif(noise(3), photometric="rgb", compression="lzw", tile=(32, 32)),
        ".tif",
    ),
    "tif jpeg tiles": lambda: (
        tif(noise(3), photometric="rgb", compression="jpeg", tile=(32, 32)),
        ".tif",
    ),
    "tif lzw of Pillow": lambda: (
        saved(Pillow.fromarray(noise(3)), "TIFF", compression="tiff_lzw"),
        ".tif",
    ),
    "jpg": lambda: (saved(Pillow.fromarray(noise(3)), "JPEG"), ".jpg"),
    "png": lambda: (saved(Pillow.fromarray(noise(3)), "PNG"), ".png"),
}


class TestDamaged:
    @pytest.mark.parametrize("kind", WHOLE)
    def test_a_file_that_was_cut_short_is_refused(self, kind: str) -> None:
        """Never a picture whose rest is black or grey."""
        content, suffix = WHOLE[kind]()
        assert decode_image(content, suffix).shape == (HEIGHT, WIDTH, 3)
        # the last is into the last pixels, behind a PNG's end mark
        for kept in (8, len(content) // 10, len(content) // 2, len(content) - 13):
            with pytest.raises(BadInputError, match="cut short"):
                decode_image(content[:kept], suffix)

    @pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
    def test_an_empty_file_and_one_of_something_else_are_refused(self, suffix: str) -> None:
        with pytest.raises(BadInputError, match=r"^is empty \(0 bytes\)$"):
            decode_image(b"", suffix)
        with pytest.raises(BadInputError, match="unreadable"):
            decode_image(b"Dear colleague, please find the slides attached.", suffix)

    @pytest.mark.parametrize(
        ("layout", "zeroed", "missing"),
        [
            ({"tile": (32, 32)}, ["Offsets", "ByteCounts"], "2 of 20 tiles"),
            ({"tile": (32, 32)}, ["Offsets"], "2 of 20 tiles"),
            ({"rowsperstrip": 16}, ["ByteCounts"], "2 of 8 strips"),
        ],
        ids=str,
    )
    def test_a_tile_or_strip_that_is_not_there_is_refused(
        self, tmp_path: Path, layout: dict[str, Any], zeroed: list[str], missing: str
    ) -> None:
        """tifffile would fill it with zeros: a black square in a tissue."""
        path = tmp_path / "a.tif"
        path.write_bytes(tif(noise(3), photometric="rgb", **layout))
        name = "Tile" if "tile" in layout else "Strip"
        with tifffile.TiffFile(path, mode="r+b") as file:
            tags = file.pages[0].tags
            for tag in [tags[f"{name}{ending}"] for ending in zeroed]:
                tag.overwrite((*tag.value[:3], 0, 0, *tag.value[5:]))
        with pytest.raises(
            BadInputError, match=rf"^holds no data for {missing}: .* 'vips tiffsave'"
        ):
            read_image(path)

    def test_compressed_data_that_was_overwritten_is_refused(self) -> None:
        for compression in ("lzw", "deflate", "jpeg"):
            content = bytearray(tif(noise(3), photometric="rgb", compression=compression))
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
            content[start : start + size // 2] = bytes(size // 2)
            with pytest.raises(BadInputError, match="unreadable"):
                decode_image(bytes(content), ".tif")

    @pytest.mark.parametrize(
        ("write", "reason"),
        [
            (lambda: tif(noise(3).astype(np.float32), photometric="rgb"), "float32"),
            (lambda: tif(noise(3).astype(np.int16), photometric="rgb"), "int16"),
            (lambda: tif(noise(3).astype(np.uint32), photometric="rgb"), "uint32"),
            (lambda: tif(noise(5), photometric="minisblack", planarconfig="contig"), "5 channels"),
            (
                lambda: saved(Pillow.fromarray(noise(3)).convert("CMYK"), "TIFF"),
                "colour space SEPARATED",
            ),
        ],
    )
    def test_what_is_no_grey_rgb_or_rgba_picture_is_refused_by_its_kind(
        self, write: Callable[[], bytes], reason: str
    ) -> None:
        with pytest.raises(BadInputError, match=reason):
            decode_image(write(), ".tif")

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="cannot be read: No such file"):
            read_image(tmp_path / "none.tif")


class TestParts:
    """Of a file that is not a TIF, read part by part: decoded once, one at a time."""

    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The endings of the files that were decoded."""
        found = []

        def noting(path: Path, white: int) -> Decoded:
            found.append(path.suffix)
            return png_jpg.decode_image(path, white)

        monkeypatch.setattr(png_jpg, "latest_image", Latest(noting))
        return found

    def test_it_is_decoded_once_for_all_of_them(self, tmp_path: Path, decoded: list[str]) -> None:
        Pillow.fromarray(noise(3)).save(tmp_path / "a.png")
        for y in range(0, HEIGHT, 40):
            part = read_tile(tmp_path / "a.png", Box(0, y, WIDTH, 40))
            assert_rgb(part, noise(3)[y : y + 40])
            part[:] = 0  # the caller's own
        assert_rgb(read_tile(tmp_path / "a.png", Box(0, 0, WIDTH, 40)), noise(3)[:40])
        assert decoded == [".png"]

    def test_it_is_decoded_anew_once_it_is_another(
        self, tmp_path: Path, decoded: list[str]
    ) -> None:
        path, box = tmp_path / "a.png", Box(5, 6, 7, 8)
        path.write_bytes(imagecodecs.png_encode(noise(3, dtype=np.uint16)))
        read_tile(path, box, 65535)
        read_tile(path, box, 4095)
        assert len(decoded) == 2
        before = path.stat()
        path.write_bytes(imagecodecs.png_encode(noise(3, dtype=np.uint16)[::-1].copy()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        part = read_tile(path, box, 4095)
        assert_rgb(part, read_image(path, 4095)[6:14, 5:12])
        (tmp_path / "b.png").write_bytes(path.read_bytes())
        read_tile(tmp_path / "b.png", box, 4095)
        assert len(decoded) == 4

    def test_one_is_let_go_before_the_next_is_decoded(self, tmp_path: Path) -> None:
        held: list[weakref.ref[np.ndarray]] = []

        def decode(path: Path) -> Decoded:
            assert all(pixels() is None for pixels in held)
            if path.name == "bad":
                raise BadInputError("unreadable")
            pixels = np.zeros(3)
            held.append(weakref.ref(pixels))
            return Decoded(pixels)

        for name in ("a", "b", "bad"):
            (tmp_path / name).write_bytes(b"")
        latest = Latest(decode)
        for name in ("a", "b", "b"):
            latest(tmp_path / name)
        assert len(held) == 2
        with pytest.raises(BadInputError, match="unreadable"):
            latest(tmp_path / "bad")
        latest(tmp_path / "b")
        assert len(held) == 3

    def test_one_that_is_gone_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="cannot be read: No such file"):
            read_tile(tmp_path / "a.png", Box(0, 0, 1, 1))


def test_a_real_field_reads_as_pillow_reads_it(real_data: Path) -> None:
    path = real_data / "images/Case_1-01.tif"
    expected = np.asarray(Pillow.open(path).convert("RGB"))
    assert expected.shape == (1024, 1360, 3)
    assert_rgb(read_image(path), expected)


class TestWriting:
    def test_png_is_lossless_and_rgb(self) -> None:
        content = encode_image(noise(3), "png", 95)
        image = Pillow.open(io.BytesIO(content))
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), noise(3))

    @pytest.mark.parametrize("quality", [50, 95])
    def test_jpg_is_rgb_and_has_the_quality_asked_for(self, quality: int) -> None:
        """Libjpeg's quality is its quantisation tables, so they must be those Pillow writes."""
        image = Pillow.open(io.BytesIO(encode_image(gradient(), "jpg", quality)))
        twin = Pillow.open(io.BytesIO(saved(Pillow.fromarray(gradient()), "JPEG", quality=quality)))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.quantization == twin.quantization
        tolerance = 6 if quality >= 95 else 20
        assert_rgb(np.asarray(image), gradient(), tolerance)

    def test_a_mask_is_one_channel_and_lossless(self) -> None:
        image = Pillow.open(io.BytesIO(encode_mask(noise())))
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), noise())
