"""Write large planes as tiled, compressed OME-TIFs with smaller levels, which QuPath reads.

A level is written strip by strip. The rows of the next level are made from the strips as they pass,
and wait in a file, so that memory holds a few strips whatever the image's height.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

TILE_PX = 512
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SMALLEST_PX = 1024  # a level with no side longer has none below it
SPOOLED_BYTES = 2**20  # of a level that waits in memory; a larger one goes to disk
CLASSIC_BYTES = 2**31  # classic TIFs end at 4 GiB; leave room for data that grows in compression

Array = npt.NDArray[np.uint8]
Rows = Callable[[int, int, int], Array]
"""(plane, top, bottom) -> these rows of a plane, (H, W) uint8."""


def write_pyramid(
    path: Path,
    shape_CHW: tuple[int, int, int],
    rows: Rows,
    halve: Callable[[Array], Array],
    names: Sequence[str],
    mpp: float | None = None,
) -> None:
    """Write C planes with these names. Asks for the rows of each plane once, from its top.

    `halve` halves a strip along both axes; an odd last row or column stands for itself. `mpp`: the
    resolution for the tags, in micrometres per px; None if it is not known.
    """
    shapes = level_shapes(shape_CHW)
    axes = "CYX" if len(names) > 1 else "YX"
    channels = {"Name": [name_in_xml(name) for name in names]}
    metadata: dict[str, Any] = {"axes": axes, "Channel": channels}
    if mpp:
        metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    top: dict[str, Any] = {"subifds": len(shapes) - 1, "metadata": metadata}
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
                **(top if level == 0 else {"subfiletype": 1}),
                **(resolution_tags(mpp * 2**level) if mpp else {}),
            )
            if level + 1 < len(shapes):
                rows = partial(read_rows, below, shapes[level + 1])


def resolution_tags(mpp: float) -> dict[str, Any]:
    """Return what tifffile is to write of a resolution, in micrometres per px."""
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}


def name_in_xml(name: str) -> str:
    """Escape the characters that no XML may hold, and that no parser of OME takes."""
    return NOT_IN_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", name)


def level_shapes(shape_CHW: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Halve the full resolution until no side is longer than SMALLEST_PX; all shapes, CHW."""
    shapes = [shape_CHW]
    while max(shapes[-1][1:]) > SMALLEST_PX:
        planes, height, width = shapes[-1]
        shapes.append((planes, -(-height // 2), -(-width // 2)))
    return shapes


def tiles(
    shape_CHW: tuple[int, int, int], rows: Rows, halve: Callable[[Array], Array], below: IO[bytes]
) -> Iterator[Array]:
    """Yield the tiles of a level in the order of a TIF, and write the next level to a file."""
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
    """Read rows of a plane from a file that holds nothing but pixels, (H, W) uint8."""
    _, height, width = shape_CHW
    file.seek((plane * height + top) * width)
    content = file.read((bottom - top) * width)
    return np.frombuffer(content, np.uint8).reshape(-1, width)


def halve_labels(labels_HW: Array) -> Array:
    """Take every second pixel: labels cannot be averaged."""
    return labels_HW[::2, ::2]


def halve_values(values_HW: Array) -> Array:
    """Average squares of two by two pixels."""
    height, width = values_HW.shape
    even = cv2.copyMakeBorder(values_HW, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = even.shape[1] // 2, even.shape[0] // 2
    return cv2.resize(even, size, interpolation=cv2.INTER_AREA)
