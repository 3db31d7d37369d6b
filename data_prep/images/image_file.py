"""What an open image file is, whatever its format, and what the errors of its codec become."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from data_prep.images.arrays import Box, Image
from data_prep.raw import BadInputError


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
    largest_uint16: int = 0
    """Largest value that `read` has met so far in a 16-bit image; 0 if it is of other bits."""

    @property
    def whole(self) -> Box:
        """The box that is the whole image."""
        return Box(0, 0, self.width_px, self.height_px)

    @property
    def not_normalised(self) -> str:
        """Why the image keeps its colours though it should have those of a reference; '' where
        that is not so. Raises BadInputError."""
        return ""

    @property
    def as_scanned(self) -> "ImageFile":
        """The image in its own colours."""
        return self

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
