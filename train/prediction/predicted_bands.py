"""The predicted bands of an image: files that are kept until all results of the image are there.

FOLDER/settings.json     what the bands were computed with; bands of other settings are removed
FOLDER/0007.npy          a band's probability, (C, H, W) uint16 from 0 to 65535
FOLDER/0007_picture.npy  the rows of the image that only this band covers, shrunk, HWC uint8

A file gets its name when it is whole, so a killed prediction goes on with the bands that it has.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from common.files import TEMPORARY, clear, holds, named_when_whole, write_atomically
from data_prep.images.arrays import Box, Image
from train.prediction.tiles import Band, Plane, summed_ramps

SETTINGS = "settings.json"
OURS = re.compile(rf"{re.escape(SETTINGS)}|\d{{4,}}(_picture)?\.npy|{TEMPORARY.pattern}")
CERTAIN = 65535
"""The number that stands for a probability of 1."""


@dataclass(frozen=True)
class PredictedBands:
    """The files of the bands of one image."""

    folder: Path
    bands: Sequence[Band]
    shrink: int
    """Side of the square of image px that becomes one px of the picture."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder. Bands in it are kept if they were computed with the same settings."""
        content, file = json.dumps(settings, indent=2).encode(), self.folder / SETTINGS
        if holds(file, content):
            clear(self.folder, lambda name: bool(TEMPORARY.fullmatch(name)))  # a killed process's
            return
        self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)

    def remove(self) -> None:
        """Remove the files that this class writes, and the folder if nothing else is in it."""
        clear(self.folder, lambda name: bool(OURS.fullmatch(name)))
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()

    def has(self, number: int) -> bool:
        """Tell whether a band has been predicted."""
        return self.file(number).is_file()

    def save(self, number: int, stored_CHW: npt.NDArray[np.uint16], image_HWC: Image) -> None:
        """Write a band: its probability, and its rows of the picture."""
        picture = shrink(self.own_rows(number, image_HWC), self.shrink)
        save_array(self.picture_file(number), picture)
        save_array(self.file(number), stored_CHW)

    def own_rows(self, number: int, image_HWC: Image) -> Image:
        """Cut out the rows above the next band, from one multiple of `shrink` to another."""
        top, last = self.bands[number].top, number + 1 == len(self.bands)
        end = self.bands[number].bottom if last else self.bands[number + 1].top
        start, stop = (-(-row // self.shrink) * self.shrink - top for row in (top, end))
        return image_HWC[start:stop]

    def probability(self, channel: int, box: Box) -> Plane:
        """Return the blended probability of a class within a box, (H, W) float32 from 0 to 1."""
        total_HW = np.zeros((box.height, box.width), np.float32)
        tops = [top for band in self.bands for top in band.tops]
        weight_H = summed_ramps(tops, self.bands[0].size[0], self.bands[0].overlap_px)
        for number, band in enumerate(self.bands):
            top, bottom = max(box.y, band.top), min(box.y + box.height, band.bottom)
            if top >= bottom:
                continue
            stored_CHW = np.load(self.file(number), mmap_mode="r")
            own = slice(top - band.top, bottom - band.top)
            fraction_H = band.row_weight()[own] / (weight_H[top:bottom] * CERTAIN)
            stored_HW = stored_CHW[channel, own, box.x : box.x + box.width]
            total_HW[top - box.y : bottom - box.y] += stored_HW * fraction_H[:, None]
        return total_HW

    def picture(self) -> Image:
        """Return the whole image, shrunk, HWC uint8; it may be read-only."""
        numbers = range(len(self.bands))
        rows = [np.load(self.picture_file(number), mmap_mode="r") for number in numbers]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def file(self, number: int) -> Path:
        """Name the file of a band's probability."""
        return self.folder / f"{number:04d}.npy"

    def picture_file(self, number: int) -> Path:
        """Name the file of a band's rows of the picture."""
        return self.folder / f"{number:04d}_picture.npy"


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a .npy file; it gets its name when it is whole."""
    packed = np.ascontiguousarray(array)
    with named_when_whole(path) as file:  # np.save would tell nothing of a full disk
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(packed))
        file.write(packed.data)


def shrink(image_HWC: Image, factor: int) -> Image:
    """Average squares of `factor` px; the last row and column are repeated to fill them."""
    height, width = image_HWC.shape[:2]
    if factor == 1 or not height:
        return image_HWC[::factor, ::factor]
    border = cv2.BORDER_REPLICATE
    whole = cv2.copyMakeBorder(image_HWC, 0, -height % factor, 0, -width % factor, border)
    size = whole.shape[1] // factor, whole.shape[0] // factor
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
