"""Make a contact sheet of a prepared field: its variants with the masks' outlines and points.

Each class has its colour. Above them is the field's name and, of several classes, a legend.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from common.command_line import UsageError, counted
from common.ownership import Item
from data_prep.config import IGNORE_LABEL
from data_prep.dataset.manifest import Dataset, Sample, read_dataset
from data_prep.dataset.samples import read_points, read_sample
from data_prep.images.arrays import Image, Mask, PointsPx
from data_prep.images.class_colours import INK, colour_of, legend, veiled
from data_prep.images.masks import channel_names, channel_values
from data_prep.images.outlines import paint_dots, paint_outlines
from data_prep.raw import composed
from data_prep.tools.config import PreviewConfig

LABEL_PX, GAP_PX = 24, 6
REACH_PX = 1  # of outlines, to either side


def write_contact_sheet(config: PreviewConfig) -> None:
    """Write the sheet, and print the field's name. Raises UserError."""
    path = Path(config.out)
    item = Item(path.parent, "preview", path.name)
    item.check([path.name])
    dataset = read_dataset(Path(config.data))
    samples = samples_of(dataset, config.field)
    sheet = contact_sheet(dataset, samples, config.columns, config.width_px)
    done, content = cv2.imencode(path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        height_px, width_px = sheet.shape[:2]
        raise UsageError(f"a sheet of {width_px} x {height_px} px is too large for a {path.suffix}")
    with item:
        item.write(path.name, content.tobytes())
        item.publish()
    print(f"{counted(len(samples), 'variant')} of {samples[0].field}: {path}")


def samples_of(dataset: Dataset, field: str) -> list[Sample]:
    """Return the variants of a field; of the first one for ''. Raises UsageError if unknown."""
    field = composed(field) or (dataset.split("train") or dataset.samples)[0].field
    samples = [sample for sample in dataset.samples if sample.field == field]
    if not samples:
        known = sorted({sample.field for sample in dataset.samples})
        raise UsageError(f"field={field}: not in the data set; it has {', '.join(known)}")
    return samples


def contact_sheet(dataset: Dataset, samples: list[Sample], columns: int, width_px: int) -> Image:
    """Lay samples out row by row, HWC uint8, each with its outlines under a line that names it.

    The head of the sheet names the field and the classes.
    """
    labels = dataset.description.labelling.labels
    cells = []
    for sample in samples:
        image_HWC, mask_HW = read_sample(dataset.folder, sample)
        points = read_points(dataset.folder, sample, labels)
        cells.append(labelled(sample, outlined(image_HWC, mask_HW, points, labels, width_px)))
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    title = f"{samples[0].field}   {samples[0].case}   {samples[0].split}"
    return np.vstack([legend(rows[0].shape[1], channel_names(labels), title), *rows])


def outlined(
    image_HWC: Image, mask_HW: Mask, points: PointsPx, labels: Mapping[str, int], width_px: int
) -> Image:
    """Shrink an image; paint each class's outlines and points into it, in its colour, and a grey
    veil over what is ignored."""
    height_px = max(1, round(image_HWC.shape[0] * width_px / image_HWC.shape[1]))
    small = cv2.resize(image_HWC, (width_px, height_px), interpolation=cv2.INTER_AREA)
    small_mask = cv2.resize(mask_HW, (width_px, height_px), interpolation=cv2.INTER_NEAREST)
    values = channel_values(labels.values())
    is_ignored_HW = small_mask == IGNORE_LABEL
    small = veiled(small, is_ignored_HW)
    class_HW = np.searchsorted([0, *values], np.where(is_ignored_HW, 0, small_mask))
    paint_outlines(small, class_HW.astype(np.uint8), REACH_PX)
    scale = np.array([width_px, height_px]) / image_HWC.shape[1::-1]
    for name, points_N2 in points.items():
        colour = colour_of(values.index(labels[name]))
        paint_dots(small, (points_N2 + 0.5) * scale - 0.5, 1, colour)
    return small


def labelled(sample: Sample, image_HWC: Image) -> Image:
    """Put a line with the variant's number, transform and parameters above the image."""
    values = " ".join(f"{name} {value:.3g}" for name, value in sample.parameters.items())
    text = f"{sample.variant} {sample.transform} {values}"
    bar = np.full((LABEL_PX, image_HWC.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, LABEL_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    cell = np.vstack([bar, image_HWC])
    return np.pad(cell, ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255)
