"""Measure a trained model on whole fields, and draw what it does.

    python -m train.evaluate run=DIR [split=test]        a split of its prepared data set
    python -m train.evaluate run=DIR raw=DIR [cases=[10]]  fields of any raw folder
    python -m train.evaluate runs=[DIR,DIR] out=DIR      several folds, each and pooled

Writes report.html (a page that needs no other file; not for several folds), summary.json and
figures into RUN/evaluation/<split or folder>. Under torchrun the fields are shared out over the
ranks; the figures come out the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import command_line
from command_line import UsageError, track
from data_prep.formats import READERS
from data_prep.images import write_atomically
from data_prep.manifest import read_dataset
from data_prep.split import SPLITS
from train import checkpoint
from train.baselines import BASELINES, Baseline
from train.distributed import Ranks, start_ranks
from train.duplicates import (
    Fingerprint,
    agreement,
    compare_with_training,
    duplicate_warnings,
    fingerprint,
    split_warnings,
)
from train.fields import (
    Criteria,
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
from train.metrics import DEFAULT_THRESHOLD, EMPTY_RULE, METRICS, Counts, Interval, score
from train.monitor import read_metrics
from train.overlays import Overlay, make_overlay, worst_and_best
from train.precision import choose_precision
from train.preemption import StopRequest
from train.report import REPORT, write_report
from train.run_folder import (
    Run,
    check_threshold,
    choose_threshold,
    load_model,
    read_run,
    stored_threshold,
)
from train.sensitivity import counts_by_radius, dice_by_radius, radii_around
from train.summary import summarise, summarise_nuclei, summarise_pixels

NUM_OVERLAYS = 4  # of the worst fields, and as many of the best


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything `python -m train.evaluate` can be told."""

    run: str = ""
    """Folder of the run, or a model.safetensors that train.export wrote."""
    runs: list[str] = field(default_factory=list)
    """Folders of several runs instead, each tested on other cases (the folds of data_prep): every
    fold's figures, and those of all fields together. Needs out=; draws no figures."""
    split: str = "test"
    """Split of the run's prepared data set: train, val or test; only original fields count."""
    raw: str = ""
    """Folder of raw fields (images/ and groundTruth/) to evaluate instead of a split; annotated in
    the format of the training data (annotations= of data_prep)."""
    cases: list[str] = field(default_factory=list)
    """Only fields of these cases, as in [10]; empty for all."""
    data: str = ""
    """Folder of the prepared data set, where it is no longer where the run found it."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which a pixel counts as predicted, 0 to 1; auto: the best on the validation
    split, which the checkpoint knows, or 0.5 where there was none."""
    match_radius_px: float = 0.0
    """How far from an annotated point a nucleus may be found, in px; 0 for the radius of the data
    set's discs."""
    out: str = ""
    """Folder of the results; RUN/evaluation/<split or name of raw> where empty, and
    MODEL_evaluation/... for an exported model."""
    figures: int = 16
    """Number of fields that figures are drawn of; 0 for none, in the report either."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split}: must be one of {', '.join(SPLITS)}")
        check_threshold(self.threshold)
        if not self.match_radius_px >= 0:
            raise ValueError(f"match_radius_px={self.match_radius_px}: at least 0")
        if bool(self.run) == bool(self.runs):
            raise ValueError("needs run=..., or runs=[...]; --help lists every key")
        if self.runs and not self.out:
            raise ValueError("runs=[...] needs out=..., the folder of the pooled results")


def main(argv: list[str]) -> int:
    """Evaluate, and print the figures that matter."""
    if command_line.wants_help(argv):
        print(command_line.help_text(EvaluateConfig, __doc__ or ""))
        return 0
    config = command_line.load(EvaluateConfig, argv)
    with start_ranks(config.device) as ranks:
        out, summary = (evaluate_folds if config.runs else evaluate)(config, ranks)
    if ranks.is_first:
        report(out, summary)
    return 0


def evaluate(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate a run; returns the folder of the results and their summary. Collective."""
    run = read_run(Path(config.run))
    fields = choose_fields(config, run)
    out = Path(config.out) if config.out else run.evaluation / subject(config)
    evaluation = evaluate_run(config, run, fields, out, ranks)
    summary = evaluation.summary
    if ranks.is_first:
        write_summary(out, summary)
        write_report(out, summary, evaluation.overlays, run)
        if metrics := read_metrics(run.folder):
            save_learning_curves(out / "learning_curves.png", metrics)
    return out, summary


