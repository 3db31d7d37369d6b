"""Evaluate a run, or the runs of several folds, each and all together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command_line import UsageError
from train.evaluation.chosen_fields import choose_fields, subject
from train.evaluation.config import EvaluateConfig
from train.evaluation.fields import WholeField
from train.evaluation.measurement import Chosen, disc_radii, evaluate_run, figures_of, pool
from train.evaluation.results import EvaluationFolder, results_in
from train.evaluation.summary_text import report
from train.metrics.scores import EMPTY_RULE
from train.ranks.distributed import Ranks, start_ranks
from train.runs.newest import named_or_newest
from train.runs.run_folder import Run, read_run
from train.runs.same_data import labelling_differences


def evaluate_and_report(config: EvaluateConfig) -> int:
    """Evaluate as configured, and print the figures that matter. Returns the exit code."""
    with start_ranks(config.device) as ranks:
        out, summary = (evaluate_folds if config.runs else evaluate)(config, ranks)
    if ranks.is_first:
        report(out, summary)
    return 0


def evaluate(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate a run. Returns the folder of the results and their summary. Collective."""
    run = ranks.first_does(lambda: read_run(named_or_newest(config.run)))
    chosen = ranks.first_does(lambda: choose_fields(config, run))
    out = Path(config.out) if config.out else run.evaluation / subject(config)
    with results_in(out, [chosen], config, ranks) as results:
        evaluation = evaluate_run(config, run, chosen, results.item, ranks)
        results.publish(evaluation.summary, evaluation.measured, [run])
    return out, evaluation.summary


def evaluate_folds(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate several runs, each on its fields at its thresholds, and all fields together.

    Returns the folder of the results and their summary. Raises UsageError where two runs test the
    same case. Collective.
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
    results: EvaluationFolder,
    ranks: Ranks,
) -> dict[str, Any]:
    """Evaluate each run, pool them, and publish the summary. Returns it. Collective."""
    evaluations = [
        evaluate_run(config, run, mine, results.item, ranks)
        for run, mine in zip(runs, chosen, strict=True)
    ]
    measured = pool([evaluation.measured for evaluation in evaluations])
    folds = [evaluation.summary for evaluation in evaluations]
    summary = {
        "runs": [run.path.name for run in runs],
        "data": folds[0]["data"],
        **figures_of(measured, runs[0], disc_radii(chosen[0].truth)),
        "folds": folds,
        "empty_rule": EMPTY_RULE,
        "warnings": [f"{fold['run']}: {warning}" for fold in folds for warning in fold["warnings"]],
    }
    results.publish(summary, measured, runs)
    return summary


def check_folds(runs: Sequence[Run], fields: Sequence[Sequence[WholeField]]) -> None:
    """Refuse runs that test the same case, or whose data are labelled in different ways. Raises
    UsageError."""
    tested: dict[str, Run] = {}
    for run, mine in zip(runs, fields, strict=True):
        if lines := "; ".join(labelling_differences(runs[0].data, run.data)):
            raise UsageError(
                f"runs: {runs[0].path} and {run.path} are labelled in other ways ({lines});"
                " pool runs of data prepared with the same settings"
            )
        for case in sorted({whole.case for whole in mine}):
            if case in tested:
                raise UsageError(
                    f"runs: {case} is tested by {tested[case].path} and by {run.path}; pool"
                    " runs that test other cases each (split.folds of data_prep)"
                )
            tested[case] = run
