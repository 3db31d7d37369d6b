"""The rows of a table: a run, or the folds of a folder; put into groups that can be ranked."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from common.command_line import UserError, counted, named
from common.schema import json_sha256
from data_prep.raw import natural_key
from train.comparison.evaluations import SUMMARY, Evaluation, doubt_about, read_evaluation
from train.comparison.facts import (
    DICE,
    FINISHED,
    NUCLEI_F1,
    PRUNED,
    STOPPED_EARLY,
    RunFacts,
    read_facts,
)
from train.config import HARMLESS_KEYS
from train.metrics.scores import Score
from train.runs.newest import CONFIG
from train.runs.same_data import as_typed, differences
from train.runs.same_run import flat_settings
from train.runs.several import NAME, members_of, trials_of

ENDED = {FINISHED, STOPPED_EARLY}
LONGEST_VALUE, LONGEST_NUMBER, START = 24, 8, 10  # characters of a setting in the table


@dataclass(frozen=True)
class Row:
    """A run, or the folds of a folder, whose figures are means."""

    path: Path
    runs: list[RunFacts]
    is_folds: bool
    evaluation: Evaluation | None
    """Of its best checkpoint now; None where there is no such evaluation."""
    doubt: str = ""
    """Why its evaluation is not used; '' if it is, and where there is none."""
    is_pruned: bool = False

    @property
    def validated(self) -> list[RunFacts]:
        """Its runs that have a best validation."""
        return [run for run in self.runs if run.best]

    @property
    def dice(self) -> Score:
        """The best validation Dice; of folds, the mean over those that were validated."""
        return mean_of([run.best[DICE] for run in self.runs if run.best])

    @property
    def nuclei_f1(self) -> Score:
        """The F1 of nuclei at the best validation."""
        return mean_of([run.best.get(NUCLEI_F1) for run in self.runs if run.best])

    @property
    def epoch(self) -> int | None:
        """The epoch of a run's best validation."""
        best = self.runs[0].best if not self.is_folds else None
        epoch = best.get("epoch") if best else None
        return None if epoch is None else int(epoch)

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done, and of all."""
        begun = [run.progress for run in self.runs if run.progress]
        return sum(now.step for now in begun), sum(now.total_steps for now in begun)

    @property
    def hours(self) -> float | None:
        """See facts.hours_of; of folds the sum."""
        known = [run.hours for run in self.runs if run.hours is not None]
        return sum(known) if len(known) == len(self.runs) else None

    @property
    def num_restarts(self) -> int:
        """How often its runs went on after a stop."""
        return sum(run.num_restarts for run in self.runs)

    @property
    def state(self) -> str:
        """How far it is, in a word or two."""
        if self.is_pruned:
            return PRUNED
        states = [run.state for run in self.runs]
        if not self.is_folds:
            return states[0]
        num_ended = sum(state in ENDED for state in states)
        num_folds = len(self.runs[0].data.folds) or len(states)
        if num_ended == num_folds:
            return f"{FINISHED}, {counted(num_folds, 'fold')}"
        return f"{num_ended} of {counted(num_folds, 'fold')} {FINISHED}"

    @property
    def val_cases(self) -> list[str]:
        """The cases that its figures were validated on."""
        runs = self.validated or self.runs
        return [case for run in runs for case in run.data.cases["val"]]

    def settings(self) -> dict[str, str]:
        """Return its settings as they are typed, without those that change no result."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for key, value in flat_settings(run.config).items():
                if key not in HARMLESS_KEYS:
                    found.setdefault(key, {})[shown(value)] = None
        return {key: ", ".join(values) for key, values in found.items()}

    def as_json(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return its figures, with the settings of these keys."""
        done, total = self.steps
        settings = self.settings()
        found = self.evaluation
        return {
            "run": str(self.path),
            "settings": {key: settings[key] for key in keys if key in settings},
            "best_val_dice": self.dice,
            "best_epoch": self.epoch,
            "val_nuclei_f1": self.nuclei_f1,
            "validated_on": self.val_cases,
            "evaluation": found and {"dice": found.dice, "nuclei_f1": found.nuclei_f1},
            "steps": done,
            "total_steps": total,
            "hours": self.hours,
            "restarts": self.num_restarts,
            "state": self.state,
        }

    def comparable(self) -> str:
        """Return a text that is the same for rows which were validated on the same fields."""
        runs = self.validated or self.runs
        about = [
            [
                run.data.content_sha256,
                sorted(run.data.cases["val"]),
                {**dataclasses.asdict(run.data.labelling), "empty": ""},
            ]
            for run in runs
        ]
        return json_sha256({"validated": about})


@dataclass(frozen=True)
class Group:
    """Rows that were validated on the same fields, the best first."""

    title: str
    rows: list[Row]


def mean_of(values: Sequence[Any]) -> Score:
    """Return the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def shown(value: Any) -> str:
    """Write a setting for the table: shorten long numbers, and long texts, with a part of the hash
    of the text, so that others look otherwise."""
    text = as_typed(value) or "none"
    if isinstance(value, float) and len(text) > LONGEST_NUMBER:
        text = f"{value:.4g}"
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:START]}... #{json_sha256({'': text})[:8]}"


