"""Compare runs: print the table, and write the page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command_line import (
    EXIT_FAILED,
    UsageError,
    escaped,
    make_output_folder,
    printable,
)
from common.lease import Lease
from common.ownership import PRIVATE, Item, clear_temporaries, make_private
from train.comparison.config import CompareConfig
from train.comparison.difference import (
    Difference,
    NotComparableError,
    NotEvaluatedError,
    differences_between,
)
from train.comparison.page import PAGE, compare_page
from train.comparison.study import StudyResults, pruned_trials, read_study, study_file
from train.comparison.table import Table, as_lines, read_table
from train.ranks.lock import LOCK
from train.runs.several import expanded

KIND = "comparison"  # private folder of the record
RESULT = "compare.json"


def compare(config: CompareConfig) -> int:
    """Print the table of runs, and the difference of two; write the page if there is an out=.

    Returns the exit code: 1 if a run cannot be read. Raises NotComparableError, when all is
    printed and written, if two runs are evaluated in ways that cannot be compared.
    """
    paths = expanded(config.runs)
    file = study_file(paths)
    study = read_study(file) if file else None
    pruned = pruned_trials(file, study) if file and study else frozenset[Path]()
    table = read_table(paths, config.subject, pruned)
    if not table.rows:
        raise UsageError("\n  ".join(["runs: nothing to compare", *as_lines(table)]))
    print("\n".join(as_lines(table)))
    differences, refused = differences_of(table, config)
    warnings = warnings_of(table) if differences else []
    for line in [*(each.text for each in differences), *(f"warning: {each}" for each in warnings)]:
        print(printable(line))
    if config.out:
        table.notes.extend(warnings)
        write(Path(config.out), table, differences, refused, study)
    if isinstance(refused, NotEvaluatedError):
        print(escaped(str(refused)))
    elif refused:
        raise refused
    return EXIT_FAILED if table.bad else 0


def differences_of(
    table: Table, config: CompareConfig
) -> tuple[list[Difference], NotComparableError | None]:
    """Return the differences of two rows, or why there are none; nothing of more or fewer rows."""
    if len(table.rows) != 2:
        return [], None
    try:
        return differences_between(table.rows[0], table.rows[1], config), None
    except NotComparableError as error:
        return [], error


def warnings_of(table: Table) -> list[str]:
    """Return the warnings of the evaluations, each with its run."""
    return [
        f"{row.path}: {warning}"
        for row in table.rows
        if row.evaluation
        for warning in row.evaluation.warnings
    ]


def write(
    out: Path,
    table: Table,
    differences: Sequence[Difference],
    refused: NotComparableError | None,
    study: StudyResults | None,
) -> None:
    """Write the page and the figures; they replace those of an earlier comparison, and no other
    file. Raises UserError if a file of others is in the way."""
    make_output_folder(out)
    make_private(out, KIND)
    page = compare_page(table, differences, str(refused or ""), study)
    result = as_json(table, differences, refused, study)
    doing = "writing results into it"
    with Lease(out, "out", name=f"{PRIVATE}/{LOCK}", doing=doing) as lease:
        clear_temporaries(out, KIND)
        with Item(out, KIND, KIND) as item:
            item.check([PAGE, RESULT])
            item.write(PAGE, page.encode())
            item.write(RESULT, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
            lease.check()
            item.publish()
    print(f"page: {out / PAGE}")


def as_json(
    table: Table,
    differences: Sequence[Difference],
    refused: NotComparableError | None,
    study: StudyResults | None,
) -> dict[str, Any]:
    """Return all figures of a comparison as JSON."""
    groups = [
        {"title": group.title, "rows": [row.as_json(table.settings) for row in group.rows]}
        for group in table.groups
    ]
    return {
        "groups": groups,
        "left_out": [*table.bad, *table.notes],
        "differences": [dataclasses.asdict(each) | {"text": each.text} for each in differences],
        "no_difference": str(refused or ""),
        "importances": study.importances if study else {},
    }
