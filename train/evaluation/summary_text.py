"""Print what a user reads of an evaluation: a short table."""

from pathlib import Path
from typing import Any

from common.command_line import counted
from train.evaluation.report import REPORT
from train.evaluation.summary import thresholds_in
from train.metrics.scores import EMPTY, METRICS, ConfidenceInterval, Score, score_text

COLUMN = 9
"""Width of a column in the tables of classes, in characters."""
PIXEL_SCORES = {"dice": "dice", "iou": "iou", "precision": "precision", "recall": "recall"}
NUCLEI_SCORES = {"f1": "f1", "precision": "precision", "recall": "recall"}
NUCLEI_SCORES |= {"average_precision": "AP"}


def report(out: Path, summary: dict[str, Any]) -> None:
    """Print figures, warnings and where the report is."""
    folds = summary.get("folds", [summary])
    columns = [("all folds" if len(folds) > 1 else "model", summary)]
    columns.append(("Otsu on hematoxylin", summary["baselines"]["otsu_hematoxylin"]))
    print(f"{counted(summary['num_fields'], 'field')} of {', '.join(summary['cases'])}")
    for fold in folds:
        print(f"{fold['run']}, {checkpoint_text(fold)}: {criteria_text(fold)}")
    print(" " * 20 + "".join(f"  {name:>24}" for name, _ in columns))
    tables = [table(figures) for _, figures in columns]
    for row in tables[0]:
        print(f"{row:20}" + "".join(f"  {cells[row]:>24}" for cells in tables))
    measured = summary["mean_over_fields"]["dice"]["num_fields"]
    if measured < summary["num_fields"]:
        print(f"{counted(summary['num_fields'] - measured, 'field')} with {EMPTY}: not in the mean")
    for line in (*parts_tables(summary), *class_tables(summary)):
        print(line)
    if len(summary["cases"]) == 1:
        print("no intervals: one case")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"report: {out / REPORT}")
    print(f"summary and figures: {out}")


def parts_tables(summary: dict[str, Any]) -> list[str]:
    """Return tables of Dice and F1: a line for each fold or case, and one for all with intervals;
    none where there is one fold or case."""
    folds, cases = summary.get("folds", []), summary["per_case"]
    tables = {
        "fold": [(fold["run"], *cells_of(fold)) for fold in folds],
        "case": [
            (row["case"], cell(row["dice"], None), cell(row["nuclei_f1"], None)) for row in cases
        ],
    }
    lines = []
    for title, rows in tables.items():
        if len(rows) > 1:
            width = max(20, *(len(name) for name, _, _ in rows))
            rows = [
                (title, "pixels dice", "nuclei f1"),
                *rows,
                ("all together", *cells_of(summary)),
            ]
            lines += [f"{name:{width}}  {dice:>24}  {f1:>24}" for name, dice, f1 in rows]
    return lines


def cells_of(figures: dict[str, Any]) -> tuple[str, str]:
    """Return Dice of pixels and F1 of nuclei, each with its interval."""
    nuclei = figures["detection"]
    dice = cell(figures["all_pixels"]["dice"], figures["all_pixels_interval"]["dice"])
    return dice, cell(nuclei["f1"], nuclei["interval"]["f1"])


def checkpoint_text(summary: dict[str, Any]) -> str:
    """Name the checkpoint of a run; of an exported model, which has no other, the step; of an
    ensemble its members."""
    if "members" in summary:
        each = [f"{member['run']} ({checkpoint_text(member)})" for member in summary["members"]]
        return f"mean of {', '.join(each)}"
    is_exported = summary["checkpoint"] == summary["run"]
    return f"step {summary['step']}" if is_exported else str(summary["checkpoint"])


def criteria_text(summary: dict[str, Any]) -> str:
    """Say the thresholds of a run, and when a nucleus counts as found."""
    thresholds = thresholds_in(summary).in_words([*summary["per_class"]])
    radius_px = summary["detection"]["radius_px"]
    return f"{thresholds}; a nucleus counts as found within {radius_px:g} px"


def table(figures: dict[str, Any]) -> dict[str, str]:
    """Return the rows of a column: name -> a figure with its 95% interval over cases."""
    pixels, nuclei = figures["all_pixels"], figures["detection"]
    mean = figures["mean_over_fields"]["dice"]
    rows = {
        f"pixels {name}": cell(pixels[name], figures["all_pixels_interval"][name])
        for name in METRICS
    }
    rows["mean dice of fields"] = cell(mean["mean"], mean["interval"])
    for name in ("precision", "recall", "f1"):
        rows[f"nuclei {name}"] = cell(nuclei[name], nuclei["interval"][name])
    rows["nuclei AP"] = cell(nuclei["average_precision"], None)
    return rows


def class_tables(summary: dict[str, Any]) -> list[str]:
    """Return tables of pixels and of nuclei with a line per class; none where there is one class.

    A class that is annotated nowhere has no scores.
    """
    pixels, nuclei = summary["per_class"], summary["detection"]["per_class"]
    if len(pixels) == 1:
        return []
    width = max(20, *map(len, pixels))
    lines = ["figures above are of all classes together, their counts added up; of each class:"]
    for title, scores, of_class, counts in (
        ("pixels", PIXEL_SCORES, pixels, ()),
        ("nuclei", NUCLEI_SCORES, nuclei, ("annotated", "predicted")),
    ):
        heads = [*scores.values(), *counts]
        lines.append(f"{title:{width}}" + "".join(f"  {head:>{COLUMN}}" for head in heads))
        for name, figures in of_class.items():
            cells = [f"  {score_text(figures[key]):>{COLUMN}}" for key in scores]
            if figures["recall"] is None:
                cells = [f"  {EMPTY:<{len(''.join(cells)) - 2}}"]
            cells += [f"  {figures[key]:>{COLUMN}}" for key in counts]
            lines.append(f"{name:{width}}" + "".join(cells).rstrip())
    return lines


def cell(value: Score, interval: ConfidenceInterval) -> str:
    """Write a figure and its interval, where there is one."""
    return score_text(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
