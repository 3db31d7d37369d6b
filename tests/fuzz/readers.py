"""Read pictures with OpenCV, with Pillow and by hand, by the rules of docs/input.md."""

import io
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from tests.fuzz.pictures import Pixels
from tests.fuzz.tif_structure import Page, Tif

TOLERANCE = 3  # of 255: over white, YCbCr and JPEG are rounded in other places
MOST_PIXELS = 2**24  # of a picture to compare with; the drawn ones have 7,200
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SUBFILE = 256, 257, 258, 262, 274, 254
SAMPLES, PLANAR = 277, 284
GREY_OR_RGB = ((1, 0), (1, 1), (3, 2))  # samples and photometric interpretation


def readings(path: Path, page: int | None = None) -> list[Pixels]:
    """Return the picture as each reader that reads it sees it, HWC uint8 RGB.

    `page`: the number of the page that is the picture; None for the largest.
    """
    return [over for pixels in raw_readings(path, page) if (over := to_rgb(pixels)) is not None]


def label_readings(path: Path) -> list[Pixels]:
    """Return the mask as each reader that reads it sees it, HW whole numbers."""
    return [pixels for pixels in raw_readings(path, as_labels=True) if pixels.ndim == 2]


def raw_readings(path: Path, page: int | None = None, as_labels: bool = False) -> list[Pixels]:
    """Return the values that each reader finds, HW or HWC, uint8 or uint16."""
    content = path.read_bytes()
    found = []
    for number in pictures_in(content, page):
        for read in readers_of(path, content, number, as_labels):
            try:
                pixels = read()
            except Exception:  # every reader has errors of its own
                continue
            if pixels is not None:
                found.append(pixels)
    return found


def readers_of(
    path: Path, content: bytes, number: int, as_labels: bool
) -> list[Callable[[], Pixels | None]]:
    """Return what may read a page: Pillow and OpenCV, but not what they are known to get wrong."""
    pillow, opencv = (
        partial(with_pillow, content, number, as_labels),
        partial(with_opencv, path, content, number),
    )
    try:
        tif = Tif(content)
        page = tif.pages()[number]
    except (ValueError, struct.error, IndexError):
        return [pillow, opencv] if upright(content) else [pillow]
    bits, is_inverted = tif.value(page, BITS) or 1, tif.value(page, PHOTOMETRIC) == 0
    is_upright = tif.value(page, ORIENTATION) in (None, 1)
    own = [partial(by_hand, tif, page)] if is_upright and not as_labels else []
    is_planar = tif.value(page, PLANAR) == 2
    if bits in (10, 12, 14) or (bits == 16 and (is_inverted or is_planar)):
        return [*own]
    return [pillow, *own, *([opencv] if is_upright and bits >= 8 else [])]


def by_hand(tif: Tif, page: Page) -> Pixels | None:
    """Read a page that is not compressed, grey or RGB, of any whole number of bits, HWC uint8."""
    height, width = tif.value(page, HEIGHT) or 0, tif.value(page, WIDTH) or 0
    samples, photometric = tif.value(page, SAMPLES) or 1, tif.value(page, PHOTOMETRIC)
    kinds = [{tif.value(page, tag) or 1 for tag in (259, 266, 317, 339)}, {*tif.values(page, BITS)}]
    if kinds[0] != {1} or len(kinds[1]) != 1 or (samples, photometric) not in GREY_OR_RGB:
        return None
    if tif.value(page, 322) or height * width > MOST_PIXELS or not height * width:
        return None
    (bits,) = kinds[1]
    planes = samples if tif.value(page, PLANAR) == 2 else 1
    row_bytes = -(-width * samples // planes * bits // 8)
    rows = min(tif.value(page, 278) or height, height)
    found, starts = [], iter(tif.values(page, 273))
    for _ in range(planes):
        data = b""
        for top in range(0, height, rows):
            size = min(rows, height - top) * row_bytes
            data += tif.content[(start := next(starts)) : start + size]
        values = unpacked(data, row_bytes, bits, tif.order)
        found.append(values[:, : width * samples // planes].reshape(height, width, -1))
    pixels = np.rint(255 * np.concatenate(found, axis=-1) / (2**bits - 1)).astype(np.uint8)
    return 255 - pixels if photometric == 0 else pixels


def unpacked(data: bytes, row_bytes: int, bits: int, order: str) -> Pixels:
    """Return the values of rows, one a column."""
    if bits == 16:
        return np.frombuffer(data, f"{order}u2").reshape(-1, row_bytes // 2).astype(np.int64)
    digits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), axis=1)
    digits = digits[:, : digits.shape[1] // bits * bits]
    return digits.reshape(len(digits), -1, bits) @ (1 << np.arange(bits - 1, -1, -1))


def pictures_in(content: bytes, page: int | None) -> list[int]:
    """Return the numbers of the pages that may be the picture.

    The picture is the page that claims the most pixels. Where that calls itself a smaller version,
    it may also be the first.
    """
    try:
        tif = Tif(content)
        pages = tif.pages()
    except (ValueError, struct.error):
        return [0]
    if page is not None:
        return [page] if page < len(pages) else []
    if not pages:
        return []
    largest = max(range(len(pages)), key=lambda number: area(tif, pages[number]))
    is_reduced = (tif.value(pages[largest], SUBFILE) or 0) & 1
    return [largest, 0] if largest and is_reduced else [largest]


def area(tif: Tif, page: Page) -> int:
    """Return how many pixels a page claims."""
    return (tif.value(page, WIDTH) or 0) * (tif.value(page, HEIGHT) or 0)


def upright(content: bytes) -> bool:
    """Whether a PNG or JPG is to be seen as it lies."""
    try:
        return PillowImage.open(io.BytesIO(content)).getexif().get(ORIENTATION, 1) == 1
    except Exception:
        return True


def with_opencv(path: Path, content: bytes, number: int) -> Pixels | None:
    """Read a page with OpenCV. None where it does not, or gives alpha that it has multiplied in."""
    if content[:2] in (b"II", b"MM"):
        mats: list[Pixels] = []
        done, mats = cv2.imreadmulti(str(path), number, 1, mats, cv2.IMREAD_UNCHANGED)
        pixels = mats[0] if done and mats else None
    else:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        return None
    if pixels.ndim == 2:
        return pixels
    if content[:2] in (b"II", b"MM") and pixels.shape[2] != 3:
        return None
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def with_pillow(content: bytes, number: int, as_labels: bool) -> Pixels | None:
    """Read a page with Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = PillowImage.open(io.BytesIO(content))
        if image.width * image.height > MOST_PIXELS:
            return None
        image.seek(number)
        image.load()
        if image.format != "TIFF":  # a TIF it has turned by itself
            image = ImageOps.exif_transpose(image)
        if image.mode == "P" and as_labels:
            return np.asarray(image)
        if image.mode in ("P", "PA", "YCbCr", "CMYK", "RGBX", "RGBa"):
            has_alpha = image.mode in ("PA", "RGBa") or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "RGB")
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8) * (1 if as_labels else 255)
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        return np.asarray(image) if image.mode in ("L", "LA", "RGB", "RGBA") else None


def to_rgb(pixels: Pixels) -> Pixels | None:
    """Make HWC uint8 RGB of values: 16 bit by 65535, alpha over white, grey three times."""
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    if channels in (2, 4):
        alpha = pixels[..., -1:] / 255
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def look_alike(ours: Pixels, theirs: Pixels) -> bool:
    """Whether two pictures are the same, but for rounding."""
    if ours.shape != theirs.shape:
        return False
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max(initial=0)) <= TOLERANCE
