"""Figures of predictions and curves of training and detection, as PNG files and as SVG."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.ownership import Item
from data_prep.config import IGNORE_LABEL
from data_prep.images import class_colours
from data_prep.images.arrays import Image, Mask
from data_prep.images.class_colours import (
    GREEN,
    IGNORED,
    SKY,
    YELLOW,
    Colour,
    as_line,
    colour_of,
    coloured,
)
from train.fields.measured_fields import FieldResult, Prediction
from train.metrics.scores import score, score_text

# Okabe & Ito's: told apart with any kind of colour vision, and from the pink and purple of H&E
HIT, MISS, FALSE_ALARM, WRONG_CLASS = GREEN, YELLOW, SKY, class_colours.VERMILION
LEGEND_COLUMNS, LEGEND_ROW_INCH = 5, 0.25

# Title, upper end of the axis (None: as it comes), and name in the lines -> label
PANELS: tuple[tuple[str, float | None, dict[str, str]], ...] = (
    ("training loss", None, {"train/loss": "as minimised"}),
    ("validation loss", None, {"val/loss": "cross-entropy (nats)"}),
    ("validation scores", 1, {"val/dice": "Dice", "val/iou": "IoU", "val/accuracy": "accuracy"}),
)
MOST_MARKED = 40
"""Points of a curve that get a marker each; where there are more only the line is drawn."""
STYLE = {
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.4,
}
BLUE, VERMILION, BLUISH_GREEN, PURPLE, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#7a4fb5",
    "#707070",
)
DASHES = ("-", "--", ":")
SVG = {
    "svg.hashsalt": "eosin",  # or ids are random
    "svg.fonttype": "none",  # text as text: as outlines it is four times as large
}

Points = Sequence[tuple[float, float]]


def figure_names(field: str) -> tuple[str, str]:
    """Name the files of a field's pictures: panels, and outcome."""
    return f"{field}_panels.png", f"{field}_outcome.png"


def draw(
    prediction: Prediction,
    result: FieldResult,
    thresholds: Sequence[float],
    names: Sequence[str],
    item: Item,
) -> None:
    """Save a field's pictures: three panels; and hits, misses, false alarms and wrong classes."""
    image_HWC, title = prediction.image_HWC, f"{result.name}   Dice {dice_text(result)}"
    panels, outcome = map(item.make, figure_names(result.name))
    annotated_HW, predicted_HW = (
        prediction.annotated_classes,
        prediction.predicted_classes(thresholds),
    )
    save_panels(panels, title, image_HWC, annotated_HW, predicted_HW, names)
    save_outcome(outcome, title, image_HWC, annotated_HW, predicted_HW, len(names))


def dice_text(result: FieldResult) -> str:
    """Write a field's Dice; of several classes, say that it is of all together."""
    of_all = " of all classes" if len(result.counts) > 1 else ""
    return score_text(score(result.counts)["dice"], 3) + of_all


