"""Write compare.html: a table of runs on one page that needs no other file and no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from train.comparison.difference import Difference
from train.comparison.facts import DICE, RunFacts
from train.comparison.plots import Plot, Points, Series, curves, scatter
from train.comparison.rows import Row, best_first
from train.comparison.study import StudyResults, Trial
from train.comparison.table import NOTES, Table, cells, headings, names_of, not_ranked

PAGE = "compare.html"
LOSS = "train/loss"
MOST_COLOURED = 8
OTHER = "other"


def compare_page(
    table: Table, differences: Sequence[Difference], refused: str, study: StudyResults | None
) -> str:
    """Write the page. `refused`: why there is no difference of two runs; '' if there is."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names, styles = names_of(table.rows), styles_of(table.rows)
    bodies = [
        (group.title, [(styles[row.path], cells(row, table, names)) for row in group.rows])
        for group in table.groups
    ]
    return environment.get_template("compare.html.j2").render(
        num_rows=len(table.rows),
        headings=headings(table),
        num_settings=len(table.settings),
        groups=bodies,
        not_ranked=not_ranked(table) if len(bodies) > 1 else "",
        lines=[*table.bad, *table.notes],
        notes=NOTES,
        differences=differences,
        refused=refused,
        legend=[(style, names[path]) for path, style in styles.items() if style != OTHER],
        num_others=list(styles.values()).count(OTHER),
        plots=curve_plots(table.rows, names, styles),
        study=study,
        scatters=scatters(study) if study else [],
    )


def styles_of(rows: Sequence[Row]) -> dict[Path, str]:
    """Give the best rows a colour each, and the others a common one."""
    best = sorted(rows, key=best_first)
    return {
        row.path: f"c{number}" if number <= MOST_COLOURED else OTHER
        for number, row in enumerate(best, start=1)
    }


def curve_plots(
    rows: Sequence[Row], names: Mapping[Path, str], styles: Mapping[Path, str]
) -> list[Plot]:
    """Plot the validation Dice and the training loss of all runs, the best on top."""
    of_dice, of_loss = [], []
    for row in sorted(rows, key=best_first):
        for run in row.runs:
            style, name = styles[row.path], names[row.path]
            name = f"{name}/{run.path.name}" if row.is_folds else name
            of_dice.append(Series(dice_points(run), style, name))
            of_loss.append(Series(values_of(run.training, "step", LOSS), style, name))
    plots = []
    if any(series.points for series in of_dice):
        plots.append(curves("Validation Dice", "epoch", of_dice))
    if any(series.points for series in of_loss):
        plots.append(curves("Training loss", "step", of_loss, may_be_log=True))
    return plots


def dice_points(run: RunFacts) -> Points:
    """Return (epoch, validation Dice) of each validation."""
    return values_of(run.metrics, "epoch", DICE)


def values_of(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> Points:
    """Return the two values of the lines that have both."""
    pairs = [(line.get(x), line.get(y)) for line in lines]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def scatters(study: StudyResults) -> list[Plot]:
    """Plot each drawn setting against Dice, the most important first."""
    keys = dict.fromkeys(study.importances)
    keys |= dict.fromkeys(key for trial in study.trials for key in trial.settings)
    found = []
    for key in keys:
        trials = [each for each in study.trials if key in each.settings and each.dice is not None]
        if trials:
            values, series = [each.settings[key] for each in trials], [*map(dot, trials)]
            found.append(scatter(key, values, series, key in study.logarithmic))
    return found


def dot(trial: Trial) -> Series:
    """Return the Dice of a trial as a point."""
    settings = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
    title = f"{trial.run}: Dice {trial.dice:.4f}, {settings}"
    return Series([(0.0, trial.dice or 0.0)], "pruned" if trial.is_pruned else "done", title)
