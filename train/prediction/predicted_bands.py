"""The predicted bands of an image on disk, until the whole image is written.

FOLDER/settings.json     what the bands were computed with; bands of anything else are cleared away
FOLDER/0007.npy          a band's probability, (C, H, W) uint16 from 0 to 65535; there once whole
FOLDER/0007_picture.npy  the image's pixels that are its own, shrunk, HWC uint8
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
from data_prep.images.image_files import Box, Image
from train.prediction.tiles import Band, Plane

SETTINGS = "settings.json"
OURS = re.compile(rf"{re.escape(SETTINGS)}|\d{{4,}}(_picture)?\.npy|{TEMPORARY.pattern}")
CERTAIN = 65535
"""What probability 1 is stored as."""


@dataclass(frozen=True)
class PredictedBands:
    """Where the bands of an image are kept."""

    folder: Path
    bands: Sequence[Band]
    shrink: int
    """How many px of the image are one of the picture, along each axis."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or keep what is there where it was computed with the same settings."""
        content, file = json.dumps(settings, indent=2).encode(), self.folder / SETTINGS
        if holds(file, content):
            clear(self.folder, lambda name: bool(TEMPORARY.fullmatch(name)))  # a killed process's
            return
        self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)

    def remove(self) -> None:
        """Clear away all that is kept here, and nothing else."""
        clear(self.folder, lambda name: bool(OURS.fullmatch(name)))
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()

    def has(self, number: int) -> bool:
        """Whether a band is there."""
        return self.file(number).is_file()

    def save(self, number: int, stored_CHW: npt.NDArray[np.uint16], image_HWC: Image) -> None:
        """Keep a band: its probability, and its own part of the picture of the image."""
        picture = shrink(self.own_rows(number, image_HWC), self.shrink)
        save_array(self.picture_file(number), picture)
        save_array(self.file(number), stored_CHW)

    def own_rows(self, number: int, image_HWC: Image) -> Image:
        """The rows of a band that are no later band's, from one multiple of `shrink` to another."""
        top, last = self.bands[number].top, number + 1 == len(self.bands)
        end = self.bands[number].bottom if last else self.bands[number + 1].top
        start, stop = (-(-row // self.shrink) * self.shrink - top for row in (top, end))
        return image_HWC[start:stop]

    def probability(self, channel: int, box: Box) -> Plane:
        """The blended probability of a class in a part of the image, (H, W) float32."""
        total_HW = np.zeros((box.height, box.width), np.float32)
        weight_H = np.zeros((box.height, 1), np.float32)
        parts = []
        for number, band in enumerate(self.bands):
            top, bottom = max(box.y, band.top), min(box.y + box.height, band.bottom)
            if top < bottom:
                own = slice(top - band.top, bottom - band.top)
                rows, weight = slice(top - box.y, bottom - box.y), band.row_weight()[own, None]
                weight_H[rows] += weight
                parts.append((number, own, rows, weight))
        for number, own, rows, weight in parts:
            band_CHW = np.load(self.file(number), mmap_mode="r")
            share = weight / (weight_H[rows] * CERTAIN)
            total_HW[rows] += band_CHW[channel, own, box.x : box.x + box.width] * share
        return total_HW

    def picture(self) -> Image:
        """The whole image, shrunk; not to be written to."""
        numbers = range(len(self.bands))
        parts = [np.load(self.picture_file(number), mmap_mode="r") for number in numbers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def file(self, number: int) -> Path:
        """The file of a band's probability."""
        return self.folder / f"{number:04d}.npy"

    def picture_file(self, number: int) -> Path:
        """The file of a band's part of the picture."""
        return self.folder / f"{number:04d}_picture.npy"


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a .npy file so that its name never stands for half of it."""
    with named_when_whole(path) as file:
        np.save(file, array)


def shrink(image_HWC: Image, factor: int) -> Image:
    """Every `factor` x `factor` px as one, their mean; what is missing at the end is repeated."""
    height, width = image_HWC.shape[:2]
    if factor == 1 or not height:
        return image_HWC[::factor, ::factor]
    border = cv2.BORDER_REPLICATE
    whole = cv2.copyMakeBorder(image_HWC, 0, -height % factor, 0, -width % factor, border)
    size = whole.shape[1] // factor, whole.shape[0] // factor
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