def save_panels(
    path: Path,
    title: str,
    image_HWC: Image,
    truth_HW: Mask,
    predicted_HW: Mask,
    names: Sequence[str],
) -> None:
    """Save a figure of three panels: input, truth, prediction, with a legend of several classes.

    `truth_HW` and `predicted_HW` are 0, or 1 for the first of the classes and so on; the truth may
    be IGNORE_LABEL.
    """
    ratio = image_HWC.shape[0] / image_HWC.shape[1]
    num_rows = -(-len(names) // LEGEND_COLUMNS) if len(names) > 1 else 0
    height_inch = 4.9 * ratio + 0.7 + LEGEND_ROW_INCH * num_rows
    figure = Figure(figsize=(15, height_inch), layout="constrained")
    panels = {
        "input": image_HWC,
        "truth": coloured(truth_HW, len(names)),
        "prediction": coloured(predicted_HW, len(names)),
    }
    for axes, (name, panel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(panel, interpolation="antialiased")
        axes.set_title(name)
        axes.axis("off")
    if len(names) > 1:
        entries = [(name, colour_of(number)) for number, name in enumerate(names)]
        add_legend(figure, entries, loc="outside lower center", ncols=LEGEND_COLUMNS)
    figure.suptitle(title, parse_math=False)
    save_png(figure, path)


def save_outcome(
    path: Path,
    title: str,
    image_HWC: Image,
    truth_HW: Mask,
    predicted_HW: Mask,
    num_classes: int,
) -> None:
    """Save a figure of hits, misses, false alarms and wrong classes over the image, with a legend.

    `truth_HW` and `predicted_HW` are those of the panels.
    """
    ratio = image_HWC.shape[0] / image_HWC.shape[1]
    figure = Figure(figsize=(9, 9 * ratio + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(outcome_picture(image_HWC, truth_HW, predicted_HW))
    entries = [("hit", HIT), ("miss", MISS), ("false alarm", FALSE_ALARM)]
    if num_classes > 1:
        entries.append(("wrong class", WRONG_CLASS))
    if (truth_HW == IGNORE_LABEL).any():
        entries.append(("ignored", IGNORED))
    add_legend(axes, entries, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(entries))
    axes.set_title(title, parse_math=False)
    axes.axis("off")
    save_png(figure, path)


def add_legend(where: Figure | Axes, entries: Sequence[tuple[str, Colour]], **more: Any) -> None:
    """Add a legend of names and their colours. Names are texts, whatever their characters."""
    squares = [Patch(fc=np.array(colour) / 255, ec=GREY) for _, colour in entries]
    # written afterwards: as labels, those that begin with _ would be left out
    made = where.legend(squares, ["-"] * len(squares), frameon=False, **more)
    for text, (name, _) in zip(made.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(as_line(name))


def outcome_picture(image_HWC: Image, truth_HW: Mask, predicted_HW: Mask) -> Image:
    """Lay hits, misses, false alarms and wrong classes over the image at half strength, HWC uint8.

    `truth_HW` and `predicted_HW` are 0, or 1 for the first class and so on; where the truth is
    IGNORE_LABEL, the image is grey.
    """
    is_ignored_HW = truth_HW == IGNORE_LABEL
    is_annotated_HW, is_predicted_HW = (
        (class_HW > 0) & ~is_ignored_HW for class_HW in (truth_HW, predicted_HW)
    )
    is_both_HW = is_annotated_HW & is_predicted_HW
    is_same_HW = truth_HW == predicted_HW
    picture = image_HWC.astype(np.float32)
    for region, colour in (
        (is_both_HW & is_same_HW, HIT),
        (is_both_HW & ~is_same_HW, WRONG_CLASS),
        (is_annotated_HW & ~is_predicted_HW, MISS),
        (~is_annotated_HW & is_predicted_HW, FALSE_ALARM),
        (is_ignored_HW, IGNORED),
    ):
        picture[region] = 0.5 * picture[region] + 0.5 * np.array(colour, np.float32)
    return picture.round().astype(np.uint8)


def save_learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Save the curves of the validation, of which `metrics` are the lines of metrics.jsonl."""
    save_png(learning_curves(metrics), path)


@mpl.rc_context(STYLE)
def learning_curves(
    lines: Sequence[Mapping[str, Any]],
    restart_steps: Sequence[int] = (),
    evaluated_step: int | None = None,
) -> Figure:
    """Plot losses and scores by the step: a panel for each of PANELS that the lines hold.

    `lines` are those of metrics.jsonl and training.jsonl. Vertical lines mark the restarts and the
    step of the evaluated checkpoint.
    """
    panels = [(title, top, curves_of(lines, labels)) for title, top, labels in PANELS]
    panels = [panel for panel in panels if panel[2]]
    last = max((line["step"] for line in lines), default=0)
    marks = [(step, "restart", GREY, "--") for step in restart_steps]
    if evaluated_step is not None:
        marks.append((evaluated_step, "evaluated checkpoint", PURPLE, "-"))
    figure = curves_figure(4.2 * (len(panels) or 1))
    for number, (title, top, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number, title=title, xlabel="step")
        for (label, points), colour, dash in zip(
            curves.items(), (BLUE, VERMILION, BLUISH_GREEN), DASHES, strict=False
        ):
            marker = "." if len(points) <= MOST_MARKED else ""
            axes.plot(*zip(*points, strict=True), dash, marker=marker, color=colour, label=label)
        for step, meaning, colour, dash in marks:
            if step <= last:
                axes.axvline(step, color=colour, linestyle=dash, linewidth=1.2, label=meaning)
        highest = max(value for points in curves.values() for _, value in points)
        axes.set(xlim=(0, last), ylim=(0, top or 1.05 * highest or 1))
        once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(once.values(), once.keys(), frameon=False, fontsize="small")
    return figure


def curves_of(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> dict[str, Points]:
    """Collect (step, value) of each name by its label, without names that have no value."""
    curves = {
        label: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for name, label in labels.items()
    }
    return {label: points for label, points in curves.items() if points}


def curves_figure(width_inch: float) -> Figure:
    """Make an empty figure for curves, with room for the labels at its edges."""
    figure = Figure(figsize=(width_inch, 3.6))
    # half the time of layout="constrained"
    figure.subplots_adjust(
        left=0.65 / width_inch, right=1 - 0.3 / width_inch, bottom=0.14, top=0.91, wspace=0.16
    )
    return figure


@mpl.rc_context(STYLE)
def precision_recall(detection: Mapping[str, Any]) -> Figure:
    """Plot precision against recall of nuclei, with a dot at the chosen threshold."""
    curve = detection["curve"]
    pairs = zip(curve["recall"], curve["precision"], strict=True)
    # above thresholds that find nothing right, precision says nothing
    points = [(recall, precision) for recall, precision in pairs if recall > 0]
    value = detection.get("threshold")  # several runs, and several classes, have one each
    chosen = f"threshold {value:g}" if isinstance(value, float) else "as chosen"
    figure = curves_figure(4.6)
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("precision and recall of nuclei")
    axes.plot(*zip(*points, strict=True), color=BLUE)
    axes.plot(detection["recall"], detection["precision"], "o", color=VERMILION, label=chosen)
    axes.legend(frameon=False, fontsize="small")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure; the same figure gives the same bytes, without a date or a version."""
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


@mpl.rc_context(SVG)
def svg_uri(figure: Figure) -> str:
    """Return a figure as the address of an SVG that is held in the address itself.

    The same figure gives the same address.
    """
    file = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
