"""The settings of `python -m train.show`: every key and its default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShowConfig:
    """Every setting of `python -m train.show`."""

    run: str = ""
    """Folder of the run; the newest in runs/ if empty."""
    checkpoint: str = "latest"
    """latest, best, or the step of a checkpoint."""
