"""report.html: an evaluation on one page that needs no other file and no network.

The page holds what summary.json holds, pictures of the worst and the best fields, the curves of
the training, what happened to the run, and its settings.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from common.command_line import counted
from common.files import read_lines
from train.evaluation.charts import Chart, Line, Mark, Point
from train.evaluation.overlays import Overlay
from train.metrics.scores import EMPTY, METRICS, worst_first
from train.runs.monitor import TRAINING_LOSS, read_curve, read_metrics, read_restarts
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
        detection_chart=detection_chart(summary.get("detection")),
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
    restarts, metrics = read_restarts(run.folder), read_metrics(run.folder)
    losses = read_curve(run.folder, TRAINING_LOSS)
    return {
        "summary": summary,
        "curves": training_charts(metrics, losses, restarts, summary["step"]),
        "story": story(restarts, read_lines(run.folder / EVENTS)),
        "num_restarts": len(restarts),
        "data": run.data,
        "settings": flat_settings(run.config),
    }


def predictors(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The model and the baselines, by the name that they go under: all_pixels, mean_over_fields."""
    sources = {MODEL: summary, **summary["baselines"]}
    return {PREDICTORS.get(key, key): source for key, source in sources.items()}


def training_charts(
    metrics: Sequence[Mapping[str, Any]],
    training_losses: Sequence[Point],
    restarts: Sequence[Mapping[str, Any]],
    step: int,
) -> list[Chart]:
    """Loss on training, and where there was validation its loss, Dice, IoU and accuracy, by the
    step."""
    steps = [line["step"] for line in metrics]
    last = max([*steps, *(at for at, _ in training_losses)], default=0)
    x_range = (0.0, float(last))
    marks = [("restart", "restart", float(restart["step"])) for restart in restarts]
    marks.append(("checkpoint", "evaluated checkpoint", float(step)))
    marks = [mark for mark in marks if mark[2] <= last]
    charts = []
    if training_losses:
        charts.append(
            loss_chart("Training loss", "as it was minimised", training_losses, x_range, marks)
        )
    if metrics:
        losses = points_of(metrics, "val/loss")
        scores = [
            Line(name, points)
            for key, name in (("dice", "Dice"), ("iou", "IoU"), ("accuracy", "accuracy"))
            if (points := points_of(metrics, f"val/{key}"))
        ]
        unit = (0.0, 1.0)
        charts += [
            loss_chart("Validation loss", "cross-entropy (nats)", losses, x_range, marks),
            Chart("Validation scores", "step", "over all pixels", scores, x_range, unit, marks),
        ]
    return charts


def points_of(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """(step, value) of a validation metric, where something was annotated."""
    return [(line["step"], line[name]) for line in metrics if line[name] is not None]


def loss_chart(
    title: str, unit: str, losses: Sequence[Point], x_range: Point, marks: Sequence[Mark]
) -> Chart:
    """A loss against the step, from 0."""
    top = max((loss for _, loss in losses), default=0.0) * 1.05 or 1.0
    return Chart(title, "step", unit, [Line(title, losses)], x_range, (0.0, top), marks)


def detection_chart(detection: Mapping[str, Any] | None) -> Chart | None:
    """Precision against recall of found nuclei, with the chosen threshold marked; None where no
    nucleus is annotated."""
    if detection is None or detection["recall"] is None:
        return None
    curve = detection["curve"]
    pairs = zip(curve["recall"], curve["precision"], strict=True)
    # of thresholds above which nothing is right, precision says nothing
    points = [(recall, precision) for recall, precision in pairs if recall > 0]
    # several runs have a threshold each
    chosen = f"threshold {detection['threshold']:.3g}" if "threshold" in detection else "as chosen"
    dot = (detection["recall"], detection["precision"])
    unit = (0.0, 1.0)
    title = "Precision and recall of found nuclei"
    line = Line("thresholds", points)
    return Chart(title, "recall", "precision", [line], unit, unit, dots=[(chosen, dot)])


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
