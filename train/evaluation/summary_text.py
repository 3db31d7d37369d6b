"""Print what a user reads of an evaluation: a short table."""

from pathlib import Path
from typing import Any

from common.command_line import counted
from train.evaluation.report import REPORT
from train.metrics.scores import EMPTY, METRICS, ConfidenceInterval, Score, score_text
from train.runs.thresholds import thresholds_text


def report(out: Path, summary: dict[str, Any]) -> None:
    """Print figures, warnings and where the report is."""
    columns = [(fold["run"], fold) for fold in summary.get("folds", [])]
    columns.append(("all folds" if columns else "model", summary))
    columns.append(("Otsu on hematoxylin", summary["baselines"]["otsu_hematoxylin"]))
    print(f"{counted(summary['num_fields'], 'field')} of {', '.join(summary['cases'])}")
    for fold in summary.get("folds", [summary]):
        print(f"{fold['run']}, {checkpoint_text(fold)}: {criteria_text(fold)}")
    print(" " * 20 + "".join(f"  {name:>24}" for name, _ in columns))
    tables = [table(figures) for _, figures in columns]
    for row in tables[0]:
        print(f"{row:20}" + "".join(f"  {cells[row]:>24}" for cells in tables))
    measured = summary["mean_over_fields"]["dice"]["num_fields"]
    if measured < summary["num_fields"]:
        print(f"{counted(summary['num_fields'] - measured, 'field')} with {EMPTY}: not in the mean")
    for line in class_table(summary):
        print(line)
    if len(summary["cases"]) == 1:
        print("no intervals: one case")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"report: {out / REPORT}")
    print(f"summary and figures: {out}")


def checkpoint_text(summary: dict[str, Any]) -> str:
    """Name the checkpoint of a run; of an exported model, which has no other, the step."""
    is_exported = summary["checkpoint"] == summary["run"]
    return f"step {summary['step']}" if is_exported else str(summary["checkpoint"])


def criteria_text(summary: dict[str, Any]) -> str:
    """Say the thresholds of a run, and when a nucleus counts as found."""
    pixels, nuclei = summary["threshold"], summary["detection"]
    thresholds = thresholds_text(
        pixels["value"], pixels["chosen_on"], nuclei["threshold"], nuclei["threshold_chosen_on"]
    )
    return f"{thresholds}; a nucleus counts as found within {nuclei['radius_px']:g} px"


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


def class_table(summary: dict[str, Any]) -> list[str]:
    """Return one line per class with the model's figures; none where there is one class."""
    pixels, nuclei = summary["per_class"], summary["detection"]["per_class"]
    if len(pixels) == 1:
        return []
    width = max(20, *map(len, pixels))
    names = ("dice", "precision", "recall")
    heads = [*(f"pixels {name}" for name in names), "nuclei f1", "annotated", "found"]
    lines = [" " * width + "".join(f"  {head:>17}" for head in heads)]
    for name, scores in pixels.items():
        cells = [score_text(scores[key]) for key in names] + [score_text(nuclei[name]["f1"])]
        cells += [str(nuclei[name][key]) for key in ("annotated", "found")]
        lines.append(f"{name:{width}}" + "".join(f"  {text:>17}" for text in cells))
    return lines


def cell(value: Score, interval: ConfidenceInterval) -> str:
    """Write a figure and its interval, where there is one."""
    return score_text(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
