"""The runs of one submission: one, the folds of a cross-validation, or the trials of a sweep."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import command_line
from common.command_line import UsageError
from data_prep.config import PrepConfig
from data_prep.dataset.description import DATASET, DatasetError, Description, read_description
from train.runs.newest import CONFIG, read_config
from train.runs.same_data import settings_as_typed
from train.runs.several import fold_name, runs_of

CASES = "cases"
FOLDS_KEY = "split.folds"


@dataclass(frozen=True)
class Member:
    """A run, by its name in the folder that is submitted; '' for that folder itself."""

    name: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What it is trained with beside the settings of all."""

    def __str__(self) -> str:
        settings = ", ".join(in_words(self.settings))
        return f"{self.name} ({settings})" if settings else self.name

    @contextmanager
    def naming(self) -> Iterator[None]:
        """While this context lasts, put the run's name before a UsageError."""
        try:
            yield
        except UsageError as error:
            if not self.name:
                raise
            raise UsageError(f"{self}: {error}") from None


ALONE = Member()


def in_words(settings: Mapping[str, str]) -> list[str]:
    """Return settings as they are typed."""
    return [f"{key}={value}" for key, value in settings.items()]


def has_finished(run: Path, epochs: int) -> bool:
    """Return whether nothing is left to train of a run. Raises UserError for a damaged file."""
    from train.runs.history import read_progress

    if not (run / CONFIG).is_file() or read_config(run).epochs != epochs:
        return False
    now = read_progress(run)
    return now is not None and now.is_finished


def begun_in(folder: Path) -> Path | None:
    """Return the first run in a folder of several that has begun; None where none has."""
    return next((run for run in runs_of(folder) if (run / CONFIG).is_file()), None)


def check_folds(folds: str, settings: Mapping[str, str]) -> None:
    """Raise UsageError for a wrong --folds, and for settings that contradict it."""
    if folds != CASES and not (folds.isascii() and folds.isdecimal() and 2 <= int(folds) <= 1000):
        raise UsageError(
            f"--folds {folds}: give the number of folds, from 2, or cases to make each case a fold"
        )
    for key in ("fold", "train.fold"):
        if key in settings:
            raise UsageError(
                f"{key}={settings[key]}: --folds trains every fold; leave one of the two out"
            )
    for key in (FOLDS_KEY, f"prepare.{FOLDS_KEY}"):
        if settings.get(key, folds) != folds:
            raise UsageError(f"{key}={settings[key]}: contradicts --folds {folds}; leave it out")


def prepared(data: Path) -> Description | None:
    """Return the description of a prepared data set; None where there is none."""
    try:
        return read_description(data / DATASET) if (data / DATASET).is_file() else None
    except DatasetError:
        return None  # it is refused, or prepared again, with its reason


def has_folds(data: Description, folds: str) -> bool:
    """Return whether a data set's cases are dealt as --folds asks."""
    if folds == CASES:
        return bool(data.folds) and all(len(cases) == 1 for cases in data.folds)
    return len(data.folds) == int(folds)


def refuse_other_folds(
    folds: str, data: Path, raw: str, before: Description, more: Sequence[str]
) -> None:
    """Raise UsageError where a data set is there whose cases are dealt otherwise, with the commands
    that deal them so. `raw`: its raw fields, or words; `more`: the command line for another set."""
    if has_folds(before, folds):
        return
    has = f"has {len(before.folds)} folds" if before.folds else "has no folds"
    split = {"val": before.settings.get("split", {}).get("val", 0)}
    given = settings_as_typed({**before.settings, "split": {**split, "folds": as_folds(folds)}})
    out = shlex.quote(str(data))
    deal = f"python -m data_prep {shlex.quote(f'raw={raw}')} out={out}{given}"
    other = shlex.join(["python", "launch/submit.py", *more])
    raise UsageError(
        f"--folds {folds}: {data} {has}. Either deal its cases to folds, which keeps what is"
        f" prepared (but runs that were trained on it need it as it is):\n  {deal}\nor prepare"
        f" another one:\n  {other}"
    )


def as_folds(folds: str) -> int | str:
    """Return split.folds for --folds."""
    return folds if folds == CASES else int(folds)


def fold_members(number: int) -> list[Member]:
    """Return the runs of a cross-validation."""
    return [Member(fold_name(fold), {"fold": str(fold)}) for fold in range(number)]


def count_folds(folds: str, data: Path, preparation: Sequence[str]) -> int:
    """Return how many folds there are, or will be. `preparation`: the arguments of data_prep, none
    for a data set that is there. Raises UserError."""
    if folds != CASES:
        return int(folds)
    if not preparation:
        return len(read_description(data / DATASET).folds)
    from data_prep.plan import find_fields, with_checked_classes

    config = with_checked_classes(command_line.load(PrepConfig, preparation))
    return len({each.case for each in find_fields(config)[0]})
