"""Figures of predictions and of learning curves, as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from data_prep.images.image_files import Image
from data_prep.images.outlines import GREEN, Bools

# With GREEN of Okabe & Ito's palette: told apart with any kind of colour vision
HIT, MISS, FALSE_ALARM = GREEN, (230, 159, 0), (204, 33, 167)


def save_panels(
    path: Path, title: str, image_HWC: Image, truth_HW: Bools, predicted_HW: Bools
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
    path: Path, title: str, image_HWC: Image, truth_HW: Bools, predicted_HW: Bools
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


def outcome_picture(image_HWC: Image, truth_HW: Bools, predicted_HW: Bools) -> Image:
    """Lay hits, misses and false alarms over the image at half strength, HWC uint8."""
    picture = image_HWC.astype(np.float32)
    for region, colour in (
        (truth_HW & predicted_HW, HIT),
        (truth_HW & ~predicted_HW, MISS),
        (~truth_HW & predicted_HW, FALSE_ALARM),
    ):
        picture[region] = 0.5 * picture[region] + 0.5 * np.array(colour, np.float32)
    return picture.round().astype(np.uint8)


def save_learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Validation loss, Dice, IoU and accuracy against the epoch."""
    epochs = [line["epoch"] for line in metrics]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, [line["val/loss"] for line in metrics], marker=".")
    left.set(xlabel="epoch", ylabel="binary cross-entropy (nats)", title="validation loss")
    for name in ("dice", "iou", "accuracy"):
        points = [(line["epoch"], line[f"val/{name}"]) for line in metrics]
        if known := [point for point in points if point[1] is not None]:  # else nothing annotated
            right.plot(*zip(*known, strict=True), marker=".", label=name)
    right.set(xlabel="epoch", ylim=(0, 1), title="validation, all pixels")
    right.legend()
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write and close a figure; no date or version in the file, so that it is repeatable."""
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)
