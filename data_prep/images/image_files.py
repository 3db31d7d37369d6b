"""Read raw images to RGB uint8, whole or a part, and masks to their values.

What a file is, its first bytes decide and not its ending. What its values mean, `samples.py` says.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from data_prep.images.arrays import Box, Image
from data_prep.raw import BadInputError

TIF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_START, JPG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@contextmanager
def codec_errors_explained() -> Iterator[None]:
    """Whatever a damaged file makes a codec raise, as BadInputError."""
    try:
        yield
    except (BadInputError, MemoryError):
        raise
    except OSError as error:
        if error.errno is None:  # of a codec
            raise BadInputError(unreadable(error)) from None
        raise BadInputError(f"cannot be read: {error.strerror}") from None
    except Exception as error:  # every codec has errors of its own
        raise BadInputError(unreadable(error)) from None


def unreadable(error: Exception) -> str:
    """Give a codec's reason in one line."""
    return f"unreadable or cut short: {' '.join(str(error).split())}"


class ImageFile(ABC):
    """An open image file. Every way of reading it gives the same pixels."""

    height_px: int
    width_px: int
    segment_px: tuple[int, int]
    """Height and width of the parts of the file that are decoded at once."""

    @property
    def whole(self) -> Box:
        """The box that is the whole image."""
        return Box(0, 0, self.width_px, self.height_px)

    @property
    @abstractmethod
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px; None if the file does not tell. Raises BadInputError
        if its px are not square."""

    @abstractmethod
    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""

    @abstractmethod
    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level of a pyramid in which a px stands for `most_shrink` px a side
        or fewer, HWC uint8 RGB.

        None if there is none below the full resolution, or if it has more than `most_px` in all.
        Raises BadInputError.
        """
        return None


@contextmanager
def open_image(path: Path, uint16_white: int = 65535) -> Iterator[ImageFile]:
    """Open an image file. Raises BadInputError if it is damaged or not an image."""
    # late: they derive from ImageFile
    from data_prep.images.openslide_image import START_BYTES, is_slide, open_slide
    from data_prep.images.png_jpg import DecodedImage
    from data_prep.images.tif_image import TifImage
    from data_prep.images.tif_pages import open_tif

    with ExitStack() as stack:
        with codec_errors_explained():
            file = stack.enter_context(path.open("rb"))
            start = file.read(START_BYTES)
            num_bytes = path.stat().st_size
            file.seek(0)
            if start.startswith(TIF_STARTS):
                tif = stack.enter_context(open_tif(file))
                image: ImageFile = TifImage(tif, num_bytes, uint16_white)
            elif is_slide(path, start):
                image = stack.enter_context(open_slide(path))
            elif start.startswith((PNG_START, JPG_START)):
                image = DecodedImage(path, uint16_white)
            elif not start:
                raise BadInputError("is empty (0 bytes)")
            else:
                raise BadInputError("unreadable or cut short: begins as no TIF, PNG or JPG does")
        yield image


def read_image(path: Path, uint16_white: int = 65535) -> Image:
    """Read a whole image, HWC uint8 RGB. Raises BadInputError."""
    with open_image(path, uint16_white) as image:
        return image.read(image.whole)


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's height and width, in px. Raises BadInputError."""
    with open_image(path) as image:
        return image.height_px, image.width_px
