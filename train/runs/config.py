"""What `python -m train.show` can be told: every key and its default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShowConfig:
    """Everything `python -m train.show` can be told."""

    run: str = ""
    """Folder of the run; the newest in runs/ where empty."""
    checkpoint: str = "latest"
    """latest, best, or the step of a checkpoint."""
