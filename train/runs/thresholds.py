"""The thresholds of a model: chosen on val or out of fold, given, or the default."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common.command_line import UserError
from common.ownership import Item
from common.schema import read_checked, short
from train.metrics.scores import DEFAULT_THRESHOLD, EMPTY, Score
from train.runs.several import ENSEMBLE

KIND = "ensemble"  # private folder of the record of ensemble.json
PIXEL_THRESHOLD, NUCLEI_THRESHOLD = "val/threshold", "val/nuclei_threshold"  # of a state's metrics
NO_DICE = 5e-5
"""A best Dice below it is written as 0.0000: nothing was found, or next to nothing."""
CHOSEN_ON = {
    "val": "chosen on val",
    "given": "given",
    "default": "default, no validation",
    "empty_val": f"default, {EMPTY} in val",
    "out of fold": "chosen out of fold",
    "out of fold, tta": "chosen out of fold with tta=true",
    "empty_folds": f"default, {EMPTY} in the other folds",
    "members": "median of the members', each chosen on val",
    "not_chosen": "default, not chosen out of fold",
}
"""How a threshold was chosen: the word in summary.json -> the words for people."""


InFile = float | dict[str, float]
"""Thresholds in a file: a number, or where there are several classes one for each, by name."""


@dataclass(frozen=True)
class ClassThresholds:
    """The probability above which something counts: for each class one, in the classes' order."""

    values: tuple[float, ...]
    chosen_on: str
    """A key of CHOSEN_ON."""

    def __post_init__(self) -> None:
        for value in self.values:
            if not 0 < value < 1 or self.chosen_on not in CHOSEN_ON:
                raise ValueError(f"a threshold of {value:g}, {short(self.chosen_on)}, is none")

    @classmethod
    def default(cls, num_classes: int, why: str) -> "ClassThresholds":
        """Return the default; `why`: a key of CHOSEN_ON."""
        return cls((DEFAULT_THRESHOLD,) * num_classes, why)

    @classmethod
    def from_file(cls, found: InFile, chosen_on: str, classes: Sequence[str]) -> "ClassThresholds":
        """Read those of a file; a number is that of every class. Raises ValueError if they are of
        other classes."""
        by_name = found if isinstance(found, dict) else dict.fromkeys(classes, found)
        if by_name.keys() != {*classes}:
            raise ValueError(
                f"thresholds of {short(sorted(by_name))}, but the classes are {short([*classes])}"
            )
        return cls(tuple(by_name[name] for name in classes), chosen_on)

    def in_words(self, classes: Sequence[str]) -> str:
        """Write the values: '0.4', or 'tumor 0.4, lumen 0.2'."""
        if len(classes) == 1:
            return f"{self.values[0]:g}"
        pairs = zip(classes, self.values, strict=True)
        return ", ".join(f"{name} {value:g}" for name, value in pairs)


@dataclass(frozen=True)
class Thresholds:
    """What counts as a predicted pixel, and as a predicted nucleus."""

    pixels: ClassThresholds
    nuclei: ClassThresholds
    """Of the score of nuclei, see train.metrics.detection."""

    def check_number(self, num_classes: int) -> None:
        """Raise ValueError unless there is one of each for each class."""
        for each in (self.pixels, self.nuclei):
            if len(each.values) != num_classes:
                raise ValueError(f"{len(each.values)} thresholds for {num_classes} classes")

    def in_words(self, classes: Sequence[str]) -> str:
        """Say both, and how each was chosen."""
        pixels, nuclei = (each.in_words(classes) for each in (self.pixels, self.nuclei))
        of_pixels, of_nuclei = (CHOSEN_ON[each.chosen_on] for each in (self.pixels, self.nuclei))
        if of_pixels == of_nuclei:
            return f"threshold of pixels {pixels}, of nuclei {nuclei} (both {of_pixels})"
        return f"threshold of pixels {pixels} ({of_pixels}), of nuclei {nuclei} ({of_nuclei})"


@dataclass(frozen=True)
class OutOfFold:
    """The content of ensemble.json: thresholds chosen on what each member predicts of cases that it
    was not trained on."""

    members: dict[str, dict[str, str]]
    """Run -> "checkpoint" and "model_sha256"."""
    threshold: InFile | None
    """Of pixels; None where nothing is annotated."""
    nuclei_threshold: InFile | None
    tta: bool
    """Whether the predictions were averaged over turns."""

    def __post_init__(self) -> None:
        for found in (self.threshold, self.nuclei_threshold):
            if found is not None:
                classes = [*found] if isinstance(found, dict) else [""]
                ClassThresholds.from_file(found, "out of fold", classes)

    def is_of(self, digests: Sequence[str]) -> bool:
        """Whether the members have these digests, in their order."""
        return [member.get("model_sha256") for member in self.members.values()] == [*digests]

    def thresholds(self, classes: Sequence[str]) -> Thresholds:
        """Return both, with the default where nothing is annotated. Raises ValueError if they are
        of other classes."""
        chosen = []
        for found in (self.threshold, self.nuclei_threshold):
            values = None
            if found is not None:
                values = ClassThresholds.from_file(found, "out of fold", classes).values
            chosen.append(chosen_out_of_fold(values, self.tta, len(classes)))
        return Thresholds(*chosen)


