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


@dataclass(frozen=True)
class Thresholds:
    """The probabilities above which a pixel and a nucleus count, and how each was chosen."""

    pixels: float
    chosen_on: str
    """A key of CHOSEN_ON."""
    nuclei: float
    nuclei_chosen_on: str

    def __post_init__(self) -> None:
        for value, how in ((self.pixels, self.chosen_on), (self.nuclei, self.nuclei_chosen_on)):
            if not 0 < value < 1 or how not in CHOSEN_ON:
                raise ValueError(f"a threshold of {value:g}, {short(how)}, is none")


@dataclass(frozen=True)
class OutOfFold:
    """The content of ensemble.json: thresholds chosen on what each member predicts of cases that it
    was not trained on."""

    members: dict[str, dict[str, str]]
    """Run -> "checkpoint" and "model_sha256"."""
    threshold: float | None
    """Of pixels; None where nothing is annotated."""
    nuclei_threshold: float | None
    tta: bool
    """Whether the predictions were averaged over turns."""

    def __post_init__(self) -> None:
        for value in (self.threshold, self.nuclei_threshold):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"a threshold of {value:g} is none")

    def is_of(self, digests: Sequence[str]) -> bool:
        """Whether the members have these digests, in their order."""
        return [member.get("model_sha256") for member in self.members.values()] == [*digests]

    @property
    def thresholds(self) -> Thresholds:
        """The two thresholds, with the default where nothing is annotated."""
        return Thresholds(
            *chosen(self.threshold, self.tta), *chosen(self.nuclei_threshold, self.tta)
        )


def read_out_of_fold(folder: Path) -> OutOfFold | None:
    """Read the ensemble.json of a folder of folds; None if there is none. Raises UserError."""
    file = folder / ENSEMBLE
    try:
        return read_checked(file, OutOfFold)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{file}: damaged: {reason}; move it away, and choose thresholds again: python -m"
            f" train.evaluate run={folder}",
            can_heal=False,
        ) from None


def ensemble_item(folder: Path) -> Item:
    """Return the item of a folder's ensemble.json."""
    return Item(folder, KIND, KIND)


def write_out_of_fold(folder: Path, chosen: OutOfFold) -> None:
    """Write the ensemble.json of a folder of folds. Raises UserError if it is another's."""
    with ensemble_item(folder) as item:
        item.write(ENSEMBLE, (json.dumps(vars(chosen), indent=2) + "\n").encode())
        item.publish()


def chosen(value: float | None, tta: bool) -> tuple[float, str]:
    """Return a threshold that was chosen out of fold, and how; None if nothing is annotated."""
    if value is None:
        return DEFAULT_THRESHOLD, "empty_folds"
    return value, "out of fold, tta" if tta else "out of fold"


def median_of(states: Sequence[dict[str, Any]]) -> Thresholds:
    """Return the median of the thresholds in the states of several checkpoints."""
    pairs = []
    for name in (PIXEL_THRESHOLD, NUCLEI_THRESHOLD):
        found = [stored_threshold(state, name) for state in states]
        known = [value for value, how in found if how == "val"]
        pairs.append((median(known), "members") if known else found[0])
    return Thresholds(*pairs[0], *pairs[1])


def choose_threshold(
    given: str, state: Mapping[str, Any], name: str = PIXEL_THRESHOLD
) -> tuple[float, str]:
    """Return the probability above which a pixel or a nucleus counts, and how it was chosen.

    `given` is a number, or auto for the threshold that was best on the validation split when the
    checkpoint of this state was saved. How it was chosen is a key of CHOSEN_ON.
    """
    return stored_threshold(state, name) if given == "auto" else (float(given), "given")


def thresholds_for(given: str, state: Mapping[str, Any]) -> Thresholds:
    """Return the thresholds of an evaluation: `given` is that of pixels, or auto."""
    nuclei = stored_threshold(state, NUCLEI_THRESHOLD)
    return Thresholds(*choose_threshold(given, state), *nuclei)


def stored_threshold(state: Mapping[str, Any], name: str) -> tuple[float, str]:
    """Return the threshold of an ensemble, or that in a checkpoint's validation metrics, else the
    default; and which."""
    if thresholds := state.get("thresholds"):
        if name == PIXEL_THRESHOLD:
            return thresholds.pixels, thresholds.chosen_on
        return thresholds.nuclei, thresholds.nuclei_chosen_on
    metrics = state["metrics"]
    if metrics.get(name) is not None:
        return metrics[name], "val"
    return DEFAULT_THRESHOLD, "empty_val" if name in metrics else "default"


def doubt_about_best(dice: Score, step: int) -> str:
    """Say that the best step, with this Dice of the validation, is no choice; '' if it is."""
    if dice is None or not 0 <= dice < NO_DICE:
        return ""
    return (
        f"best is step {step}, of Dice {dice:.4f}: no validation found anything at a threshold of"
        " 0.5; train longer, or look at the masks and the learning rate"
    )


def thresholds_text(pixels: float, chosen_on: str, nuclei: float, nuclei_chosen_on: str) -> str:
    """Say two thresholds, and how each was chosen (keys of CHOSEN_ON)."""
    if chosen_on == nuclei_chosen_on:
        both = CHOSEN_ON[chosen_on]
        return f"threshold of pixels {pixels:g}, of nuclei {nuclei:g} (both {both})"
    return (
        f"threshold of pixels {pixels:g} ({CHOSEN_ON[chosen_on]}), of nuclei {nuclei:g}"
        f" ({CHOSEN_ON[nuclei_chosen_on]})"
    )
