"""Read slides that are not TIFF (MRXS, DICOM) by OpenSlide, which the extra [slides] brings."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile
from data_prep.images.resolution import believed
from data_prep.raw import BadInputError

START_BYTES = 132
"""How much of a file's start tells what it is."""
WHITE = "FFFFFF"
SEGMENT_PX = 256
"""Side of a part that is decoded at once where OpenSlide does not tell."""
DICOM_ID = "dicom.MediaStorageSOPInstanceUID"


def is_slide(path: Path, start: bytes) -> bool:
    """Return whether a file is for OpenSlide, by its first START_BYTES.

    A MIRAX slide is known by its name alone: its .mrxs is an index of any content, and the pixels
    are in the folder beside it.
    """
    return start[128:132] == b"DICM" or path.suffix.lower() == ".mrxs"


@contextmanager
def open_slide(path: Path) -> Iterator["SlideImage"]:
    """Open a slide by OpenSlide. Raises BadInputError, also where OpenSlide is not installed."""
    try:
        import openslide
    except ImportError:
        raise BadInputError(
            "a slide that only OpenSlide reads, which is not installed: pip install 'eosin[slides]'"
        ) from None
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise BadInputError(f"OpenSlide cannot read it: {one_line(error)}") from None
    except OSError as error:
        raise BadInputError(f"cannot be read: {one_line(error)}") from None
    with slide:
        refuse_part_of_slide(path, slide.properties)
        yield SlideImage(slide)


def refuse_part_of_slide(path: Path, about: Mapping[str, str]) -> None:
    """Raise BadInputError for a DICOM file that is a level or label of the slide in its folder.

    OpenSlide opens the whole slide by any of its files, and one slide would count several times.
    """
    if DICOM_ID not in about:
        return
    with path.open("rb") as file:
        own = re.search(rb"\x02\x00\x03\x00UI..([0-9.]{1,64})", file.read(2**16), re.DOTALL)
    if own is None or own[1].decode() != about[DICOM_ID]:
        raise BadInputError(
            "a DICOM file of a slide, but not the one of full resolution; give that one, and keep"
            " the others in a folder of their own"
        )


def one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class SlideImage(ImageFile):
    """A slide that OpenSlide reads; where nothing was scanned it has the slide's background.

    It begins and ends where the scan does, if the slide tells, as in QuPath.
    """

    def __init__(self, slide: Any) -> None:
        self.slide, about = slide, slide.properties
        width_px, height_px = slide.dimensions
        self.left_px, self.top_px, self.width_px, self.height_px = (
            int(about.get(f"openslide.bounds-{name}", whole))
            for name, whole in (("x", 0), ("y", 0), ("width", width_px), ("height", height_px))
        )
        self.segment_px = (
            int(about.get("openslide.level[0].tile-height", SEGMENT_PX)),
            int(about.get("openslide.level[0].tile-width", SEGMENT_PX)),
        )
        self.background = np.array([*bytes.fromhex(about.get("openslide.background-color", WHITE))])
        self.told_mpp = about.get("openslide.mpp-x"), about.get("openslide.mpp-y")

    @property
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px, as ImageFile.mpp."""
        return believed([self.told_mpp])

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        return self.read_level(box, 0)

    def read_level(self, box: Box, level: int) -> Image:
        """Return a part of a level, HWC uint8 RGB: `box` has its size, and its place in the image.

        Raises BadInputError.
        """
        import openslide

        try:
            place = self.left_px + box.x, self.top_px + box.y
            region = self.slide.read_region(place, level, (box.width, box.height))
        except openslide.OpenSlideError as error:
            raise BadInputError(f"unreadable or cut short: {one_line(error)}") from None
        rgba = np.asarray(region).astype(np.uint16)  # not premultiplied
        alpha = rgba[..., 3:]
        over = rgba[..., :3] * alpha + self.background.astype(np.uint16) * (255 - alpha)
        return ((over + 127) // 255).astype(np.uint8)

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Refuse: a slide is no mask. Raises BadInputError."""
        raise BadInputError("a slide holds colours and no labels: expected a PNG or TIF as a mask")

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level that ImageFile.overview allows. Raises BadInputError."""
        shrinks = self.slide.level_downsamples
        level = max(n for n, shrink in enumerate(shrinks) if n == 0 or shrink <= most_shrink)
        width, height = (
            max(1, int(length / shrinks[level])) for length in (self.width_px, self.height_px)
        )
        if level == 0 or width * height > most_px:
            return None
        return self.read_level(Box(0, 0, width, height), level)
