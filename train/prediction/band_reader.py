"""Read bands of an image, and find their tiles with tissue; a pyramid's glass is not even read.

A tile is glass where less than `min_tissue` of it is tissue (data_prep.images.tiles). In a pyramid
the smallest level with OVERVIEW_PX px along a tile decides that before the tile is read. Of other
images every tile is read, and every fourth px of every fourth row decides.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.image_files.normalised import open_normalised
from data_prep.images.arrays import Box, Image
from data_prep.images.image_file import ImageFile
from data_prep.images.rescaling import of_size
from data_prep.images.stains import Stains
from data_prep.images.tiles import tissue_fraction
from train.prediction.result_files import Task
from train.prediction.tiles import Band, Corner

OVERVIEW_PX = 16
"""Least px along a tile's shorter side in the level that tissue is found in."""
MOST_PX = 2**26
"""Most px of a level that tissue is found in: it has to fit into memory."""
LEAST_PX = 256
"""Least side of the boxes that are read."""


@dataclass(frozen=True)
class Source:
    """An open image file."""

    task: Task
    image: ImageFile
    scanned: ImageFile
    """The image in its own colours, which tell what is tissue; `image` itself if it has them."""
    overview_HWC: Image | None
    """The level of a pyramid that shows its glass; None where there is no such level."""
    tissue_HWC: Image | None
    """The same in its own colours, that tissue is found in."""


class BandReader:
    """Reads images band by band; all bands of one image before the next image."""

    def __init__(
        self, uint16_white: int, min_tissue: float, reference: Stains | None = None
    ) -> None:
        """`reference`: the stains that images are given; None to leave them as they are."""
        self.uint16_white, self.min_tissue, self.reference = uint16_white, min_tissue, reference
        self.source: Source | None = None
        self.largest_uint16: dict[Path, int] = {}
        """Image -> the largest value read of it, as ImageFile.largest_uint16."""
        self.files = ExitStack()

    def read(self, task: Task, band: Band) -> tuple[Image, list[Corner]]:
        """Return a band's pixels, HWC uint8, and its tiles with tissue. Raises BadInputError."""
        source = self.source_of(task)
        found = self.read_from(source, band)
        largest = max(self.largest_uint16.get(task.path, 0), source.image.largest_uint16)
        self.largest_uint16[task.path] = largest
        return found

    def source_of(self, task: Task) -> Source:
        """Return the open image of a task. Raises BadInputError."""
        if self.source is None or self.source.task.path != task.path:
            self.source = None
            self.files.close()
            self.source = self.open(task)
        return self.source

    def read_from(self, source: Source, band: Band) -> tuple[Image, list[Corner]]:
        """As `read`, of an open image."""
        if source.overview_HWC is not None and source.tissue_HWC is not None:
            return self.read_tissue(source.overview_HWC, source.tissue_HWC, source, band)
        box = Box(0, band.top, *reversed(band.shape))
        image_HWC = source.image.read(box)
        has_own = source.scanned is source.image or not self.min_tissue
        seen_HWC = image_HWC if has_own else source.scanned.read(box)
        height, width = band.size
        fractions = (
            tissue_fraction(seen_HWC[top : top + height, left : left + width], step=4)
            for top, left in band.corners
        )
        return image_HWC, self.with_tissue(band.corners, fractions)

    def open(self, task: Task) -> Source:
        """Open an image, and find its overview. Raises BadInputError."""
        file = self.files.enter_context(
            open_normalised(task.path, self.uint16_white, self.reference)
        )
        image = of_size(file, *task.predicted_px)
        scanned, overview_HWC, tissue_HWC = image, None, None
        if file.as_scanned is not file:
            scanned = of_size(file.as_scanned, *task.predicted_px)
        if self.min_tissue:
            most_shrink = min(task.bands[0].size) / OVERVIEW_PX
            overview_HWC = tissue_HWC = image.overview(most_shrink, MOST_PX)
            if scanned is not image:
                tissue_HWC = scanned.overview(most_shrink, MOST_PX)
        return Source(task, image, scanned, overview_HWC, tissue_HWC)

    def with_tissue(self, corners: Sequence[Corner], fractions: Iterable[float]) -> list[Corner]:
        """Keep the tiles whose fraction of tissue is large enough."""
        pairs = zip(corners, fractions, strict=True)
        return [corner for corner, fraction in pairs if fraction >= self.min_tissue]

    def read_tissue(
        self, overview_HWC: Image, tissue_HWC: Image, source: Source, band: Band
    ) -> tuple[Image, list[Corner]]:
        """Read only the tiles of a band with tissue; its other px are the overview, enlarged."""
        boxes = [Box(left, band.top + top, *reversed(band.size)) for top, left in band.corners]
        image, task = source.image, source.task
        fractions = (tissue_fraction(seen_in(tissue_HWC, task, box), step=1) for box in boxes)
        tissue = self.with_tissue(band.corners, fractions)
        whole = Box(0, band.top, *reversed(band.shape))
        size = whole.width, whole.height
        image_HWC = cv2.resize(
            seen_in(overview_HWC, task, whole), size, interpolation=cv2.INTER_NEAREST
        )
        for box in boxes_with(band, tissue, image.segment_px):
            top = box.y - band.top
            image_HWC[top : top + box.height, box.x : box.x + box.width] = image.read(box)
        return image_HWC, tissue


def seen_in(overview_HWC: Image, task: Task, box: Box) -> Image:
    """Cut out of an overview the pixels that show some of a box of the image as it is predicted."""
    (top, bottom), (left, right) = (
        (start * seen // length, -(-(start + size) * seen // length))
        for start, size, seen, length in (
            (box.y, box.height, overview_HWC.shape[0], task.predicted_px[0]),
            (box.x, box.width, overview_HWC.shape[1], task.predicted_px[1]),
        )
    )
    return overview_HWC[top:bottom, left:right]


def boxes_with(band: Band, corners: Sequence[Corner], segment: tuple[int, int]) -> list[Box]:
    """Return boxes of a band that cover the given tiles.

    They are made of whole segments (height, width) of the file, so that none is decoded twice.
    """
    height, width = (-(-LEAST_PX // length) * length for length in segment)
    first_row = band.top // height
    is_needed = np.zeros((-(-band.bottom // height) - first_row, -(-band.shape[1] // width)), bool)
    for top, left in corners:
        start, end = band.top + top, band.top + top + band.size[0]
        rows = slice(start // height - first_row, -(-end // height) - first_row)
        is_needed[rows, left // width : -(-(left + band.size[1]) // width)] = True
    boxes = []
    for row, is_needed_W in enumerate(is_needed, start=first_row):
        top, bottom = max(row * height, band.top), min((row + 1) * height, band.bottom)
        for start, end in runs(is_needed_W):
            right = min(end * width, band.shape[1])
            boxes.append(Box(start * width, top, right - start * width, bottom - top))
    return boxes


def runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where runs of true begin and end."""
    steps = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return list(zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True))