def evaluate_folds(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate several runs, each on its fields, and all fields together. Collective.

    Each at its own thresholds. Raises UsageError where two runs test one case.
    """
    runs = [read_run(Path(folder)) for folder in config.runs]
    fields = [choose_fields(config, run) for run in runs]
    check_folds(runs, fields)
    out = Path(config.out)
    without_figures = replace(config, figures=0)
    evaluations = [
        evaluate_run(without_figures, run, mine, out, ranks)
        for run, mine in zip(runs, fields, strict=True)
    ]
    folds = [evaluation.summary for evaluation in evaluations]
    results = [result for evaluation in evaluations for result in evaluation.results]
    summary = {
        "runs": [run.folder.name for run in runs],
        "data": folds[0]["data"],
        **summarise(results, class_names(runs[0]), runs[0].config.seed),
        "folds": folds,
        "empty_rule": EMPTY_RULE,
        "warnings": [f"{fold['run']}: {warning}" for fold in folds for warning in fold["warnings"]],
    }
    if ranks.is_first:
        write_summary(out, summary)
    return out, summary


def check_folds(runs: Sequence[Run], fields: Sequence[Sequence[WholeField]]) -> None:
    """Refuse runs that cannot be pooled. Raises UsageError."""
    tested: dict[str, Run] = {}
    for run, mine in zip(runs, fields, strict=True):
        if run.data.labelling != runs[0].data.labelling:
            raise UsageError(
                f"runs: {runs[0].folder} and {run.folder} have other classes or discs; pool runs"
                " of data prepared with the same settings"
            )
        for case in sorted({whole.case for whole in mine}):
            if case in tested:
                raise UsageError(
                    f"runs: {case} is tested by {tested[case].folder} and by {run.folder}; pool"
                    " runs that test other cases each (split.folds of data_prep)"
                )
            tested[case] = run


@dataclass(frozen=True)
class Evaluation:
    """What came out for a run."""

    summary: dict[str, Any]
    results: list[FieldResult]
    overlays: list[Overlay]
    """Of the worst and the best fields, worst first."""


@dataclass(frozen=True)
class FieldCheck:
    """What a field says about the truth and the data, rather than about the network."""

    fingerprint: Fingerprint
    counts_by_radius: Counts
    """(R, C, 4) int64, of pixels, with discs of each radius for truth."""


def evaluate_run(
    config: EvaluateConfig, run: Run, fields: Sequence[WholeField], out: Path, ranks: Ranks
) -> Evaluation:
    """Evaluate a run on some fields, with figures drawn into `out`. Collective."""
    model, path, state = load_model(run, config.checkpoint, ranks)
    threshold, chosen_on = choose_threshold(config.threshold, state)
    nuclei_threshold, nuclei_chosen_on = stored_threshold(state, "val/nuclei_threshold")
    radius_px = run.data.labelling.radius_px
    match_radius_px = config.match_radius_px or radius_px
    criteria = Criteria(threshold, nuclei_threshold, radius_px, match_radius_px)
    out.mkdir(parents=True, exist_ok=True)

    precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
    predictions = predict_fields(
        model, fields, run.label_values, run.config.tile, precision, ranks, StopRequest()
    )
    mine: list[FieldResult] = []
    baselines: dict[str, list[FieldResult]] = {name: [] for name in BASELINES}
    checks: list[FieldCheck] = []
    overlays: list[Overlay] = []
    num_overlays = min(NUM_OVERLAYS, config.figures)
    total = len(ranks.share(fields))
    for prediction in track(predictions, total=total, label="evaluate", unit="field"):
        mine.append(measure(prediction, criteria))
        for name, baseline in BASELINES.items():
            baselines[name].append(measure_baseline(prediction, baseline, criteria))
        checks.append(check_field(prediction, criteria))
        overlay = overlay_of(prediction, mine[-1], threshold)
        overlays = worst_and_best([*overlays, overlay], num_overlays)
        if prediction.index < config.figures:
            draw(prediction, mine[-1], threshold, out)
    results = gather_results(mine, ranks)
    known = {name: gather_results(baselines[name], ranks) for name in BASELINES}
    overlays = [overlay for part in ranks.gather(overlays) for overlay in part]
    data = Path(config.data or run.config.data)
    checked = gather_checks(checks, fields, run, data, ranks)
    seed = run.config.seed
    figures = summarise(results, class_names(run), seed)
    of_nuclei = {
        "radius_px": match_radius_px,
        "threshold": nuclei_threshold,
        "threshold_chosen_on": nuclei_chosen_on,
    }
    summary = {
        "run": run.folder.name,
        "checkpoint": path.name,
        "step": state["step"],
        "epoch": state["epochs"],
        "data": {"raw": Path(config.raw).name} if config.raw else {"split": config.split},
        "threshold": {"value": threshold, "chosen_on": chosen_on},
        **figures,
        "detection": of_nuclei | figures["detection"],
        "baselines": {
            name: {
                **summarise_pixels(of_baseline, seed),
                "detection": summarise_nuclei(of_baseline, seed),
            }
            for name, of_baseline in known.items()
        },
        **checked,
        "model_sha256": checkpoint.digest({"model": model.state_dict()}),
        "empty_rule": EMPTY_RULE,
        "warnings": [
            *warnings_about(fields, run),
            *duplicate_warnings(checked["near_duplicates"]),
        ],
    }
    return Evaluation(summary, results, worst_and_best(overlays, num_overlays))


def check_field(prediction: Prediction, criteria: Criteria) -> FieldCheck:
    """The fingerprint of a field, and its counts with discs of other radii for truth."""
    field = prediction.field
    return FieldCheck(
        fingerprint(prediction.index, field.name, field.case, prediction.image_HWC),
        counts_by_radius(
            prediction.probability_CHW > criteria.threshold,
            prediction.annotated,
            radii_around(criteria.radius_px),
        ),
    )


def gather_checks(
    checks: list[FieldCheck], fields: Sequence[WholeField], run: Run, data: Path, ranks: Ranks
) -> dict[str, Any]:
    """What the checks of all ranks come to, for summary.json. Collective."""
    gathered = [check for part in ranks.gather(checks) for check in part]
    gathered.sort(key=lambda check: check.fingerprint.index)
    prints = [check.fingerprint for check in gathered]
    counts = [check.counts_by_radius for check in gathered]
    labelling = run.data.labelling
    by_radius = {"sensitivity": dice_by_radius(counts, radii_around(labelling.radius_px))}
    return {
        **({} if READERS[labelling.annotations].has_areas else by_radius),  # areas are no discs
        "agreement": ranks.first_does(lambda: agreement(fields, prints, run.label_values)),
        "near_duplicates": compare_with_training(prints, run, data, ranks),
    }


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())


def class_names(run: Run) -> list[str]:
    """Of each channel of the logits: its class, or its classes where they share a mask value."""
    labels = run.data.labelling.labels
    return [
        "+".join(name for name in labels if labels[name] == value) for value in run.label_values
    ]


def choose_fields(config: EvaluateConfig, run: Run) -> list[WholeField]:
    """The fields to evaluate. Raises UsageError where there are none."""
    if config.raw:
        fields = raw_fields(Path(config.raw), run.data.labelling)
    else:
        if not (data := config.data or run.config.data):
            raise UsageError(f"run={run.folder}: an exported model; give raw= or data=")
        dataset = read_dataset(Path(data))
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


def measure_baseline(prediction: Prediction, baseline: Baseline, criteria: Criteria) -> FieldResult:
    """The same field as a baseline sees it; every class alike."""
    foreground_HW = baseline(prediction.image_HWC)
    probability = np.broadcast_to(foreground_HW, prediction.truth_CHW.shape).astype(np.float32)
    default = replace(criteria, nuclei_threshold=DEFAULT_THRESHOLD)
    return measure(replace(prediction, probability_CHW=probability), default)


def overlay_of(prediction: Prediction, result: FieldResult, threshold: float) -> Overlay:
    """The picture of a field in the report; classes as one."""
    return make_overlay(
        result.index,
        result.name,
        result.case,
        score(result.counts)["dice"],
        prediction.image_HWC,
        np.asarray(prediction.truth_CHW.any(axis=0)),
        np.asarray((prediction.probability_CHW > threshold).any(axis=0)),
    )


def draw(prediction: Prediction, result: FieldResult, threshold: float, out: Path) -> None:
    """The figures of a field: three panels, and hits, misses and false alarms; classes as one."""
    truth_HW = np.asarray(prediction.truth_CHW.any(axis=0))
    predicted_HW = np.asarray((prediction.probability_CHW > threshold).any(axis=0))
    pictures = (prediction.image_HWC, truth_HW, predicted_HW)
    title = f"{result.name}   Dice {score(result.counts)['dice']:.3f}"
    save_panels(out / f"{result.name}_panels.png", title, *pictures)
    save_outcome(out / f"{result.name}_outcome.png", title, *pictures)


def warnings_about(fields: Sequence[WholeField], run: Run) -> list[str]:
    """What makes the figures look better than they are."""
    warnings = split_warnings(run.data.cases)
    if seen := {field.case for field in fields} & set(run.data.cases["train"]):
        listed = ", ".join(sorted(seen))
        warnings.append(f"trained on: {listed}; these figures do not show new patients")
    return warnings


def report(out: Path, summary: dict[str, Any]) -> None:
    """A short table for the user."""
    columns = [(fold["run"], fold) for fold in summary.get("folds", [])]
    columns.append(("all folds" if columns else "model", summary))
    if baselines := summary.get("baselines"):
        columns.append(("Otsu on hematoxylin", baselines["otsu_hematoxylin"]))
    print(f"{summary['num_fields']} fields of {', '.join(summary['cases'])}")
    for fold in summary.get("folds", [summary]):
        print(f"{fold['run']}, {fold['checkpoint']}: {thresholds_text(fold)}")
    print(" " * 20 + "".join(f"  {name:>24}" for name, _ in columns))
    tables = [table(figures) for _, figures in columns]
    for row in tables[0]:
        print(f"{row:20}" + "".join(f"  {cells[row]:>24}" for cells in tables))
    if len(summary["cases"]) == 1:
        print("no intervals: one case")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    if "folds" not in summary:
        print(f"report: {out / REPORT}")
    print(f"summary and figures: {out}")


def thresholds_text(summary: dict[str, Any]) -> str:
    """The thresholds of a run and what they were chosen on."""
    pixels, nuclei = summary["threshold"], summary["detection"]
    words = {"val": "chosen on val", "given": "given", "default": "default, no validation"}
    return (
        f"threshold {pixels['value']:g} ({words[pixels['chosen_on']]}); of nuclei"
        f" {nuclei['threshold']:g} ({words[nuclei['threshold_chosen_on']]}), found within"
        f" {nuclei['radius_px']:g} px"
    )


def table(figures: dict[str, Any]) -> dict[str, str]:
    """Row -> what stands there: a figure and its 95% interval over cases."""
    pixels, nuclei = figures["all_pixels"], figures["detection"]
    mean = figures["mean_over_fields"]["dice"]
    rows = {
        f"pixels {name}": cell(pixels[name], figures["all_pixels_interval"][name])
        for name in METRICS
    }
    rows["a field's mean dice"] = cell(mean["mean"], mean["interval"])
    for name in ("precision", "recall", "f1"):
        rows[f"nuclei {name}"] = cell(nuclei[name], nuclei["interval"][name])
    rows["nuclei AP"] = cell(nuclei["average_precision"], None)
    return rows


def cell(value: float, interval: Interval) -> str:
    """A figure and its interval, where there is one."""
    return f"{value:.4f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


if __name__ == "__main__":
    command_line.run(main)
