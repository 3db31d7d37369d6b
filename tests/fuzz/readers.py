"""Read pictures with OpenCV and with Pillow, by the rules of docs/input.md."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from tests.fuzz.pictures import Pixels
from tests.fuzz.tif_mutations import Page, Tif

TOLERANCE = 3  # of 255: over white, YCbCr and JPEG are rounded in other places
MOST_PIXELS = 2**24  # of a picture to compare with; the drawn ones have 7,200
WIDTH, HEIGHT, ORIENTATION, SUBFILE = 256, 257, 274, 254


def readings(path: Path) -> list[Pixels]:
    """Return the picture as each reader that reads it sees it, HWC uint8 RGB."""
    return [over for pixels in raw_readings(path) if (over := to_rgb(pixels)) is not None]


def label_readings(path: Path) -> list[Pixels]:
    """Return the mask as each reader that reads it sees it, HW whole numbers."""
    return [pixels for pixels in raw_readings(path, as_labels=True) if pixels.ndim == 2]


def raw_readings(path: Path, as_labels: bool = False) -> list[Pixels]:
    """Return the values that each reader finds, HW or HWC, uint8 or uint16."""
    content = path.read_bytes()
    found = []
    for number, is_upright in pictures_in(content):
        readers: list[Callable[[], Pixels | None]]
        readers = [lambda n=number: with_pillow(content, n, as_labels)]
        if is_upright:
            readers.append(lambda n=number: with_opencv(path, content, n))
        for read in readers:
            try:
                pixels = read()
            except Exception:  # every reader has errors of its own
                continue
            if pixels is not None:
                found.append(pixels)
    return found


def pictures_in(content: bytes) -> list[tuple[int, bool]]:
    """Return the numbers of the pages that may be the picture, and whether each is upright.

    The picture is the page that claims the most pixels. Where that calls itself a smaller version,
    or the first page is a slide of Aperio's, it may also be the first.
    """
    try:
        tif = Tif(content)
        pages = tif.pages()
    except (ValueError, struct.error):
        return [(0, upright(content))]
    if not pages:
        return []
    largest = max(range(len(pages)), key=lambda number: area(tif, pages[number]))
    numbers = [largest]
    is_reduced = (tif.value(pages[largest], SUBFILE) or 0) & 1
    if largest and (is_reduced or b"Aperio" in content):
        numbers.append(0)
    return [(n, tif.value(pages[n], ORIENTATION) in (None, 1)) for n in numbers]


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
