"""Measure a trained model on whole fields, and draw what it does.

    python -m train.evaluate [run=DIR split=test]          a split of its prepared data set
    python -m train.evaluate raw=DIR [run=DIR cases=[10]]  fields of any raw folder
    python -m train.evaluate runs=[DIR,DIR] out=DIR        several folds, each and pooled

Without run= or runs= it is the newest run in runs/.

Writes report.html (a page that needs no other file), summary.json and figures into
RUN/evaluation/<split or folder>, in place of those of an earlier evaluation, and of nothing else
that lies there. Under torchrun the fields are shared out over the ranks; the
figures come out the same.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import command_line, ownership
from common.command_line import UsageError, counted
from common.ownership import Item
from data_prep.cases.names import unmatched_text
from data_prep.config import SPLITS
from data_prep.dataset.manifest import read_dataset
from train.config import EvaluateConfig
from train.evaluation.fields import WholeField, prepared_fields, raw_fields
from train.evaluation.figures import save_learning_curves
from train.evaluation.measurement import (
    Chosen,
    Measured,
    evaluate_run,
    figure_names,
    figures_of,
    pool,
    shown,
)
from train.evaluation.report import REPORT, report_page
from train.metrics.scores import EMPTY, EMPTY_RULE, METRICS, Interval, Score, score_text
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import output_locked
from train.runs.monitor import read_metrics
from train.runs.newest import named_or_newest
from train.runs.run_folder import CHOSEN_ON, Run, read_run
from train.runs.same_data import check_same_data, labelling_differences

KIND = "evaluation"  # private folder of the record
CURVES, SUMMARY = "learning_curves.png", "summary.json"


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
    run = ranks.first_does(lambda: read_run(named_or_newest(config.run)))
    chosen = ranks.first_does(lambda: choose_fields(config, run))
    out = Path(config.out) if config.out else run.evaluation / subject(config)
    with results_in(out, [chosen], config, ranks) as results:
        evaluation = evaluate_run(config, run, chosen, results.item, ranks)
        results.publish(evaluation.summary, evaluation.measured, [run])
    return out, evaluation.summary


def evaluate_folds(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate several runs, each on its fields, and all fields together. Collective.

    Each at its own thresholds. Raises UsageError where two runs test one case.
    """
    runs = ranks.first_does(lambda: [read_run(Path(folder)) for folder in config.runs])
    chosen = ranks.first_does(lambda: [choose_fields(config, run) for run in runs])
    check_folds(runs, [of_run.fields for of_run in chosen])
    out = Path(config.out)
    with results_in(out, chosen, config, ranks) as results:
        summary = evaluate_each(config, runs, chosen, results, ranks)
    return out, summary


def evaluate_each(
    config: EvaluateConfig,
    runs: Sequence[Run],
    chosen: Sequence[Chosen],
    results: "Results",
    ranks: Ranks,
) -> dict[str, Any]:
    """Evaluate runs, and publish what was found of each and of all; returns it. Collective."""
    evaluations = [
        evaluate_run(config, run, mine, results.item, ranks)
        for run, mine in zip(runs, chosen, strict=True)
    ]
    measured = pool([evaluation.measured for evaluation in evaluations])
    folds = [evaluation.summary for evaluation in evaluations]
    summary = {
        "runs": [run.folder.name for run in runs],
        "data": folds[0]["data"],
        **figures_of(measured, runs[0]),
        "folds": folds,
        "empty_rule": EMPTY_RULE,
        "warnings": [f"{fold['run']}: {warning}" for fold in folds for warning in fold["warnings"]],
    }
    results.publish(summary, measured, runs)
    return summary


def check_folds(runs: Sequence[Run], fields: Sequence[Sequence[WholeField]]) -> None:
    """Refuse runs that cannot be pooled. Raises UsageError."""
    tested: dict[str, Run] = {}
    for run, mine in zip(runs, fields, strict=True):
        if run.data.labelling != runs[0].data.labelling:
            lines = "; ".join(labelling_differences(runs[0].data, run.data))
            raise UsageError(
                f"runs: {runs[0].folder} and {run.folder} are labelled in other ways ({lines});"
                " pool runs of data prepared with the same settings"
            )
        for case in sorted({whole.case for whole in mine}):
            if case in tested:
                raise UsageError(
                    f"runs: {case} is tested by {tested[case].folder} and by {run.folder}; pool"
                    " runs that test other cases each (split.folds of data_prep)"
                )
            tested[case] = run


@contextmanager
def results_in(
    out: Path, chosen: Sequence[Chosen], config: EvaluateConfig, ranks: Ranks
) -> Iterator["Results"]:
    """Hold the folder of the results until they are there. Collective.

    Raises UserError where another process writes into it, or files are in the way of those to come.
    """
    item = Item(out, KIND, KIND)
    with output_locked(out, KIND, "writing results into it", ranks) as check_ours:
        ranks.first_does(lambda: check_results(item, [of_run.fields for of_run in chosen], config))
        with item:
            yield Results(item, config, ranks, check_ours)


