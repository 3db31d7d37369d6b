"""The files of a predicted image, written from its bands without ever holding the whole of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.ownership import PRIVATE, Item
from common.recorded import is_whole
from data_prep.annotations.qupath import PREDICTED
from data_prep.dataset.manifest import Labelling
from data_prep.images import image_files
from data_prep.images.image_files import Box
from data_prep.images.masks import channel_values
from data_prep.images.outlines import draw_outlines
from train.prediction.nuclei import as_brecahad, as_geojson, find_in_windows
from train.prediction.predicted_bands import PredictedBands
from train.prediction.pyramid import halve_labels, halve_values, write_pyramid
from train.prediction.tiles import Band, Plane

KIND, BANDS = "predict", "bands"  # private folders
PICTURE_PX = 4000
"""The longest side of a picture; a larger image is shrunk."""
OUTLINE_PX = 3
STRIP_PX = 512
SETTINGS = "_settings.json"
NUCLEI = f"{PREDICTED}.geojson"
SMALL_MASK = "_mask.png"
OUTPUTS = ("_mask.tif", "_probability.tif", "_overlay.png", NUCLEI, ".json", SETTINGS)


@dataclass(frozen=True)
class Task:
    """An image that is to be predicted."""

    path: Path
    out: Path
    height: int
    width: int
    bands: list[Band]
    settings: dict[str, Any]
    """All that decides its results."""

    @property
    def store(self) -> PredictedBands:
        """Where its bands are until its results are whole."""
        shrink = -(-max(self.height, self.width) // PICTURE_PX)
        return PredictedBands(self.out / PRIVATE / self.bands_kind, self.bands, shrink)

    @property
    def bands_kind(self) -> str:
        """The private folder of its bands; with an ending, or images could be called '.', '..'."""
        return f"{BANDS}/{self.path.stem}.bands"

    @property
    def item(self) -> Item:
        """Its results, as the output folder's records have them."""
        return Item(self.out, KIND, self.path.stem, making=self.store.folder)

    @property
    def outputs(self) -> list[str]:
        """The names of its results."""
        endings = [SMALL_MASK, *OUTPUTS] if self.store.shrink == 1 else OUTPUTS
        return [self.name(ending) for ending in endings]

    def look(self) -> "Standing":
        """Compare its files with what is recorded of them."""
        record = self.item.read()
        others = [name for name in self.outputs if not is_whole(record, self.out, name)]
        in_the_way = self.item.conflicts(others, record)
        is_recorded = record.about == self.about and set(self.outputs) <= record.files.keys()
        # of the others none is missing, or was emptied
        return Standing(is_recorded and in_the_way == others, in_the_way)

    @property
    def about(self) -> dict[str, Any]:
        """What its record says once all its results are there, as it is read from there."""
        return {"settings": json.loads(encode_settings(self.settings))}

    def name(self, ending: str) -> str:
        """The name of one of its results."""
        return self.path.stem + ending


class Standing(NamedTuple):
    """What stands of the results of an image."""

    is_done: bool
    """Whether all were made with these settings and are there, whoever changed them since."""
    in_the_way: list[str]
    """What is not ours, or was changed, under their names."""