def read_out_of_fold(folder: Path) -> OutOfFold | None:
    """Read the ensemble.json of a folder of folds; None if there is none. Raises UserError."""
    file = folder / ENSEMBLE
    try:
        return read_checked(file, OutOfFold)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(folder, getattr(error, "strerror", None) or str(error)) from None


def damaged(folder: Path, problem: str) -> UserError:
    """Return the error for an ensemble.json that cannot be used."""
    return UserError(
        f"{folder / ENSEMBLE}: damaged: {problem}; move it away, and choose thresholds again:"
        f" python -m train.evaluate run={folder}",
        can_heal=False,
    )


def ensemble_item(folder: Path) -> Item:
    """Return the item of a folder's ensemble.json."""
    return Item(folder, KIND, KIND)


def write_out_of_fold(folder: Path, chosen: OutOfFold) -> None:
    """Write the ensemble.json of a folder of folds. Raises UserError if it is another's."""
    with ensemble_item(folder) as item:
        item.write(ENSEMBLE, (json.dumps(vars(chosen), indent=2) + "\n").encode())
        item.publish()


def in_file(values: Sequence[float], classes: Sequence[str]) -> InFile:
    """Return the thresholds of classes as a file has them."""
    return values[0] if len(classes) == 1 else dict(zip(classes, values, strict=True))


def metric_of_class(metric: str, name: str) -> str:
    """Return the metric of one of several classes: val/threshold/tumor."""
    return f"{metric}/{name}"


def chosen_out_of_fold(
    values: Sequence[float] | None, tta: bool, num_classes: int
) -> ClassThresholds:
    """Return thresholds that were chosen out of fold; None if nothing is annotated."""
    if values is None:
        return ClassThresholds.default(num_classes, "empty_folds")
    return ClassThresholds(tuple(values), "out of fold, tta" if tta else "out of fold")


def median_of(states: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Thresholds:
    """Return the median of the thresholds in the states of several checkpoints."""
    chosen = []
    for metric in (PIXEL_THRESHOLD, NUCLEI_THRESHOLD):
        each = [stored_in(state, metric, classes) for state in states]
        known = [found.values for found in each if found.chosen_on == "val"]
        medians = tuple(median(of_one) for of_one in zip(*known, strict=True))
        chosen.append(ClassThresholds(medians, "members") if known else each[0])
    return Thresholds(*chosen)


def thresholds_of(
    state: Mapping[str, Any], classes: Sequence[str], pixels: str = "auto", nuclei: str = "auto"
) -> Thresholds:
    """Return the thresholds of a loaded model: `pixels` and `nuclei` where they are numbers, for
    all classes; else those of the ensemble, or those that were best on the validation split when
    the checkpoint of this state was saved, or the default."""
    stored = state.get("thresholds") or Thresholds(
        stored_in(state, PIXEL_THRESHOLD, classes), stored_in(state, NUCLEI_THRESHOLD, classes)
    )
    return Thresholds(
        given_or(pixels, stored.pixels, len(classes)), given_or(nuclei, stored.nuclei, len(classes))
    )


def given_or(given: str, stored: ClassThresholds, num_classes: int) -> ClassThresholds:
    """Return what threshold= gives, a number for all classes; for auto the stored ones."""
    if given == "auto":
        return stored
    return ClassThresholds((float(given),) * num_classes, "given")


def stored_in(state: Mapping[str, Any], metric: str, classes: Sequence[str]) -> ClassThresholds:
    """Return the thresholds in a checkpoint's validation metrics, else the default. Raises
    UserError for what is none."""
    metrics = state["metrics"]
    if (of_all := metrics.get(metric)) is None:
        return ClassThresholds.default(
            len(classes), "empty_val" if metric in metrics else "default"
        )
    of_each = [metrics.get(metric_of_class(metric, name)) for name in classes]
    try:
        return ClassThresholds(tuple(of_all if one is None else one for one in of_each), "val")
    except ValueError as error:
        raise UserError(f"the checkpoint's {metric}: {error}", can_heal=False) from None


def doubt_about_best(dice: Score, step: int) -> str:
    """Say that the best step, with this Dice of the validation, is no choice; '' if it is."""
    if dice is None or not 0 <= dice < NO_DICE:
        return ""
    return (
        f"best is step {step}, of Dice {dice:.4f}: no validation found anything at a threshold of"
        " 0.5; train longer, or look at the masks and the learning rate"
    )
