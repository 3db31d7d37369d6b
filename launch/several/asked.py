"""What --folds, --sweep and --trials ask for: which runs, and what is recorded of a sweep."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.command_line import UsageError
from common.files import write_atomically
from launch.record.events import COMPARE, STAGES
from launch.record.submitting import StillQueuedError
from launch.several.grid import MOST_TRIALS, Grid, asked_trials, grid_of
from launch.several.members import ALONE, Member, fold_members
from launch.sweeps.plan import SWEEP, Plan, check_plan, record_plan, resolved
from launch.sweeps.space import Space, parse
from train.runs.newest import CONFIG
from train.runs.several import members_of, runs_of, trial_name, trials_of


@dataclass(frozen=True)
class Several:
    """The flags that make several runs of one submission."""

    folds: str = ""
    swept: tuple[str, ...] = ()
    trials: int | None = None
    """Trials of a study; None for a grid, if anything is swept."""
    prune: str = ""
    """median or off, for a study."""

    @property
    def is_alone(self) -> bool:
        """Whether there is one run."""
        return not self.folds and not self.swept

    @property
    def flags(self) -> str:
        """The flags, for a message."""
        given = {"--folds": self.folds, "--sweep": self.swept, "--trials": self.trials}
        return " and ".join(flag for flag, value in given.items() if value)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a chain. A sweep ends with a comparison on the validation split: settings
        that are chosen by test figures make those figures false."""
        return ("prepare", "train", COMPARE) if self.swept else STAGES

    def check(self, has_flag: bool) -> None:
        """Raise UsageError for flags that say nothing without others. `has_flag`: of --sweep."""
        if has_flag and not self.swept:
            parse([])
        if self.trials is not None and not self.swept:
            raise UsageError(
                "--trials: says how many settings to try; say which: --sweep 'lr=log(1e-4,1e-2)'"
            )
        if self.trials is not None and not 1 <= self.trials <= MOST_TRIALS:
            raise UsageError(f"--trials {self.trials}: from 1 to {MOST_TRIALS}")
        if self.prune and self.trials is None:
            raise UsageError("--prune: for the trials of a study; give --trials too")

    def space(self, settings: Sequence[str]) -> Space:
        """Return what is swept. `settings`: those of training that all trials share."""
        space = parse(self.swept, settings)
        if self.trials is None and not space.is_grid:
            raise UsageError(
                "--sweep: a distribution has no end; say how many trials to draw: --trials 40"
            )
        return space

    def sweep(self, folder: Path, settings: Sequence[str]) -> Grid | Plan | None:
        """Return what is to be recorded of a sweep, None for none. Raises UserError where the
        folder holds another one."""
        if not self.swept:
            return None
        space = self.space(settings)
        if self.trials is None:
            return grid_of(folder, space, has_folds=bool(self.folds))
        prune: Literal["median", "off"] = "off" if self.prune == "off" else "median"
        words, shared = space.words(self.swept), resolved(settings, space)
        plan = Plan(words, shared, prune, bool(self.folds))
        check_plan(folder, plan)
        return plan

    def members(
        self, sweep: Grid | Plan | None, num_folds: int, settings: Sequence[str]
    ) -> list[Member]:
        """Return the runs. Those of a study get their settings, and its folds, when they start.
        `settings`: those of training that all trials share."""
        folds = fold_members(num_folds)
        if isinstance(sweep, Plan):
            return [Member(trial_name(number)) for number in range(self.trials or 0)]
        if sweep is None:
            return folds or [ALONE]
        trials = asked_trials(sweep, parse(self.swept, settings))
        if not folds:
            return trials
        return [
            Member(f"{trial.name}/{fold.name}", {**trial.settings, **fold.settings})
            for trial in trials
            for fold in folds
        ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to the parser of submit.py."""
    parser.add_argument(
        "--folds",
        default="",
        metavar="N|cases",
        help="train a run for each fold of the cases (cases: each case is a fold), then evaluate"
        " all on the cases that each has not seen; run= is their folder",
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        metavar="key=values",
        help="train a run for each combination of these values of keys of training, then compare"
        " all by their validation. None is tested: a setting that is chosen by a test figure makes"
        " that figure false. With --folds each combination is trained on each fold. A word with one"
        " value is a setting of all runs. run= is the folder of all",
    )
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="try N settings that Optuna draws: --sweep 'lr=log(1e-4,1e-2)' 'model.width=int(8,32)'"
        " 'loss.dice_weight=uniform(0,2)'; more of them later go on with the same study",
    )
    parser.add_argument(
        "--prune",
        choices=("median", "off"),
        default="",
        help="end a trial early that is worse than the median of those before it (median)",
    )


def check_folder(run: Path, several: Several) -> None:
    """Raise UsageError for one run in a folder of several, and for several in the folder of one."""
    if several.is_alone and runs_of(run):
        raise UsageError(
            f"run={run}: a folder of several runs; give --folds or --sweep again, or name"
            " one of them, or another run="
        )
    if not several.is_alone and (run / CONFIG).is_file():
        raise UsageError(
            f"run={run}: a run; its folder cannot hold several others; name another run="
        )
    if several.is_alone:
        return
    do = ""
    if several.swept and members_of(run):
        do = "a folder of folds; leave --sweep out"
    elif trials := trials_of(run):
        if not several.swept:
            do = "a folder of trials; give --sweep too"
        elif several.folds and any((trial / CONFIG).is_file() for trial in trials):
            do = "a folder of trials without folds; leave --folds out"
        elif not several.folds and any(members_of(trial) for trial in trials):
            do = "a folder of trials that have folds; give --folds too"
    if do:
        raise UsageError(f"run={run}: {do} to go on with it, or name another run=")


@contextmanager
def recorded(folder: Path, sweep: Grid | Plan | None) -> Iterator[None]:
    """Record a sweep in its folder; if this context fails, the record is as it was before."""
    if sweep is None:
        yield
        return
    file = folder / SWEEP
    before = file.read_bytes() if file.is_file() else None
    if isinstance(sweep, Plan):
        record_plan(folder, sweep)
    else:
        content = json.dumps(asdict(sweep), indent=2) + "\n"
        write_atomically(file, content.encode(), is_synced=True)
    try:
        yield
    except StillQueuedError:
        raise
    except BaseException:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, before)
        raise
