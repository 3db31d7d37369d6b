"""report.html: an evaluation on one page that needs no other file and no network.

The page holds what summary.json holds, pictures of the worst and the best fields, the curves of
the training, what happened to the run, and its settings.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from common.command_line import counted
from common.files import read_lines
from train.evaluation.figures import learning_curves, precision_recall, svg_uri
from train.evaluation.overlays import Overlay
from train.metrics.scores import EMPTY, METRICS, worst_first
from train.runs.monitor import read_metrics, read_restarts, read_training
from train.runs.run_folder import CHOSEN_ON, Run, flat_settings

REPORT = "report.html"
EVENTS = Path("launch") / "events.jsonl"
MODEL = "model"
PREDICTORS = {
    MODEL: "Model",
    "otsu_hematoxylin": "Otsu on hematoxylin",
    "all_foreground": "All foreground",
}
# Facts of an event that stand in columns of their own
TOLD_APART = {"time_s", "event", "stage", "step", "reason"}


def report_page(
    summary: Mapping[str, Any], overlays: Sequence[Overlay], runs: Sequence[Run]
) -> str:
    """The page, from a summary, pictures (worst first) and the runs' own files."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = summary.get("folds", [summary])
    return environment.get_template("report.html.j2").render(
        title=", ".join(part["run"] for part in parts),
        summary=summary,
        predictors=predictors(summary),
        metrics=METRICS,
        overlays=overlays,
        measured=measured_fields(summary),
        chosen_on=CHOSEN_ON,
        nothing=EMPTY,
        fields=sorted(summary["per_field"], key=lambda row: worst_first(row["dice"])),
        precision_recall=nuclei_curve(summary.get("detection")),
        svg_uri=svg_uri,
        trainings=[about_training(part, run) for part, run in zip(parts, runs, strict=True)],
    )


def measured_fields(summary: Mapping[str, Any]) -> str:
    """Which fields a mean is over, in words."""
    num_fields = summary["mean_over_fields"]["dice"]["num_fields"]
    if num_fields == summary["num_fields"]:
        return "fields"
    return f"{counted(num_fields, 'field')} with something annotated"


def about_training(summary: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """What the page says of a run: its curves, what happened to it, its data and its settings."""
    restarts = read_restarts(run.folder)
    lines = read_training(run.folder) + read_metrics(run.folder)
    restart_steps = [restart["step"] for restart in restarts]
    return {
        "summary": summary,
        "curves": learning_curves(lines, restart_steps, summary["step"]),
        "story": story(restarts, read_lines(run.folder / EVENTS)),
        "num_restarts": len(restarts),
        "data": run.data,
        "settings": flat_settings(run.config),
    }


def predictors(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The model and the baselines, by the name that they go under: all_pixels, mean_over_fields."""
    sources = {MODEL: summary, **summary["baselines"]}
    return {PREDICTORS.get(key, key): source for key, source in sources.items()}


def nuclei_curve(detection: Mapping[str, Any] | None) -> Figure | None:
    """Plot precision and recall of found nuclei; None where no nucleus is annotated."""
    if detection is None or detection["recall"] is None:
        return None
    return precision_recall(detection)


def story(
    restarts: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """What happened to the run, in order of time: its restarts, and what the launcher noted."""
    rows = [
        (restart["time_s"], "training went on", restart["step"], "; ".join(restart["notes"]))
        for restart in restarts
    ]
    for event in events:
        facts = {key: value for key, value in event.items() if key not in TOLD_APART}
        details = "; ".join(filter(None, [event.get("reason", ""), in_words(facts)]))
        what = f"{event['stage']} {event['event']}"
        rows.append((event["time_s"], what, event.get("step", ""), details))
    return [
        {"time": utc(time_s), "what": what, "step": str(step), "details": details}
        for time_s, what, step, details in sorted(rows, key=lambda row: row[0])
    ]


def in_words(facts: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return ", ".join(
        f"{key} ({in_words(value)})" if isinstance(value, dict) else f"{key} {value}"
        for key, value in facts.items()
    )


def utc(time_s: float) -> str:
    """A time as people write it."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
