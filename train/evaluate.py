"""Measure a trained model on whole fields, and draw what it does.

    python -m train.evaluate [run=DIR split=test]          a split of its prepared data set
    python -m train.evaluate raw=DIR [run=DIR cases=[10]]  fields of any raw folder
    python -m train.evaluate run=CV                        all folds of a folder, each and pooled
    python -m train.evaluate runs=[DIR,DIR] out=DIR        several runs: an ensemble, or folds

Without run= or runs= it is the newest run in runs/.

Folds are measured on the cases that each was not trained on. Thresholds for CV as an ensemble are
chosen on these predictions, and written into CV/ensemble.json, but not with another split=,
checkpoint=, match_radius_px= or only some cases=.

Writes report.html (a page that needs no other file), summary.json and figures into
RUN/evaluation/<split or folder>. They replace those of an earlier evaluation, and no other file.
Under torchrun the ranks share the fields; the figures are the same.
"""

from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from train.evaluation.config import EvaluateConfig
from train.runs.history import check_history
from train.runs.newest import check_runs


def main(argv: list[str]) -> int:
    """Evaluate, and print the figures that matter."""
    if command_line.wants_help(argv):
        print(help_text(EvaluateConfig, __doc__ or ""))
        return 0
    config = command_line.load(EvaluateConfig, argv)
    if config.raw and not Path(config.raw).is_dir():
        raise UsageError(f"raw={config.raw}: no such folder", can_heal=True)
    for run in check_runs(config.run, config.runs, config.checkpoint):
        check_history(run)  # the report needs it last
    if config.out and Path(config.out).is_file():
        raise UsageError(f"out={config.out}: is a file; name a folder")
    from train.evaluation.run_evaluation import evaluate_and_report  # here: it takes seconds

    return evaluate_and_report(config)


if __name__ == "__main__":
    command_line.run(main)
