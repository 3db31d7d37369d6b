"""Read the files of a prepared sample: image, mask and points, checked against the manifest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from common.command_line import UserError
from data_prep.annotations import brecahad
from data_prep.dataset.description import AGAIN
from data_prep.dataset.manifest import Sample
from data_prep.images.arrays import Image, Mask, PointsPx
from data_prep.raw import BadInputError


def read_sample(folder: Path, sample: Sample) -> tuple[Image, Mask]:
    """Decode a prepared image, HWC uint8 RGB, and its mask, HW uint8. Raises UserError."""
    return read_image(folder, sample), read_mask(folder, sample)


def read_image(folder: Path, sample: Sample) -> Image:
    """Decode a prepared image, HWC uint8 RGB. Raises UserError."""
    size = (sample.height_px, sample.width_px)
    return read_pixels(folder / sample.image, cv2.IMREAD_COLOR_RGB, size, sample.image_sha256)


def read_mask(folder: Path, sample: Sample) -> Mask:
    """Decode a prepared mask, HW uint8. Raises UserError."""
    size = (sample.height_px, sample.width_px)
    return read_pixels(folder / sample.mask, cv2.IMREAD_GRAYSCALE, size, sample.mask_sha256)


def read_pixels(
    path: Path, flags: int, size: tuple[int, int], sha256: str
) -> npt.NDArray[np.uint8]:
    """Decode a file, and check its height, width and hash. Raises UserError."""
    try:
        content = path.read_bytes()
        # not cv2.imread(), which crashes where a name is not UTF-8
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{AGAIN}") from None
    except cv2.error:  # an empty file
        pixels = None
    if pixels is None:
        raise UserError(f"{path}: damaged, cannot be decoded{AGAIN}")
    if pixels.shape[:2] != size:
        found, expected = (f"{width} x {height}" for height, width in (pixels.shape[:2], size))
        raise UserError(f"{path}: {found} px, its manifest says {expected}{AGAIN}")
    check_content(path, content, sha256)
    return np.asarray(pixels, np.uint8)


def check_content(path: Path, content: bytes, sha256: str) -> None:
    """Raise UserError for a file that is not as data_prep wrote it.

    Otherwise results would name a data set that they do not come from.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path}: is not as data_prep wrote it; move it away and run data_prep again. A"
            " correction belongs in the raw fields (with annotations=masks, where it is a mask)"
        )


def read_points(folder: Path, sample: Sample, classes: Iterable[str]) -> PointsPx:
    """Read a sample's points of these classes. Raises UserError."""
    path = folder / sample.points
    try:
        content = path.read_bytes()
        points = brecahad.decode_points(content, sample.height_px, sample.width_px)
        found = {name: points[name] for name in classes}
    except (OSError, BadInputError, KeyError) as error:
        raise UserError(f"{path}: missing or damaged: {error}{AGAIN}") from None
    check_content(path, content, sample.points_sha256)
    return found
