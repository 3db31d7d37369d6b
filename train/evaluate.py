"""Measure a trained model on whole fields, and draw what it does.

    python -m train.evaluate run=DIR [split=test]        a split of its prepared data set
    python -m train.evaluate run=DIR raw=DIR [cases=[10]]  fields of any folder in BreCaHAD's layout

Writes summary.json and figures into RUN/evaluation/<split or folder>. Under torchrun the fields
are shared out over the ranks; the figures come out the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import MISSING

import command_line
from command_line import UsageError, track
from data_prep.images import write_atomically
from data_prep.manifest import read_dataset
from data_prep.split import SPLITS
from train.baselines import otsu_on_hematoxylin
from train.distributed import Ranks, start_ranks
from train.fields import (
    FieldResult,
    Prediction,
    WholeField,
    gather_results,
    measure,
    predict_fields,
    prepared_fields,
    raw_fields,
)
from train.figures import save_learning_curves, save_outcome, save_panels
from train.metrics import EMPTY_RULE, METRICS, bootstrap_over_cases, score
from train.monitor import read_metrics
from train.precision import choose_precision
from train.preemption import StopRequest
from train.run_folder import Run, load_model, read_run

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything `python -m train.evaluate` can be told."""

    run: str = MISSING
    """Folder of the run."""
    split: str = "test"
    """Split of the run's prepared data set: train, val or test; only original fields count."""
    raw: str = ""
    """Folder of raw fields (images/ and groundTruth/) to evaluate instead of a split."""
    cases: list[str] = field(default_factory=list)
    """Only fields of these cases, as in [10]; empty for all."""
    data: str = ""
    """Folder of the prepared data set, where it is no longer where the run found it."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: float = 0.5
    """Probability above which a pixel counts as predicted, 0 to 1."""
    out: str = ""
    """Folder of the results; RUN/evaluation/<split or name of raw> where empty."""
    figures: int = 16
    """Number of fields that figures are drawn of; 0 for none."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split}: must be one of {', '.join(SPLITS)}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: above 0, below 1")


def main(argv: list[str]) -> int:
    """Evaluate, and print the figures that matter."""
    if command_line.wants_help(argv):
        print(command_line.help_text(EvaluateConfig, __doc__ or ""))
        return 0
    config = command_line.load(EvaluateConfig, argv)
    with start_ranks(config.device) as ranks:
        out, summary = evaluate(config, ranks)
    if ranks.is_first:
        report(out, summary)
    return 0


