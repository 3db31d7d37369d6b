"""Evaluate a run, several as one model, or folds, each and all together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.evaluation.chosen_fields import choose_groups, subject
from train.evaluation.config import EvaluateConfig
from train.evaluation.model_evaluation import Group, evaluate_run
from train.evaluation.out_of_fold import evaluate_groups
from train.evaluation.results import results_in
from train.evaluation.summary_text import report
from train.ranks.distributed import Ranks, start_ranks
from train.runs.ensemble import FoldsRun
from train.runs.run_folder import Run
from train.runs.several import ENSEMBLE
from train.runs.thresholds import OutOfFold, ensemble_item, write_out_of_fold


def evaluate_and_report(config: EvaluateConfig) -> int:
    """Evaluate as configured, and print the figures that matter. Returns the exit code."""
    with start_ranks(config.device) as ranks:
        out, summary = evaluate(config, ranks)
    if ranks.is_first:
        report(out, summary)
    return 0


def evaluate(config: EvaluateConfig, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Evaluate the groups of the chosen runs: one by itself, several each and pooled.

    Returns the folder of the results and their summary. Collective.
    """
    run, groups = ranks.first_does(lambda: choose_groups(config))
    out = Path(config.out) if config.out else run.evaluation / subject(config)
    keeps = is_kept(config, run, groups)
    with results_in(out, [group.chosen for group in groups], config, ranks) as results:
        if keeps:
            ranks.first_does(lambda: ensemble_item(run.path).check([ENSEMBLE], "give runs=[...]"))
        if len(groups) == 1:
            (group,) = groups
            evaluation = evaluate_run(config, group.run, group.chosen, results.item, ranks)
        else:
            evaluation = evaluate_groups(config, groups, results.item, ranks)
        summary = evaluation.summary
        results.publish(summary, evaluation.measured, [group.run for group in groups])
        if keeps:
            ranks.first_does(lambda: write_out_of_fold(run.path, out_of_fold(run, summary)))
    return out, summary


def is_kept(config: EvaluateConfig, run: Run, groups: Sequence[Group]) -> bool:
    """Whether thresholds are chosen for a folder: on all cases, each tested by its fold, of the
    checkpoints and with the match radius that are used where none is given."""
    of_all = config.split == "test" and not config.cases and not config.raw
    as_used = config.checkpoint == "best" and not config.match_radius_px
    return isinstance(run, FoldsRun) and of_all and as_used and len(groups) > 1


def out_of_fold(run: Run, summary: dict[str, Any]) -> OutOfFold:
    """Return the content of ensemble.json."""
    found = {
        member["run"]: {key: member[key] for key in ("checkpoint", "model_sha256")}
        for fold in summary["folds"]
        for member in fold.get("members", [fold])
    }
    return OutOfFold(
        {member.name: found[member.name] for member in run.members},
        **summary["out_of_fold"],
        tta=summary["tta"],
    )