def read_rows(
    paths: Sequence[Path], subject: str, pruned: frozenset[Path] = frozenset()
) -> tuple[list[Row], list[str], list[str]]:
    """Read runs and folders of folds; a sweep's folder stands for its trials.

    Also return a line for each that cannot be read, and the names of those that have not begun.
    `subject`: the evaluation to show; `pruned`: the folders of pruned trials.
    """
    rows, bad, waiting = [], [], []
    for path in paths:
        for each in trials_of(path) or [path]:
            is_to_come = each.is_dir() and (NAME.fullmatch(each.name) or members_of(each))
            if is_to_come and not has_begun(each):
                waiting.append(str(each))
                continue
            try:
                rows.append(read_row(each, subject, each in pruned))
            except UserError as error:
                bad.append(f"left out: {'; '.join(str(error).splitlines())}")
    return rows, bad, waiting


def has_begun(path: Path) -> bool:
    """Return whether a run, or one of the folds of a folder, has begun."""
    return any((run / CONFIG).is_file() for run in [path, *members_of(path)])


def read_row(path: Path, subject: str, is_pruned: bool) -> Row:
    """Read a run or a folder of folds. Raises UserError if one of its runs cannot be read."""
    members = [run for run in members_of(path) if has_begun(run)]
    runs = [read_facts(run) for run in members or [path]]
    evaluation, doubt = read_newest(path / "evaluation" / subject / SUMMARY, members or [path])
    return Row(path, runs, bool(members), evaluation, doubt, is_pruned)


def read_newest(path: Path, runs: Sequence[Path]) -> tuple[Evaluation | None, str]:
    """Read the evaluation of some runs, if it is of their best checkpoints; or say why not."""
    try:
        evaluation = read_evaluation(path)
    except UserError as error:
        return None, str(error)
    if evaluation and (doubt := doubt_about(evaluation, runs)):
        return None, f"{path}: {doubt}"
    return evaluation, ""


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Put rows that were validated on the same fields into a group each, the largest group first.

    Figures of other fields say nothing about which of two runs is better.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.comparable(), []).append(row)
    largest_first = sorted(found.values(), key=len, reverse=True)
    return [
        Group(title_of(members, largest_first[0]), sorted(members, key=best_first))
        for members in largest_first
    ]


def best_first(row: Row) -> tuple[bool, float]:
    """Return the key that sorts by validation Dice, the best first, and rows without it last."""
    return row.dice is None, -(row.dice or 0.0)


def title_of(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """Say what a group was validated on, and how its data differ from another group's."""
    row, first = rows[0], others[0]
    if not row.val_cases:
        return "without a validation split"
    title = f"validated on {named(sorted(row.val_cases, key=natural_key))}"
    if row.is_folds:
        title += f", in {counted(len(row.validated or row.runs), 'fold')}"
    if sorted(row.val_cases) == sorted(first.val_cases) and rows is not others:
        lines = differences(first.runs[0].data, row.runs[0].data)
        title += f", on other data ({'; '.join(lines)})"
    return title


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """Return the settings that are not the same in all rows."""
    each = [row.settings() for row in rows]
    return [key for key in each[0] if any(of_row.get(key) != each[0][key] for of_row in each)]