def evaluate(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate a run; returns the folder of the results and their summary. Collective."""
    run = read_run(Path(config.run))
    fields = choose_fields(config, run)
    model, path, state = load_model(run, config.checkpoint, ranks)
    out = Path(config.out) if config.out else run.folder / "evaluation" / subject(config)
    out.mkdir(parents=True, exist_ok=True)

    precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
    predictions = predict_fields(
        model, fields, run.label_values, run.config.tile, precision, ranks, StopRequest()
    )
    mine, baseline = [], []
    total = len(ranks.share(fields))
    for prediction in track(predictions, total=total, label="evaluate", unit="field"):
        mine.append(measure(prediction, config.threshold))
        baseline.append(measure(baseline_prediction(prediction), config.threshold))
        if prediction.index < config.figures:
            draw(prediction, mine[-1], config.threshold, out)
    results = gather_results(mine, ranks)
    summary = {
        "run": run.folder.name,
        "checkpoint": path.name,
        "step": state["step"],
        "epoch": state["epochs"],
        "data": {"raw": Path(config.raw).name} if config.raw else {"split": config.split},
        "threshold": config.threshold,
        **summarise(results, run),
        "baselines": {"otsu_hematoxylin": summarise_all(gather_results(baseline, ranks), run)},
        "empty_rule": EMPTY_RULE,
        "warnings": warnings_about(fields, run),
    }
    if ranks.is_first:
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        if metrics := read_metrics(run.folder):
            save_learning_curves(out / "learning_curves.png", metrics)
    return out, summary


def choose_fields(config: EvaluateConfig, run: Run) -> list[WholeField]:
    """The fields to evaluate. Raises UsageError where there are none."""
    if config.raw:
        fields = raw_fields(Path(config.raw), run.data.labelling)
    else:
        dataset = read_dataset(Path(config.data or run.config.data))
        fields = prepared_fields(dataset, config.split)
    if not fields:
        raise UsageError(f"split={config.split}: the data set has no such fields")
    if not config.cases:
        return fields
    there = {field.case for field in fields}
    wanted = {name if name in there else f"Case_{name}" for name in config.cases}
    if unknown := sorted(wanted - there):
        raise UsageError(f"cases: no {', '.join(unknown)}; there are: {', '.join(sorted(there))}")
    return [field for field in fields if field.case in wanted]


def subject(config: EvaluateConfig) -> str:
    """The name of the results' folder."""
    parts = [Path(config.raw).resolve().name if config.raw else config.split, *config.cases]
    return "-".join(parts)


def baseline_prediction(prediction: Prediction) -> Prediction:
    """The same field as Otsu's threshold on hematoxylin sees it; every class alike."""
    dark_HW = otsu_on_hematoxylin(prediction.image_HWC)
    probability = np.broadcast_to(dark_HW, prediction.truth_CHW.shape).astype(np.float32)
    return replace(prediction, probability_CHW=probability)


def draw(prediction: Prediction, result: FieldResult, threshold: float, out: Path) -> None:
    """The figures of a field: three panels, and hits, misses and false alarms; classes as one."""
    truth_HW = np.asarray(prediction.truth_CHW.any(axis=0))
    predicted_HW = np.asarray((prediction.probability_CHW > threshold).any(axis=0))
    pictures = (prediction.image_HWC, truth_HW, predicted_HW)
    title = f"{result.name}   Dice {score(result.counts)['dice']:.3f}"
    save_panels(out / f"{result.name}_panels.png", title, *pictures)
    save_outcome(out / f"{result.name}_outcome.png", title, *pictures)


def summarise(results: Sequence[FieldResult], run: Run) -> dict[str, Any]:
    """Metrics over all pixels, the mean over fields with its interval, each class and field."""
    labels = run.data.labelling.labels
    classes = {
        "+".join(name for name in labels if labels[name] == value): score(
            np.stack([result.counts[channel] for result in results])
        )
        for channel, value in enumerate(run.label_values)
    }
    per_field = [
        {"field": result.name, "case": result.case, **score(result.counts)} for result in results
    ]
    return {
        "num_fields": len(results),
        "cases": sorted({result.case for result in results}),
        **summarise_all(results, run),
        "bootstrap": {"over": "cases", "resamples": NUM_RESAMPLES, "confidence": 0.95},
        "per_class": classes,
        "per_field": per_field,
    }


def summarise_all(results: Sequence[FieldResult], run: Run) -> dict[str, Any]:
    """Metrics over all pixels, and the mean over fields with a bootstrap interval over cases."""
    scores = [score(result.counts) for result in results]
    cases = [result.case for result in results]
    mean = {}
    for name in METRICS:
        values = [entry[name] for entry in scores]
        interval = bootstrap_over_cases(values, cases, NUM_RESAMPLES, run.config.seed)
        mean[name] = {"mean": float(np.mean(values)), "interval": interval}
    pixels = score(np.stack([result.counts for result in results]))
    return {"all_pixels": pixels, "mean_over_fields": mean}


def warnings_about(fields: Sequence[WholeField], run: Run) -> list[str]:
    """What makes the figures look better than they are."""
    seen = {field.case for field in fields} & set(run.data.cases["train"])
    if not seen:
        return []
    return [f"trained on: {', '.join(sorted(seen))}; these figures do not show new patients"]


def report(out: Path, summary: dict[str, Any]) -> None:
    """A few lines for the user."""
    cases = ", ".join(summary["cases"])
    print(f"{summary['num_fields']} fields of {cases}; {summary['checkpoint']}")
    otsu = summary["baselines"]["otsu_hematoxylin"]
    for name, source in (("model", summary), ("Otsu on hematoxylin", otsu)):
        pixels = " ".join(f"{key} {value:.4f}" for key, value in source["all_pixels"].items())
        dice = source["mean_over_fields"]["dice"]
        print(f"{name}: {pixels}; mean Dice of a field {dice['mean']:.4f} {interval_text(dice)}")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"summary and figures: {out}")


def interval_text(metric: dict[str, Any]) -> str:
    """The 95% interval of a mean, where there is one."""
    if metric["interval"] is None:
        return "(no interval: one case)"
    low, high = metric["interval"]
    return f"[{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    command_line.run(main)
