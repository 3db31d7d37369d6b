"""Read image files with the stains of a reference: in preparation, evaluation and prediction alike.

The stains of an image are estimated once for the whole of it, from the same px of its file, however
it is cut and rescaled later.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.command_line import UsageError
from data_prep.config import PrepConfig
from data_prep.image_files.open_image import open_image
from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile, codec_errors_explained
from data_prep.images.macenko import Conversion, NoStainsError, estimate
from data_prep.images.stains import PUBLISHED, Stains, check_given, parse
from data_prep.raw import BadInputError

WHOLE_PX = 2**24
"""Most px of an image that is looked at as a whole."""
PART_PX = 128
"""Side of the parts that are looked at in a larger one."""
CELL_PX = 256
"""Parts begin at multiples of this, where tiles of most files begin; one in a cell."""
MOST_PARTS = 32
"""Most parts along a side."""
SAMPLED_PX = 2**17
"""About how many px the stains are estimated from."""


@contextmanager
def open_normalised(path: Path, uint16_white: int, reference: Stains | None) -> Iterator[ImageFile]:
    """Open an image file, to be read with the stains of a reference, or as it is without one.

    An image whose stains cannot be estimated keeps its colours; `not_normalised` says why. Raises
    BadInputError.
    """
    with open_image(path, uint16_white) as image:
        yield Normalised(image, path, uint16_white, reference) if reference else image


class Normalised(ImageFile):
    """An open image file with the stains of a reference."""

    def __init__(self, image: ImageFile, path: Path, uint16_white: int, reference: Stains) -> None:
        self.image, self.path, self.uint16_white = image, path, uint16_white
        self.reference = reference
        self.height_px, self.width_px = image.height_px, image.width_px
        self.segment_px = image.segment_px

    @property
    def as_scanned(self) -> ImageFile:
        """The image in its own colours."""
        return self.image

    @property
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px, as ImageFile.mpp."""
        return self.image.mpp

    @cached_property
    def own(self) -> Stains | str:
        """The stains of the image, or why they cannot be estimated. Raises BadInputError."""
        with codec_errors_explained():
            about = self.path.stat()
        return stains_of(self.path, self.uint16_white, (about.st_mtime_ns, about.st_size))

    @cached_property
    def conversion(self) -> Conversion | None:
        """What gives px the stains of the reference; None if the image keeps its colours."""
        return None if isinstance(self.own, str) else Conversion(self.own, self.reference)

    @property
    def not_normalised(self) -> str:
        """Why the image keeps its colours; '' if it does not. Raises BadInputError."""
        return self.own if isinstance(self.own, str) else ""

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        image_HWC = self.image.read(box)
        self.largest_uint16 = self.image.largest_uint16
        return self.conversion(image_HWC) if self.conversion else image_HWC

    def read_labels(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of a mask's values, HW whole numbers. Raises BadInputError."""
        return self.image.read_labels(box)

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level that ImageFile.overview allows. Raises BadInputError."""
        image_HWC = self.image.overview(most_shrink, most_px)
        if image_HWC is None or not self.conversion:
            return image_HWC
        return self.conversion(image_HWC)


@lru_cache(maxsize=256)
def stains_of(path: Path, uint16_white: int, stamp: tuple[int, int]) -> Stains | str:
    """Estimate the stains of an image file, or return why they cannot be estimated.

    Cached, since each tile of an image asks for them; `stamp`: time and size of the file. Raises
    BadInputError.
    """
    with open_image(path, uint16_white) as image:
        try:
            return estimate(sampled(image))
        except NoStainsError as error:
            return str(error)


def read_reference(config: PrepConfig) -> Stains:
    """Return the stains that stain_reference= gives. Raises UsageError."""
    given = config.stain_reference
    check_given(given)
    if not os.path.isfile(given):
        return parse(given) if given else PUBLISHED
    about = os.stat(given)
    try:
        found = stains_of(Path(given), config.uint16_white, (about.st_mtime_ns, about.st_size))
    except BadInputError as error:
        raise UsageError(f"stain_reference={given}: {error}") from None
    if isinstance(found, str):
        raise UsageError(
            f"stain_reference={given}: its stains cannot be estimated: {found}; name a field with"
            " much tissue in hematoxylin and eosin, or leave it out for the published reference"
        )
    return found


def sampled(image: ImageFile) -> Image:
    """Return px from all over an image, (N, 3) uint8 RGB. Raises BadInputError."""
    tops, height = parts_along(image.height_px, image)
    lefts, width = parts_along(image.width_px, image)
    num_px = len(tops) * height * len(lefts) * width
    step = math.ceil(math.sqrt(num_px / SAMPLED_PX))
    found = []
    for top in tops:
        for part_HWC in read_parts(image, top, height, lefts, width):
            found.append(part_HWC[::step, ::step].reshape(-1, 3))
    return np.concatenate(found)


def parts_along(length_px: int, image: ImageFile) -> tuple[list[int], int]:
    """Return where parts of an image start along a side, and how long they are."""
    if image.height_px * image.width_px <= WHOLE_PX:
        return [0], length_px
    number = max(1, min(MOST_PARTS, length_px // CELL_PX))
    starts = [index * length_px // number // CELL_PX * CELL_PX for index in range(number)]
    return starts, min(PART_PX, length_px)


def read_parts(
    image: ImageFile, top: int, height: int, lefts: list[int], width: int
) -> Iterator[Image]:
    """Yield a row of parts; where the file holds whole rows, it is read once for all of them."""
    if image.segment_px[1] < image.width_px:
        for left in lefts:
            yield image.read(Box(left, top, width, height))
        return
    strip_HWC = image.read(Box(0, top, image.width_px, height))
    for left in lefts:
        yield strip_HWC[:, left : left + width]
