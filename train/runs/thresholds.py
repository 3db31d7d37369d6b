"""The thresholds of a run: chosen on the validation split, given, or the default."""

from typing import Any

from train.metrics.scores import DEFAULT_THRESHOLD, EMPTY

PIXEL_THRESHOLD, NUCLEI_THRESHOLD = "val/threshold", "val/nuclei_threshold"  # of a state's metrics
CHOSEN_ON = {
    "val": "chosen on val",
    "given": "given",
    "default": "default, no validation",
    "empty_val": f"default, {EMPTY} in val",
}
"""What a threshold was chosen on, as summary.json has it -> in words."""


def choose_threshold(
    given: str, state: dict[str, Any], name: str = PIXEL_THRESHOLD
) -> tuple[float, str]:
    """The probability above which a pixel (or a nucleus) counts, and what it was chosen on.

    `given`, or with auto the one that was best on the validation split ('val') when the checkpoint
    of this state was saved; else the default, see CHOSEN_ON.
    """
    return stored_threshold(state, name) if given == "auto" else (float(given), "given")


def stored_threshold(state: dict[str, Any], name: str) -> tuple[float, str]:
    """A threshold among a checkpoint's validation metrics, or the default; and which."""
    metrics = state["metrics"]
    if metrics.get(name) is not None:
        return metrics[name], "val"
    return DEFAULT_THRESHOLD, "empty_val" if name in metrics else "default"


def thresholds_text(pixels: float, chosen_on: str, nuclei: float, nuclei_chosen_on: str) -> str:
    """Say two thresholds, and what each was chosen on (a key of CHOSEN_ON)."""
    if chosen_on == nuclei_chosen_on:
        both = CHOSEN_ON[chosen_on]
        return f"threshold of pixels {pixels:g}, of nuclei {nuclei:g} (both {both})"
    return (
        f"threshold of pixels {pixels:g} ({CHOSEN_ON[chosen_on]}), of nuclei {nuclei:g}"
        f" ({CHOSEN_ON[nuclei_chosen_on]})"
    )
