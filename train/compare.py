"""Compare runs: a table, a page with their curves, and the difference between two of them.

    python -m train.compare runs=[runs/a,runs/b] [out=DIR]     runs, or folders of folds
    python -m train.compare runs=SWEEP [out=DIR]               the trials of a sweep
    python -m train.compare runs=SWEEP/trial-*                 a pattern needs no quotes

The table has the settings that differ, the best validation Dice, steps, hours and restarts, the
best run first. Runs that were validated on other fields are not ranked against each other.

Two runs, or two folders of folds, are compared as they were evaluated (train.evaluate): the
difference of Dice and of F1, and its 95% interval by a bootstrap over cases, the same for both.

With out= it writes compare.html (a page that needs no other file) and compare.json. They replace
those of an earlier comparison, and no other file.
"""

from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from train.comparison.config import CompareConfig
from train.runs.several import expanded


def main(argv: list[str]) -> int:
    """Compare, and print the table."""
    if command_line.wants_help(argv):
        print(help_text(CompareConfig, __doc__ or ""))
        return 0
    config = command_line.load(CompareConfig, argv)
    for path in expanded(config.runs):
        if not path.exists():
            raise UsageError(f"runs={path}: no such folder", can_heal=True)
    if config.out and Path(config.out).is_file():
        raise UsageError(f"out={config.out}: is a file; name a folder")
    from train.comparison.compare_runs import compare  # here: numpy takes a while

    return compare(config)


if __name__ == "__main__":
    command_line.run(main)