def encode_settings(settings: dict[str, Any]) -> bytes:
    """The content of NAME_settings.json."""
    return (json.dumps(settings, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Results:
    """Makes the results of an image whose bands are all there."""

    task: Task
    labelling: Labelling
    threshold: float
    """Of pixels."""
    nuclei_threshold: float
    count_rows: Callable[[int], None] = lambda number: None
    """Told of each number of rows that were worked on; `num_rows` in the end."""

    @property
    def num_rows(self) -> int:
        """Of every plane: for the mask, the probability, the picture, and to look for nuclei."""
        return 4 * len(self.values) * self.task.height

    @property
    def values(self) -> list[int]:
        """The mask value of each plane."""
        return channel_values(self.labelling.labels.values())

    @property
    def classes(self) -> list[str]:
        """The class of each plane: the first of those that were drawn as one."""
        names = {value: name for name, value in reversed(self.labelling.labels.items())}
        return [names[value] for value in self.values]

    def write(self) -> None:
        """Write them beside the bands, and give them their names; the settings, which say that all
        are there, last. Raises UserError where something is in the way that is not ours."""
        store, name = self.task.store, self.task.name
        with self.task.item as item:
            self.write_tifs(item.make(name("_mask.tif")), item.make(name("_probability.tif")))
            mask_HW = self.small_mask()
            if store.shrink == 1:
                item.write(name(SMALL_MASK), image_files.encode_mask(mask_HW))
            overlay_HWC = store.picture().copy()
            draw_outlines(overlay_HWC, mask_HW > 0, OUTLINE_PX)
            item.write(name("_overlay.png"), image_files.encode_image(overlay_HWC, "png", 0))
            self.write_nuclei(item.make(name(NUCLEI)), item.make(name(".json")))
            item.write(name(SETTINGS), encode_settings(self.task.settings))
            item.publish(self.task.about)
        store.remove()

    def write_tifs(self, mask: Path, probability: Path) -> None:
        """The two pyramids."""
        size = self.task.height, self.task.width
        write_pyramid(mask, (1, *size), self.mask_rows, halve_labels, ["mask"])
        num = len(self.values)
        write_pyramid(probability, (num, *size), self.byte_rows, halve_values, self.classes)

    def rows(self, plane: int, top: int, bottom: int) -> Plane:
        """The probability of a class in some rows, (H, W) float32."""
        box = Box(0, top, self.task.width, bottom - top)
        probability_HW = self.task.store.probability(plane, box)
        self.count_rows(bottom - top)
        return probability_HW

    def byte_rows(self, plane: int, top: int, bottom: int) -> npt.NDArray[np.uint8]:
        """The same as 0 to 255."""
        return np.rint(self.rows(plane, top, bottom) * np.float32(255)).astype(np.uint8)

    def mask_rows(self, plane: int, top: int, bottom: int) -> image_files.Mask:
        """Some rows of the mask."""
        planes = [self.rows(number, top, bottom) for number in range(len(self.values))]
        return to_mask(np.stack(planes), self.values, self.threshold)

    def small_mask(self) -> image_files.Mask:
        """The mask, of every `shrink` px the first."""
        shrink, height = self.task.store.shrink, self.task.height
        step = max(1, STRIP_PX // shrink) * shrink
        return np.concatenate(
            [
                # copied, for a view would keep all of its strip
                self.mask_rows(0, top, min(top + step, height))[::shrink, ::shrink].copy()
                for top in range(0, height, step)
            ]
        )

    def write_nuclei(self, geojson: Path, annotation: Path) -> None:
        """The nuclei of every class."""
        size = self.task.height, self.task.width
        nuclei = {
            name: find_in_windows(
                partial(self.task.store.probability, plane),
                *size,
                self.labelling.radius_px,
                self.nuclei_threshold,
                self.count_rows,
            )
            for plane, name in enumerate(self.classes)
        }
        with geojson.open("wb") as file:
            file.writelines(as_geojson(nuclei))
        annotation.write_bytes(as_brecahad(nuclei, *size))


def to_mask(
    probability_CHW: npt.NDArray[np.float32], label_values: Sequence[int], threshold: float
) -> image_files.Mask:
    """HW uint8: the value of the most probable class, where it is above the threshold; else 0."""
    best_HW = probability_CHW[0]
    mask_HW = np.where(best_HW > threshold, np.uint8(label_values[0]), np.uint8(0))
    for probability_HW, value in zip(probability_CHW[1:], label_values[1:], strict=True):
        mask_HW[(probability_HW > best_HW) & (probability_HW > threshold)] = value
        best_HW = np.maximum(best_HW, probability_HW)
    return mask_HW
