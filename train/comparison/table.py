"""The table of runs as text, and as rows of words for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from common.command_line import counted, named, printable
from train.comparison.rows import Group, Row, differing_settings, grouped, read_rows
from train.metrics.scores import Score

NOT_KNOWN = "-"
NOTES = (
    "best val: the best validation Dice, its epoch, and the F1 of nuclei then; of folds the means",
    "hours: those that the steps took, by the speeds in training.jsonl; validation, starts and"
    " steps that were lost to a kill and done again are not in it",
)


@dataclass(frozen=True)
class Table:
    """Rows, and what could not be read."""

    rows: list[Row]
    """In the order in which they were named."""
    groups: list[Group]
    """The same rows, by what they were validated on, ranked."""
    settings: list[str]
    """The settings that differ between the rows."""
    subject: str
    """The evaluation that is shown."""
    bad: list[str]
    """A line for each run that cannot be read."""
    notes: list[str]
    """Which runs have not begun, which evaluations are not used, and their warnings."""

    @property
    def is_evaluated(self) -> bool:
        """Whether any row has an evaluation."""
        return any(row.evaluation for row in self.rows)


def read_table(paths: Sequence[Path], subject: str, pruned: frozenset[Path] = frozenset()) -> Table:
    """Read a table, see `read_rows`."""
    rows, bad, waiting = read_rows(paths, subject, pruned)
    notes = [f"not begun: {named(waiting)}"] if waiting else []
    notes += [f"evaluation not used, evaluate again: {row.doubt}" for row in rows if row.doubt]
    settings = differing_settings(rows) if rows else []
    return Table(rows, grouped(rows), settings, subject, bad, notes)


def as_lines(table: Table) -> list[str]:
    """Write a table for a console."""
    if not table.rows:
        return [*table.bad, *table.notes]
    heads, names = headings(table), names_of(table.rows)
    bodies = [[cells(row, table, names) for row in group.rows] for group in table.groups]
    every = [heads, *(line for body in bodies for line in body)]
    widths = [max(len(line[column]) for line in every) for column in range(len(heads))]
    left = {0, len(heads) - 1}

    def written(line: Sequence[str]) -> str:
        placed = [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    lines = []
    if len(table.groups) > 1:
        lines.append(not_ranked(table))
    for group, body in zip(table.groups, bodies, strict=True):
        lines += [f"{counted(len(group.rows), 'row')} {group.title}", written(heads)]
        lines += [*map(written, body), ""]
    return [printable(line) for line in [*lines, *NOTES, *table.notes, *table.bad]]


def not_ranked(table: Table) -> str:
    """Say that rows of other groups are not ranked against each other."""
    return (
        f"not all validated on the same fields: {counted(len(table.groups), 'group')}, each ranked"
        " by itself; figures of one say nothing about those of another"
    )


def headings(table: Table) -> list[str]:
    """Return the heads of the columns."""
    heads = ["run", *table.settings, "best val Dice", "epoch", "val F1"]
    if table.is_evaluated:
        heads += [f"{table.subject} Dice", f"{table.subject} F1"]
    return [*heads, "steps", "hours", "restarts", "state"]


def cells(row: Row, table: Table, names: Mapping[Path, str]) -> list[str]:
    """Write a row."""
    settings = row.settings()
    line = [names[row.path], *(settings.get(key, NOT_KNOWN) for key in table.settings)]
    line += [figure(row.dice), str(row.epoch or NOT_KNOWN), figure(row.nuclei_f1)]
    if table.is_evaluated:
        found = row.evaluation
        both = (found.dice, found.nuclei_f1) if found else (None, None)
        line += map(figure, both)
    done, total = row.steps
    steps = f"{done} of {total}" if total else NOT_KNOWN
    hours = NOT_KNOWN if row.hours is None else f"{row.hours:.3f}"
    return [*line, steps, hours, str(row.num_restarts), row.state]


def figure(value: Score) -> str:
    """Write a score."""
    return NOT_KNOWN if value is None else f"{value:.4f}"


def names_of(rows: Sequence[Row]) -> dict[Path, str]:
    """Name rows by what of their paths is not the same in all."""
    paths = [row.path for row in rows]
    shared = Path(commonpath([path.absolute().parent for path in paths]))
    return {path: str(path.absolute().relative_to(shared)) for path in paths}
