"""The result files of a predicted image, written strip by strip from its predicted bands."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from common.file_records import is_whole
from common.ownership import PRIVATE, Item
from data_prep.annotations.qupath import PREDICTED
from data_prep.dataset.description import Labelling
from data_prep.image_files.normalised import open_normalised
from data_prep.images import encoding
from data_prep.images.arrays import Box, Image, Mask
from data_prep.images.masks import channel_names, channel_values
from data_prep.images.rescaling import Axis, resample
from data_prep.raw import field_name
from train.metrics.detection import Nuclei
from train.prediction.nuclei import as_brecahad, as_geojson, find_in_windows, in_px_of
from train.prediction.overlay import draw_overlay
from train.prediction.predicted_bands import PredictedBands
from train.prediction.pyramid import halve_labels, halve_values, write_pyramid
from train.prediction.tiles import Band, Plane
from train.runs.thresholds import Thresholds

KIND, BANDS = "predict", "bands"  # private folders
PICTURE_PX = 4000
"""Longest side of an overlay and of a mask as PNG; the overlay of a larger image is shrunk."""
SETTINGS = "_settings.json"
NOT_NORMALISED = "not_normalised"
NUCLEI = f"_{PREDICTED}.geojson"
SMALL_MASK = "_mask.png"
OUTPUTS = ("_mask.tif", "_probability.tif", "_overlay.png", NUCLEI, ".json", SETTINGS)


@dataclass(frozen=True)
class Task:
    """An image to predict, and where its results go."""

    path: Path
    out: Path
    height: int
    width: int
    bands: list[Band]
    settings: dict[str, Any]
    """Everything that its results depend on."""

    @property
    def mpp(self) -> float | None:
        """Its resolution, in micrometres per px; None if it is not known."""
        told: float | None = self.settings["mpp"]
        return told

    @property
    def predicted_px(self) -> tuple[int, int]:
        """Height and width that it has for the network, at the model's resolution."""
        return self.bands[-1].bottom, self.bands[0].shape[1]

    @property
    def is_rescaled(self) -> bool:
        """Whether the network sees it in another size."""
        return self.predicted_px != (self.height, self.width)

    @property
    def shrink(self) -> int:
        """Side of the square of px that becomes one px of its overlay."""
        return -(-max(self.height, self.width) // PICTURE_PX)

    @property
    def store(self) -> PredictedBands:
        """The files of its predicted bands."""
        shrink = -(-max(self.predicted_px) // PICTURE_PX)
        return PredictedBands(self.out / PRIVATE / self.bands_kind, self.bands, shrink)

    @property
    def bands_kind(self) -> str:
        """The private folder of its bands. The ending is for images with the name '.' or '..'."""
        return f"{BANDS}/{self.name()}.bands"

    @property
    def item(self) -> Item:
        """Its results in the records of the output folder."""
        return Item(self.out, KIND, self.name(), making=self.store.folder)

    @property
    def outputs(self) -> list[str]:
        """The names of its result files."""
        endings = [SMALL_MASK, *OUTPUTS] if self.shrink == 1 else OUTPUTS
        return [self.name(ending) for ending in endings]

    def look(self) -> "Standing":
        """Compare its result files with the record of what was written."""
        record = self.item.read()
        others = [name for name in self.outputs if not is_whole(record, self.out, name)]
        in_the_way = self.item.conflicts(others, record)
        not_normalised = str(record.about.get(NOT_NORMALISED, ""))
        is_recorded = (
            record.about == self.about(not_normalised) and set(self.outputs) <= record.files.keys()
        )
        # every result that differs from its record is there, and is no empty file of ours
        return Standing(is_recorded and in_the_way == others, in_the_way, not_normalised)

    def about(self, not_normalised: str) -> dict[str, Any]:
        """Return what its record says once all its results are written, in the form that is read
        back. `not_normalised`: as ImageFile.not_normalised."""
        settings = json.loads(encode_settings(self.settings))
        return {"settings": settings, NOT_NORMALISED: not_normalised}

    def name(self, ending: str = "") -> str:
        """Name one of its result files, or the image without its ending."""
        return field_name(self.path.name) + ending


class Standing(NamedTuple):
    """How far the results of an image are."""

    is_done: bool
    """Whether all were written with these settings and exist, even if somebody changed them."""
    in_the_way: list[str]
    """Files under their names that we did not write, or that were changed since."""
    not_normalised: str
    """As recorded: why the image was predicted in its own colours; '' if it was not."""


def encode_settings(settings: dict[str, Any]) -> bytes:
    """Encode settings as the content of NAME_settings.json."""
    return (json.dumps(settings, indent=2) + "\n").encode()


@dataclass(frozen=True)
class ResultFiles:
    """Writes the results of an image whose bands are all predicted."""

    task: Task
    labelling: Labelling
    thresholds: Thresholds
    count_rows: Callable[[int], None] = lambda number: None
    """Called with each number of rows that were worked on: `num_rows` in total."""

    @property
    def num_rows(self) -> int:
        """Count the rows to work on: those of each plane for mask, probability and nuclei."""
        return len(self.values) * (2 * self.task.height + self.task.predicted_px[0])

    @property
    def values(self) -> list[int]:
        """The mask value of each class plane."""
        return channel_values(self.labelling.labels.values())

    @property
    def classes(self) -> list[str]:
        """The class name of each plane: the first of those that share its mask value."""
        names = {value: name for name, value in reversed(self.labelling.labels.items())}
        return [names[value] for value in self.values]

    def write(self) -> str:
        """Write the results beside the bands, then give them their names, the settings last: those
        say that all is written. Returns `not_normalised()`.

        Raises UserError where a file that is not ours is in the way, and BadInputError where the
        image cannot be read any more.
        """
        not_normalised = self.not_normalised()
        store, name = self.task.store, self.task.name
        with self.task.item as item:
            mask_HW = self.write_mask(item.make(name("_mask.tif")))
            self.write_probability(item.make(name("_probability.tif")))
            if self.task.shrink == 1:
                item.write(name(SMALL_MASK), encoding.encode_mask(mask_HW))
            nuclei = self.find_nuclei()
            overlay_HWC = self.overlay(mask_HW, [*nuclei.values()])
            item.write(name("_overlay.png"), encoding.encode_image(overlay_HWC, "png", 0))
            with item.make(name(NUCLEI)).open("wb") as file:
                file.writelines(as_geojson(nuclei))
            item.write(name(".json"), as_brecahad(nuclei, self.task.height, self.task.width))
            settings = {**self.task.settings, NOT_NORMALISED: not_normalised}
            item.write(name(SETTINGS), encode_settings(settings))
            item.publish(self.task.about(not_normalised))
        store.remove()
        return not_normalised

    def not_normalised(self) -> str:
        """Return why the image was predicted in its own colours; '' if it was not. Raises
        BadInputError."""
        about = self.labelling
        with open_normalised(self.task.path, about.uint16_white, about.stains) as file:
            return file.not_normalised

    def write_mask(self, path: Path) -> Mask:
        """Write the mask's pyramid; return the mask shrunk, of `shrink` x `shrink` px the first."""
        shrink, strips = self.task.shrink, []

        def rows(_: int, top: int, bottom: int) -> Mask:
            mask_HW = self.mask_rows(top, bottom)
            # copied, for a view would keep all of its strip in memory
            strips.append(mask_HW[-top % shrink :: shrink, ::shrink].copy())
            return mask_HW

        write_pyramid(
            path,
            (1, self.task.height, self.task.width),
            rows,
            halve_labels,
            ["mask"],
            self.task.mpp,
        )
        return np.concatenate(strips)

    def write_probability(self, path: Path) -> None:
        """Write the pyramid of the probabilities, 0 to 255, a plane a class."""
        shape = len(self.values), self.task.height, self.task.width
        write_pyramid(path, shape, self.byte_rows, halve_values, self.classes, self.task.mpp)

    def rows(self, plane: int, top: int, bottom: int) -> Plane:
        """Return the probability of a class in some rows, (H, W) float32."""
        read = partial(self.task.store.probability, plane)
        box, sizes = Box(0, top, self.task.width, bottom - top), (self.task.height, self.task.width)
        if self.task.is_rescaled:
            rows, columns = map(Axis, self.task.predicted_px, sizes)
            probability_HW = resample(read, rows, columns, box)
        else:
            probability_HW = read(box)
        self.count_rows(bottom - top)
        return probability_HW

    def byte_rows(self, plane: int, top: int, bottom: int) -> npt.NDArray[np.uint8]:
        """Return the same rows as 0 to 255, (H, W) uint8."""
        return np.rint(self.rows(plane, top, bottom) * np.float32(255)).astype(np.uint8)

    def mask_rows(self, top: int, bottom: int) -> Mask:
        """Return some rows of the mask, HW uint8."""
        planes = [self.rows(number, top, bottom) for number in range(len(self.values))]
        return to_mask(np.stack(planes), self.values, self.thresholds.pixels.values)

    def find_nuclei(self) -> dict[str, Nuclei]:
        """Find the nuclei of every class, in px of the image."""
        height, width = self.task.predicted_px
        return {
            name: in_px_of(
                find_in_windows(
                    partial(self.task.store.probability, plane),
                    height,
                    width,
                    self.labelling.radius_px,
                    self.thresholds.nuclei.values[plane],
                    self.count_rows,
                ),
                (self.task.width / width, self.task.height / height),
            )
            for plane, name in enumerate(self.classes)
        }

    def overlay(self, mask_HW: Mask, nuclei: Sequence[Nuclei]) -> Image:
        """Draw the shrunk mask and the nuclei of each class over the picture, HWC uint8."""
        return draw_overlay(
            in_size(self.task.store.picture(), mask_HW.shape),
            np.searchsorted([0, *self.values], mask_HW).astype(np.uint8),
            nuclei,
            channel_names(self.labelling.labels),
            self.task.shrink,
            self.labelling.radius_px * self.task.width / self.task.predicted_px[1],
        )


def in_size(picture_HWC: Image, size: tuple[int, ...]) -> Image:
    """Return a copy of a picture with this height and width."""
    height, width = size
    if picture_HWC.shape[:2] == size:
        return picture_HWC.copy()
    shrinks = picture_HWC.shape[0] > height
    by = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture_HWC, (width, height), interpolation=by), np.uint8)


def to_mask(
    probability_CHW: npt.NDArray[np.float32],
    label_values: Sequence[int],
    thresholds: Sequence[float],
) -> Mask:
    """Return the mask value of each px's most probable of the classes that are above their
    thresholds, HW uint8; 0 where none is."""
    best_HW = np.zeros_like(probability_CHW[0])
    mask_HW = np.zeros(best_HW.shape, np.uint8)
    for probability_HW, value, least in zip(probability_CHW, label_values, thresholds, strict=True):
        is_better_HW = (probability_HW > least) & (probability_HW > best_HW)
        np.copyto(mask_HW, np.uint8(value), where=is_better_HW)
        np.copyto(best_HW, probability_HW, where=is_better_HW)
    return mask_HW
