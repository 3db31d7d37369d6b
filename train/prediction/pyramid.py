"""Large planes as tiled, compressed OME-TIFs with smaller levels, as QuPath and tifffile read them.

Written strip by strip: the next level's rows are made from the strips of the one before as they
pass, and wait in a file, so that memory holds a few strips whatever the image's height.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

TILE_PX = 512
SMALLEST_PX = 1024  # a level with no side longer has none below it
SPOOLED_BYTES = 2**20  # of a level that waits in memory; a larger one goes to disk
CLASSIC_BYTES = 2**31  # classic TIFs end at 4 GiB; leave room for data that grows in compression

Array = npt.NDArray[np.uint8]
Rows = Callable[[int, int, int], Array]
"""(plane, top, bottom) -> those rows, (H, W) uint8."""


def write_pyramid(
    path: Path,
    shape_CHW: tuple[int, int, int],
    rows: Rows,
    halve: Callable[[Array], Array],
    names: Sequence[str],
) -> None:
    """Write C planes, one a name. `halve` makes an even number of rows half as many, and half as
    wide; of an odd number the last stands alone."""
    shapes = level_shapes(shape_CHW)
    with ExitStack() as stack:
        is_big = int(np.prod(shape_CHW)) > CLASSIC_BYTES
        tif = stack.enter_context(tifffile.TiffWriter(path, bigtiff=is_big, ome=True))
        for level, shape in enumerate(shapes):
            below = stack.enter_context(SpooledTemporaryFile(SPOOLED_BYTES, dir=str(path.parent)))
            tif.write(
                tiles(shape, rows, halve, below),
                shape=shape if shape[0] > 1 else shape[1:],
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="minisblack",
                compression="adobe_deflate",
                compressionargs={"level": 1},  # by default 6: half as fast again, and 2% smaller
                buffersize=2**24,  # of tiles that wait for a thread; 256 MB by default
                **(first_level(names, len(shapes) - 1) if level == 0 else {"subfiletype": 1}),
            )
            if level + 1 < len(shapes):
                rows = partial(read_rows, below, shapes[level + 1])


def first_level(names: Sequence[str], num_below: int) -> dict[str, object]:
    """What only the full resolution is written with."""
    axes = "CYX" if len(names) > 1 else "YX"
    return {"subifds": num_below, "metadata": {"axes": axes, "Channel": {"Name": list(names)}}}


def level_shapes(shape_CHW: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The full resolution and its halves, down to SMALLEST_PX."""
    shapes = [shape_CHW]
    while max(shapes[-1][1:]) > SMALLEST_PX:
        planes, height, width = shapes[-1]
        shapes.append((planes, -(-height // 2), -(-width // 2)))
    return shapes


def tiles(
    shape_CHW: tuple[int, int, int], rows: Rows, halve: Callable[[Array], Array], below: IO[bytes]
) -> Iterator[Array]:
    """The tiles of a level in the order of a TIF; the level below goes to a file meanwhile."""
    planes, height, width = shape_CHW
    for plane in range(planes):
        for top in range(0, height, TILE_PX):
            strip_HW = rows(plane, top, min(top + TILE_PX, height))
            below.write(np.ascontiguousarray(halve(strip_HW)).data)
            for left in range(0, width, TILE_PX):
                yield np.ascontiguousarray(strip_HW[:, left : left + TILE_PX])


def read_rows(
    file: IO[bytes], shape_CHW: tuple[int, int, int], plane: int, top: int, bottom: int
) -> Array:
    """Rows of a plane from a file of nothing but pixels."""
    _, height, width = shape_CHW
    file.seek((plane * height + top) * width)
    content = file.read((bottom - top) * width)
    return np.frombuffer(content, np.uint8).reshape(-1, width)


def halve_labels(labels_HW: Array) -> Array:
    """Every second pixel: a label is no number to be averaged."""
    return labels_HW[::2, ::2]


def halve_values(values_HW: Array) -> Array:
    """The mean of two by two pixels."""
    height, width = values_HW.shape
    even = cv2.copyMakeBorder(values_HW, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = even.shape[1] // 2, even.shape[0] // 2
    return cv2.resize(even, size, interpolation=cv2.INTER_AREA)
