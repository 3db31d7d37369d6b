"""Read an image file at another resolution, whole or by boxes, with the same bytes.

The rescaled image is divided into blocks, counted from its corner. A block is always computed as a
whole, from the same part of the file, so its bytes depend on no box.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile
from data_prep.images.resolution import is_same
from data_prep.raw import BadInputError

Pixels = npt.NDArray[Any]
BLOCK_PX = 512
"""Largest side of a block, in px of the rescaled image."""
SOURCE_PX = 2048
"""Largest side of what a block is computed from, in px of the file, without its margin."""
MOST_PX = 2**23
"""Most px of the file to read at once for several blocks: bounds the memory."""
MOST_ENLARGED = 10.0
"""Largest factor: beyond that there is nothing to be seen in the px."""


@dataclass(frozen=True)
class Axis:
    """One axis of an image and of the same image rescaled, which covers the same length."""

    source: int
    """Length in px of the file."""
    target: int
    """Length in px of the rescaled image."""

    @property
    def block_px(self) -> int:
        """The length of a block, in px of the rescaled image."""
        return max(1, min(BLOCK_PX, SOURCE_PX * self.target // self.source))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the first px of each block that is needed for some px, and the px after its last,
        in px of the rescaled image."""
        size = self.block_px
        for first in range(start // size * size, stop, size):
            yield first, min(first + size, self.target)

    def seen(self, start: int, stop: int) -> tuple[float, float]:
        """Return the ends of the same length in px of the file."""
        return start * self.source / self.target, stop * self.source / self.target

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """Return the px of the file that some px of the rescaled image are computed from."""
        reach = -(-self.source // self.target) + 1  # a px is a mean over twice its length
        first, last = start * self.source // self.target, -(-stop * self.source // self.target)
        return max(0, first - reach), min(self.source, last + reach)

    def nearest(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the px of the file that the middle of each px of the rescaled image lies in."""
        middles = 2 * np.arange(start, stop, dtype=np.int64) + 1
        return middles * self.source // (2 * self.target)


def resample(read: Callable[[Box], Pixels], rows: Axis, columns: Axis, box: Box) -> Pixels:
    """Return a box of the rescaled image, HWC uint8 or HW float32, as `read` returns boxes of the
    source.

    Each px is a mean over what it covers and its surround if the image shrinks, and lies on the
    line between its neighbours if it grows.
    """
    bands = [
        np.concatenate([*resample_blocks(read, (rows, down), columns, box)], axis=1)
        for down in rows.blocks(box.y, box.y + box.height)
    ]
    return np.concatenate(bands)


def resample_blocks(
    read: Callable[[Box], Pixels], of_rows: tuple[Axis, tuple[int, int]], columns: Axis, box: Box
) -> Iterator[Pixels]:
    """Yield the parts of a row of blocks that lie in the box, read in as few pieces as fit into
    MOST_PX."""
    rows, down = of_rows
    top, bottom = rows.needed(*down)
    listed = [*columns.blocks(box.x, box.x + box.width)]
    width = columns.needed(*listed[0])
    at_once = max(1, MOST_PX // ((bottom - top) * (width[1] - width[0])))
    for first in range(0, len(listed), at_once):
        group = listed[first : first + at_once]
        left, right = columns.needed(group[0][0], group[-1][1])
        source = read(Box(left, top, right - left, bottom - top))
        for across in group:
            start, stop = columns.needed(*across)
            part = np.ascontiguousarray(source[:, start - left : stop - left])
            (x0, x1), (y0, y1) = columns.seen(*across), rows.seen(*down)
            block = PillowImage.fromarray(part).resize(
                (across[1] - across[0], down[1] - down[0]),
                PillowImage.Resampling.BILINEAR,
                (x0 - start, y0 - top, x1 - start, y1 - top),
            )
            yield np.asarray(block)[
                max(0, box.y - down[0]) : box.y + box.height - down[0],
                max(0, box.x - across[0]) : box.x + box.width - across[0],
            ]


class Rescaled(ImageFile):
    """An image file as if it had another size."""

    def __init__(self, image: ImageFile, height_px: int, width_px: int) -> None:
        self.image, self.height_px, self.width_px = image, height_px, width_px
        self.rows, self.columns = Axis(image.height_px, height_px), Axis(image.width_px, width_px)
        self.segment_px = tuple(  # type: ignore[assignment]
            max(1, length * axis.target // axis.source)
            for length, axis in zip(image.segment_px, (self.rows, self.columns), strict=True)
        )

    @property
    def mpp(self) -> float | None:
        """Resolution, in micrometres per px; None if the file does not tell."""
        told = self.image.mpp
        return told and told * self.image.width_px / self.width_px

    def read(self, box: Box) -> Image:
        """Return a part of the image, HWC uint8 RGB. Raises BadInputError."""
        pixels_HWC = resample(self.image.read, self.rows, self.columns, box)
        self.largest_uint16 = self.image.largest_uint16
        return pixels_HWC

    def read_labels(self, box: Box) -> Pixels:
        """Return a part of a mask's values, each that of the nearest px. Raises BadInputError."""
        columns = self.columns.nearest(box.x, box.x + box.width)
        left, width = int(columns[0]), int(columns[-1] - columns[0]) + 1
        at_once = max(1, MOST_PX * self.height_px // (self.image.height_px * width))
        parts = []
        for top in range(box.y, box.y + box.height, at_once):
            rows = self.rows.nearest(top, min(top + at_once, box.y + box.height))
            first, height = int(rows[0]), int(rows[-1] - rows[0]) + 1
            stored = self.image.read_labels(Box(left, first, width, height))
            parts.append(stored[rows - first][:, columns - left])
        return np.concatenate(parts)

    def overview(self, most_shrink: float, most_px: int) -> Image | None:
        """Return the smallest level that ImageFile.overview allows. Raises BadInputError."""
        factor = self.width_px / self.image.width_px
        return self.image.overview(most_shrink / factor, most_px)


def of_size(image: ImageFile, height_px: int, width_px: int) -> ImageFile:
    """Return an image as if it had a size; the image itself if it has it."""
    if (image.height_px, image.width_px) == (height_px, width_px):
        return image
    return Rescaled(image, height_px, width_px)


def at_resolution(image: ImageFile, wanted_mpp: float | None, otherwise_mpp: float) -> ImageFile:
    """Return an image as if it had a resolution, in micrometres a px.

    It stays as it is if it has that, or if one of the two is not known (None or 0);
    `otherwise_mpp`: the resolution of an image that does not tell its own. Raises BadInputError if
    its px are not square, or would have to be enlarged more than MOST_ENLARGED times.
    """
    mpp = image.mpp or otherwise_mpp
    if not mpp or not wanted_mpp or is_same(mpp, wanted_mpp):
        return image
    factor = mpp / wanted_mpp
    if factor > MOST_ENLARGED:
        raise BadInputError(
            f"has {mpp:.4g} micrometres per px; to become {wanted_mpp:.4g}, it would be enlarged"
            f" {factor:.3g} times, and at most {MOST_ENLARGED:g} makes sense; leave it out, or"
            " correct its tags"
        )
    height_px, width_px = (
        max(1, round(side * factor)) for side in (image.height_px, image.width_px)
    )
    return of_size(image, height_px, width_px)
