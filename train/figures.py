"""Pictures of predictions, and the learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Array = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Okabe & Ito's palette: told apart with any kind of colour vision
HIT, MISS, FALSE_ALARM = (0, 158, 115), (230, 159, 0), (204, 33, 167)


def outcome_picture(image_HWC: Array, truth_HW: Bools, predicted_HW: Bools) -> Array:
    """The image with hits, misses and false alarms laid over it, HWC uint8."""
    picture = image_HWC.astype(np.float32)
    for region, colour in (
        (truth_HW & predicted_HW, HIT),
        (truth_HW & ~predicted_HW, MISS),
        (~truth_HW & predicted_HW, FALSE_ALARM),
    ):
        picture[region] = 0.5 * picture[region] + 0.5 * np.array(colour, np.float32)
    return picture.round().astype(np.uint8)


def outline_picture(image_HWC: Array, mask_HW: Bools) -> Array:
    """The image with the outlines of a mask drawn on it, 3 px wide, HWC uint8."""
    mask = mask_HW.astype(np.uint8)
    around = np.ones((3, 3), np.uint8)
    edge = mask - cv2.erode(mask, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    picture = image_HWC.copy()
    picture.reshape(-1, 3)[np.flatnonzero(cv2.dilate(edge, around).view(bool))] = HIT
    return picture


def panel_strip(image_HWC: Array, truth_HW: Bools, predicted_HW: Bools, height_px: int) -> Array:
    """Input, truth and prediction side by side, HWC uint8, for TensorBoard."""
    grey = [
        np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1) for mask in (truth_HW, predicted_HW)
    ]
    width_px = round(image_HWC.shape[1] * height_px / image_HWC.shape[0])
    panels = [
        cv2.resize(panel, (width_px, height_px), interpolation=cv2.INTER_AREA)
        for panel in (image_HWC, *grey)
    ]
    return np.hstack(panels)


def save_panels(
    path: Path, title: str, image_HWC: Array, truth_HW: Bools, predicted_HW: Bools
) -> None:
    """A figure of three panels: input, truth, prediction."""
    ratio = image_HWC.shape[0] / image_HWC.shape[1]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.9 * ratio + 0.7), layout="constrained")
    panels = {"input": image_HWC, "truth": truth_HW, "prediction": predicted_HW}
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel, cmap="gray", vmin=0, interpolation="antialiased")
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    save_figure(figure, path)


def save_outcome(
    path: Path, title: str, image_HWC: Array, truth_HW: Bools, predicted_HW: Bools
) -> None:
    """A figure of hits, misses and false alarms over the image, with a legend."""
    ratio = image_HWC.shape[0] / image_HWC.shape[1]
    figure, axis = plt.subplots(figsize=(9, 9 * ratio + 0.9), layout="constrained")
    axis.imshow(outcome_picture(image_HWC, truth_HW, predicted_HW))
    for name, colour in (("hit", HIT), ("miss", MISS), ("false alarm", FALSE_ALARM)):
        axis.plot([], [], "s", color=np.array(colour) / 255, label=name)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    axis.set_title(title)
    axis.axis("off")
    save_figure(figure, path)


def save_learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Validation loss, Dice, IoU and accuracy against the epoch."""
    epochs = [line["epoch"] for line in metrics]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, [line["val/loss"] for line in metrics], marker=".")
    left.set(xlabel="epoch", ylabel="binary cross-entropy (nats)", title="validation loss")
    for name in ("dice", "iou", "accuracy"):
        right.plot(epochs, [line[f"val/{name}"] for line in metrics], marker=".", label=name)
    right.set(xlabel="epoch", ylim=(0, 1), title="validation, all pixels")
    right.legend()
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write and close a figure; no date or version in the file, so that it is repeatable."""
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
