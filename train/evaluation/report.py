"""Write report.html: an evaluation on one page that needs no other file and no network.

The page holds what summary.json holds, pictures of the worst and the best fields, the curves of
the training, what happened to the run, and its settings.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from common.command_line import counted, named
from data_prep.images.class_colours import Colour, colour_of
from train.evaluation.figures import learning_curves, precision_recall, svg_uri
from train.evaluation.overlays import Overlay
from train.evaluation.summary import thresholds_in
from train.metrics.scores import EMPTY, worst_first
from train.runs.history import (
    Restart,
    read_events,
    read_metrics,
    read_restarts,
    read_training,
)
from train.runs.run_folder import Run
from train.runs.same_run import flat_settings
from train.runs.thresholds import CHOSEN_ON

REPORT = "report.html"
MODEL = "Model"
BASELINE_NAMES = {"otsu_hematoxylin": "Otsu on hematoxylin", "all_foreground": "All foreground"}

ScoreRow = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""Name, score by metric, interval by metric."""

# Facts of an event that have columns of their own
IN_COLUMNS = {"time_s", "event", "stage", "step", "reason", "pid", "process"}


def report_page(
    summary: Mapping[str, Any], overlays: Sequence[Overlay], runs: Sequence[Run]
) -> str:
    """Write the page from a summary, pictures (worst first) and the files of the runs, which are
    those of the summary's folds."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folds: Sequence[dict[str, Any]] = summary.get("folds", [summary])
    return environment.get_template("report.html.j2").render(
        title=named(fold["run"] for fold in folds),
        summary=summary,
        model=MODEL,
        rows=score_rows(summary),
        overlays=overlays,
        colours=[as_hex(colour_of(number)) for number in range(len(summary["per_class"]))],
        measured=measured_fields(summary),
        pixel_threshold=pixel_threshold,
        nuclei_threshold=nuclei_threshold,
        nothing=EMPTY,
        fields=sorted(summary["per_field"], key=lambda row: worst_first(row["dice"])),
        precision_recall=nuclei_curve(summary["detection"]),
        svg_uri=svg_uri,
        trainings=[
            about_training(fold | member, run)
            for fold, group in zip(folds, runs, strict=True)
            for member, run in zip(fold.get("members", [fold]), group.members, strict=True)
        ],
    )


def pixel_threshold(summary: Mapping[str, Any]) -> str:
    """Say the threshold of pixels of a run, and how it was chosen."""
    pixels = thresholds_in(summary).pixels
    return f"{pixels.in_words([*summary['per_class']])}, {CHOSEN_ON[pixels.chosen_on]}"


def nuclei_threshold(summary: Mapping[str, Any]) -> str:
    """Say the threshold of nuclei of a run."""
    return thresholds_in(summary).nuclei.in_words([*summary["per_class"]])


def score_rows(summary: Mapping[str, Any]) -> dict[str, list[ScoreRow]]:
    """Collect the rows of the tables of scores, by what the table is about."""
    sources = {MODEL: summary} | {
        BASELINE_NAMES[key]: source for key, source in summary["baselines"].items()
    }
    means = {name: source["mean_over_fields"] for name, source in sources.items()}
    return {
        "pixels": [
            (name, s["all_pixels"], s["all_pixels_interval"]) for name, s in sources.items()
        ],
        "means": [(name, inner(of, "mean"), inner(of, "interval")) for name, of in means.items()],
        "nuclei": [
            (name, s["detection"], s["detection"]["interval"]) for name, s in sources.items()
        ],
    }


def as_hex(colour: Colour) -> str:
    """Write a colour for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def inner(entries: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Take the value of one key out of each entry."""
    return {name: entry[key] for name, entry in entries.items()}


def measured_fields(summary: Mapping[str, Any]) -> str:
    """Say in words which fields a mean is over."""
    num_fields = summary["mean_over_fields"]["dice"]["num_fields"]
    if num_fields == summary["num_fields"]:
        return "fields"
    return f"{counted(num_fields, 'field')} with something annotated"


def about_training(summary: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Collect what the page says of a run: curves, what happened to it, data and settings."""
    restarts = read_restarts(run.path)
    lines = read_training(run.path) + read_metrics(run.path)
    restart_steps = [restart.step for restart in restarts]
    return {
        "summary": summary,
        "curves": learning_curves(lines, restart_steps, summary["step"]),
        "story": story(restarts, read_events(run.path)),
        "num_restarts": len(restarts),
        "data": run.data,
        "settings": flat_settings(run.config),
    }


def nuclei_curve(detection: Mapping[str, Any]) -> Figure | None:
    """Plot precision and recall of nuclei; None where no nucleus is annotated."""
    return None if detection["recall"] is None else precision_recall(detection)


def story(restarts: Sequence[Restart], events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """List what happened to the run in order of time: restarts, and events of the launcher."""
    rows = [
        (restart.time_s, "training went on", restart.step, "; ".join(restart.notes))
        for restart in restarts
    ]
    for event in events:
        facts = {key: value for key, value in event.items() if key not in IN_COLUMNS}
        details = "; ".join(filter(None, [event.get("reason", ""), in_words(facts)]))
        what = f"{event['stage']} {event['event']}"
        rows.append((event["time_s"], what, event.get("step", ""), details))
    return [
        {"time": utc(time_s), "what": what, "step": str(step), "details": details}
        for time_s, what, step, details in sorted(rows, key=lambda row: row[0])
    ]


def in_words(facts: Mapping[str, Any]) -> str:
    """Write names and values in a line."""
    return ", ".join(
        f"{key} ({in_words(value)})" if isinstance(value, dict) else f"{key} {value}"
        for key, value in facts.items()
    )


def utc(time_s: float) -> str:
    """Write a time of seconds since 1970 as UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
