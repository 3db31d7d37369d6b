"""The thresholds of a run: chosen on the validation split, given, or the default."""

from typing import Any

from train.metrics.scores import DEFAULT_THRESHOLD, EMPTY, Score

PIXEL_THRESHOLD, NUCLEI_THRESHOLD = "val/threshold", "val/nuclei_threshold"  # of a state's metrics
NO_DICE = 5e-5
"""A best Dice below it is written as 0.0000: nothing was found, or next to nothing."""
CHOSEN_ON = {
    "val": "chosen on val",
    "given": "given",
    "default": "default, no validation",
    "empty_val": f"default, {EMPTY} in val",
}
"""How a threshold was chosen: the word in summary.json -> the words for people."""


def choose_threshold(
    given: str, state: dict[str, Any], name: str = PIXEL_THRESHOLD
) -> tuple[float, str]:
    """Return the probability above which a pixel or a nucleus counts, and how it was chosen.

    `given` is a number, or auto for the threshold that was best on the validation split when the
    checkpoint of this state was saved. How it was chosen is a key of CHOSEN_ON.
    """
    return stored_threshold(state, name) if given == "auto" else (float(given), "given")


def stored_threshold(state: dict[str, Any], name: str) -> tuple[float, str]:
    """Return the threshold in a checkpoint's validation metrics, else the default; and which."""
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