def check_results(
    item: Item, fields: Sequence[Sequence[WholeField]], config: EvaluateConfig
) -> None:
    """Look at the folder of the results. Raises UserError where files are in the way of those to
    come."""
    ownership.clear_temporaries(item.out, item.kind)
    drawn = [whole.name for mine in fields for whole in mine[: config.figures]]
    figures = [name for field in drawn for name in figure_names(field)]
    item.check([SUMMARY, REPORT, CURVES, *figures])


@dataclass(frozen=True)
class Results:
    """The results of an evaluation, to which each rank adds its figures."""

    item: Item
    config: EvaluateConfig
    ranks: Ranks
    check_ours: Callable[[], None]
    """Raises UserError where another process has taken the folder over."""

    def publish(self, summary: dict[str, Any], measured: Measured, runs: Sequence[Run]) -> None:
        """Give the figures of all ranks their names, with the report and, last, summary.json.
        Collective."""
        item, figures = self.item, self.ranks.gather(self.item.made)

        def write() -> None:
            for made in figures:
                item.made |= made
            if len(runs) == 1 and (metrics := read_metrics(runs[0].folder)):
                save_learning_curves(item.make(CURVES), metrics)
            page = report_page(summary, shown(measured, self.config.figures), runs)
            item.write(REPORT, page.encode())
            item.write(SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
            self.check_ours()
            item.publish()

        self.ranks.first_does(write)


def choose_fields(config: EvaluateConfig, run: Run) -> Chosen:
    """The fields to evaluate. Raises UserError where there are none, or where they are labelled in
    another way than those that the run was trained on."""
    notes: list[str] = []
    if config.raw:
        fields = raw_fields(Path(config.raw), run.data.labelling, run.description)
        notes = notes_on_names(fields, run.data.labelling.case_regex)
    else:
        if not (data := config.data or run.config.data):
            raise UsageError(f"run={run.folder}: an exported model; give raw= or data=")
        dataset = read_dataset(Path(data))
        notes = check_same_data(run.data, dataset, run.folder, is_named=bool(config.data))
        fields = prepared_fields(dataset, config.split)
        if not fields:
            others = ", ".join(name for name in SPLITS if dataset.split(name))
            raise UsageError(f"split={config.split}: the data set has no such fields, but {others}")
    if not config.cases:
        return Chosen(fields, notes)
    there = {field.case for field in fields}
    wanted = {name if name in there else f"Case_{name}" for name in config.cases}
    if unknown := sorted(wanted - there):
        raise UsageError(f"cases: no {', '.join(unknown)}; there are: {', '.join(sorted(there))}")
    return Chosen([field for field in fields if field.case in wanted], notes)


def notes_on_names(fields: Sequence[WholeField], case_regex: str) -> list[str]:
    """What is to be said of names that tell no case."""
    told = unmatched_text([field.name for field in fields], case_regex)
    if not told:
        return []
    return [
        f"{told} of the training data: intervals over cases take each such field for a case of its"
        " own, whoever's it is"
    ]


def subject(config: EvaluateConfig) -> str:
    """The name of the results' folder."""
    parts = [Path(config.raw).resolve().name if config.raw else config.split, *config.cases]
    return "-".join(parts)


def report(out: Path, summary: dict[str, Any]) -> None:
    """A short table for the user."""
    columns = [(fold["run"], fold) for fold in summary.get("folds", [])]
    columns.append(("all folds" if columns else "model", summary))
    columns.append(("Otsu on hematoxylin", summary["baselines"]["otsu_hematoxylin"]))
    print(f"{counted(summary['num_fields'], 'field')} of {', '.join(summary['cases'])}")
    for fold in summary.get("folds", [summary]):
        print(f"{fold['run']}, {checkpoint_text(fold)}: {thresholds_text(fold)}")
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
    """The checkpoint of a run; of an exported model, whose file is its checkpoint too, the step."""
    is_exported = summary["checkpoint"] == summary["run"]
    return f"step {summary['step']}" if is_exported else str(summary["checkpoint"])


def thresholds_text(summary: dict[str, Any]) -> str:
    """The thresholds of a run and what they were chosen on."""
    pixels, nuclei = summary["threshold"], summary["detection"]
    return (
        f"threshold {pixels['value']:g} ({CHOSEN_ON[pixels['chosen_on']]}); of nuclei"
        f" {nuclei['threshold']:g} ({CHOSEN_ON[nuclei['threshold_chosen_on']]}), found within"
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


def class_table(summary: dict[str, Any]) -> list[str]:
    """The model's figures of each class, a line each; none where there is one class."""
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


def cell(value: Score, interval: Interval) -> str:
    """A figure and its interval, where there is one."""
    return score_text(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


if __name__ == "__main__":
    command_line.run(main)
