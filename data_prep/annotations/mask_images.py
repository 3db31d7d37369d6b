"""Read ready masks: for each field an image of labels, NAME.png or NAME_mask.png.

0 is background, 1 the first of classes=, 2 the next. With a single class, 255 means it too. What
ignore_value= names is none of these: it is ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.annotations.reader import RULES, Annotation, AnnotationReader, Rules
from data_prep.config import IGNORE_LABEL
from data_prep.image_files.open_image import open_image, read_size
from data_prep.images.arrays import Box, Mask, PointsN2
from data_prep.images.masks import BINARY_LABEL
from data_prep.images.rescaling import of_size
from data_prep.images.tiles import Tile
from data_prep.raw import BadInputError, Field

STRIP_PX = 1024  # rows of a large mask to read at a time
MOST_LISTED = 8


@dataclass(frozen=True)
class MaskFile:
    """A mask that can be read, and its size."""

    path: Path
    height_px: int
    width_px: int


class MaskImageReader(AnnotationReader[MaskFile]):
    """Reads TIF and PNG; of a TIF no more than a tile needs."""

    suffixes = (".png", ".tif", ".tiff")
    words = ("mask", "masks", "cp_masks", "label", "labels", "seg", "segmentation")
    has_areas = True

    def parse(self, field: Field) -> MaskFile:
        """Read the mask's size from its header."""
        return MaskFile(field.annotation, *read_size(field.annotation))

    def classes_in(self, parsed: MaskFile, classes: Sequence[str]) -> set[str]:
        """Return the classes whose value some pixel has."""
        found: set[int] = set()
        with open_image(parsed.path) as mask:
            rows = max(STRIP_PX, mask.segment_px[0])  # none is decoded twice
            for top in range(0, parsed.height_px, rows):
                strip = Box(0, top, parsed.width_px, min(rows, parsed.height_px - top))
                label_HW = labels_of(mask.read_labels(strip), classes, self.rules)
                found |= {*np.unique(label_HW).tolist()}
        return {name for label, name in enumerate(classes, start=1) if label in found}

    def annotation_in(self, parsed: MaskFile, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Keep the areas as they are, with the middle of each connected component in the tile."""
        if (parsed.height_px, parsed.width_px) != tile.file_px:
            raise BadInputError(
                f"is {parsed.width_px} x {parsed.height_px} px, but its image"
                f" {tile.file_px[1]} x {tile.file_px[0]} px"
            )
        with open_image(parsed.path) as file:
            mask = of_size(file, tile.height_px, tile.width_px)
            label_HW = labels_of(mask.read_labels(tile.box), [*values], self.rules)
        middles = {
            name: middles_of(label_HW == label) for label, name in enumerate(values, start=1)
        }
        table = np.zeros(256, np.uint8)
        table[[*range(1, 1 + len(values)), IGNORE_LABEL]] = [*values.values(), IGNORE_LABEL]
        nothing = dict.fromkeys(values, np.zeros((0, 2)))
        return Annotation(nothing, table[label_HW], middles)


def labels_of(stored: npt.NDArray[Any], classes: Sequence[str], rules: Rules = RULES) -> Mask:
    """Return HW uint8, 1 for the first class and so on, IGNORE_LABEL for the rules' ignore_value.

    Raises BadInputError for other values.
    """
    if stored.dtype == np.bool_:
        stored = stored.astype(np.uint8)
    if not np.issubdtype(stored.dtype, np.integer):
        raise BadInputError(f"values of type {stored.dtype}: a mask has whole numbers")
    known = {0: "background"} | dict(enumerate(classes, start=1))
    if len(classes) == 1:
        known[BINARY_LABEL] = classes[0]
    if rules.ignore_value != "none":
        known[rules.ignore_value] = "ignored"
    if unknown := sorted(set(np.unique(stored).tolist()) - known.keys()):
        raise BadInputError(unknown_values(unknown, known))
    label_HW = (stored != 0 if len(classes) == 1 else stored).astype(np.uint8)
    if rules.ignore_value != "none":
        label_HW[stored == rules.ignore_value] = IGNORE_LABEL
    return label_HW


def unknown_values(unknown: Sequence[int], known: Mapping[int, str]) -> str:
    """Say why a mask with such values cannot be used, and how one of them can be ignored."""
    listed = ", ".join(map(str, unknown[:MOST_LISTED]))
    more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
    meant = ", ".join(f"{value} {name}" for value, name in known.items())
    value, pixels = (unknown[0], "them") if len(unknown) == 1 else ("V", "those of one value V")
    return (
        f"values {listed}{more} mean no class; in the order of classes=: {meant}; ignore_value="
        f"{value} leaves {pixels} out of loss and metrics"
    )


def middles_of(is_class_HW: npt.NDArray[np.bool_]) -> PointsN2:
    """Return the pixel in the middle of each connected component."""
    _, _, _, middles = cv2.connectedComponentsWithStats(is_class_HW.astype(np.uint8))
    return np.floor(middles[1:] + 0.5)  # the first is the background
