"""The folder of an evaluation's results: held while they are made, and published at the end."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ownership
from common.ownership import Item
from train.evaluation.config import EvaluateConfig
from train.evaluation.figures import figure_names, save_learning_curves
from train.evaluation.measurement import Measured, overlays_to_show
from train.evaluation.model_evaluation import Chosen
from train.evaluation.report import REPORT, report_page
from train.fields.whole_fields import WholeField
from train.ranks.distributed import Ranks
from train.ranks.lock import output_locked
from train.runs.history import read_metrics
from train.runs.run_folder import Run

KIND = "evaluation"  # private folder of the record
CURVES, SUMMARY = "learning_curves.png", "summary.json"


@contextmanager
def results_in(
    out: Path, chosen: Sequence[Chosen], config: EvaluateConfig, ranks: Ranks
) -> Iterator["EvaluationFolder"]:
    """Lock the folder of the results until they are written. Collective.

    Raises UserError where another process writes into it, or files of others would be replaced.
    """
    item = Item(out, KIND, KIND)
    with output_locked(out, KIND, "writing results into it", ranks) as check_ours:
        ranks.first_does(lambda: check_results(item, [of_run.fields for of_run in chosen], config))
        with item:
            yield EvaluationFolder(item, config, ranks, check_ours)


def check_results(
    item: Item, fields: Sequence[Sequence[WholeField]], config: EvaluateConfig
) -> None:
    """Refuse a folder where files of others would be replaced. Raises UserError."""
    ownership.clear_temporaries(item.out, item.kind)
    drawn = [whole.name for mine in fields for whole in mine[: config.figures]]
    figures = [name for field in drawn for name in figure_names(field)]
    item.check([SUMMARY, REPORT, CURVES, *figures])


@dataclass(frozen=True)
class EvaluationFolder:
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
            trained = [member for run in runs for member in run.members]
            if len(trained) == 1 and (metrics := read_metrics(trained[0].path)):
                save_learning_curves(item.make(CURVES), metrics)
            page = report_page(summary, overlays_to_show(measured, self.config.figures), runs)
            item.write(REPORT, page.encode())
            item.write(SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
            self.check_ours()
            item.publish()

        self.ranks.first_does(write)
