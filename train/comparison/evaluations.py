"""Read what train.evaluate found of a run or an ensemble, and whether it is of its best checkpoint
now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.command_line import UserError
from common.schema import checked, read_checked
from train.checkpoints.checkpoint_files import complete_sha256
from train.checkpoints.published import read_pointer
from train.metrics.scores import Counts, Score
from train.runs.newest import CHECKPOINTS

SUMMARY = "summary.json"


class CaseOfField(NamedTuple):
    """Where a field is from, and the truth that it was measured against."""

    case: str
    truth_sha256: str


@dataclass(frozen=True)
class NucleiEntry:
    """The schema of what summary.json says of nuclei, as far as it is read."""

    f1: float | None
    per_field: list[dict[str, Any]]


@dataclass(frozen=True)
class SummaryFile:
    """The schema of summary.json, as far as it is read."""

    all_pixels: dict[str, float | None]
    detection: NucleiEntry
    per_field: list[dict[str, Any]]
    truth_sha256: dict[str, str]
    warnings: list[str]


@dataclass(frozen=True)
class FieldEntry:
    """The schema of a field in summary.json, once for its pixels and once for its nuclei."""

    field: str
    case: str
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class MatchRadius:
    """The schema of what decides when a nucleus counts as found."""

    radius_px: float


@dataclass(frozen=True)
class Part:
    """The schema of a measured model: a whole summary, or a fold of a pooled one."""

    detection: MatchRadius
    tta: bool

    @property
    def way(self) -> str:
        """How it was measured, as keys of train.evaluate."""
        radius = f"match_radius_px={self.detection.radius_px:g}"
        return f"{radius} tta=true" if self.tta else radius


@dataclass(frozen=True)
class Model:
    """The schema of a run in a summary, or of a member of an ensemble."""

    run: str
    checkpoint: str
    checkpoint_sha256: str | None
    """Hash of COMPLETE; None for an exported model."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a run or an ensemble."""

    path: Path
    """Its summary.json."""
    dice: Score
    nuclei_f1: Score
    fields: dict[str, CaseOfField]
    classes: tuple[str, ...]
    pixels: Counts
    """(fields, classes, 4), in the order of `fields`, see train.metrics.scores."""
    nuclei: Counts
    """(fields, classes, 4)."""
    how: str
    """How it was measured, beside the fields, as keys of train.evaluate."""
    models: dict[str, Model]
    """Name of each run that was evaluated -> which of its checkpoints."""
    warnings: list[str]


def read_evaluation(path: Path) -> Evaluation | None:
    """Read a summary.json; None if there is none. Raises UserError where it cannot be used."""
    try:
        content = read_checked(path, dict[str, Any])
        return as_evaluation(path, content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not as this version of train.evaluate writes it: {error}"
        ) from None


def as_evaluation(path: Path, content: dict[str, Any]) -> Evaluation:
    """Take an evaluation out of the content of a summary.json. Raises ValueError."""
    summary = checked(SummaryFile, content)
    of_pixels = [checked(FieldEntry, entry) for entry in summary.per_field]
    of_nuclei = [checked(FieldEntry, entry) for entry in summary.detection.per_field]
    names = [entry.field for entry in of_pixels]
    if len({*names}) < len(names) or [entry.field for entry in of_nuclei] != names or not names:
        raise ValueError("per_field: not each field once, for pixels and for nuclei")
    if {*summary.truth_sha256} != {*names}:
        raise ValueError("truth_sha256: not of the fields in per_field")
    classes = tuple(of_pixels[0].counts)
    ways = {part.way for part in parts_of(content)}
    return Evaluation(
        path,
        summary.all_pixels.get("dice"),
        summary.detection.f1,
        {e.field: CaseOfField(e.case, summary.truth_sha256[e.field]) for e in of_pixels},
        classes,
        counts_of(of_pixels, classes),
        counts_of(of_nuclei, classes),
        " and ".join(sorted(ways)),
        models_of(content),
        summary.warnings,
    )


def counts_of(entries: Sequence[FieldEntry], classes: Sequence[str]) -> Counts:
    """Stack the counts of fields: (fields, classes, 4). Raises ValueError for other classes."""
    for entry in entries:
        is_whole = all(len(four) == 4 and min(four) >= 0 for four in entry.counts.values())
        if tuple(entry.counts) != tuple(classes) or not is_whole:
            raise ValueError(f"{entry.field}: counts: not four numbers of each class")
    return np.array([[*entry.counts.values()] for entry in entries], np.int64)


def parts_of(content: dict[str, Any]) -> list[Part]:
    """Return the measured models of a summary: itself, or the folds that it pools."""
    return [checked(Part, part) for part in list_of(content, "folds")]


def models_of(content: dict[str, Any]) -> dict[str, Model]:
    """Return the models of a summary, by the names of their runs: an ensemble has members."""
    models = [
        checked(Model, member)
        for part in list_of(content, "folds")
        for member in list_of(part, "members")
    ]
    return {model.run: model for model in models}


def list_of(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the list under a key, and where there is none the content as the only entry."""
    return checked(list[dict[str, Any]], content.get(key, [content]))


def doubt_about(evaluation: Evaluation, runs: Sequence[Path]) -> str:
    """Say why an evaluation is not of these runs' best checkpoints; '' if it is."""
    if {*evaluation.models} != {run.name for run in runs}:
        return f"is of {', '.join(sorted(evaluation.models))}"
    for run in runs:
        best = read_pointer(run / CHECKPOINTS, "best")
        measured = evaluation.models[run.name]
        of_run = "" if len(runs) == 1 else f" of {run.name}"
        if best is None or best.name != measured.checkpoint:
            now = best.name if best else "none"
            return f"is of {measured.checkpoint}{of_run}, and the best checkpoint is {now} now"
        if complete_sha256(best) != measured.checkpoint_sha256:
            return f"is of another {best.name}{of_run} than the one that is there now"
    return ""
